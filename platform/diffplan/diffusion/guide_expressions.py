"""Guides from text: an import path, or an expression over plans.

    my_package.guides:make_guide
    2 * goal_distance() + keep_out([3, 4], 0.5, margin=0.2)
    -mean(norm(position - [2, 3])) - 0.1 * max(norm(velocity))

Expressions are parsed to Python's syntax tree, and only the nodes and names listed here and in `plan_expressions` are
allowed; nothing is evaluated as Python. An import path runs the module that it names.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import importlib
import inspect
import math
import operator
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from diffplan.diffusion.guidance import Guide
from diffplan.diffusion.guides import (
    GoalDistance,
    KeepIn,
    KeepOut,
    KeepOutBox,
    Smoothness,
    SpeedLimit,
    TargetRegion,
    WeightedSum,
    as_guide,
)
from diffplan.diffusion.plan_expressions import (
    COLUMNS,
    ELEMENTWISE,
    FIELDS,
    PAIRWISE,
    REDUCTIONS,
    STEPS,
    Expression,
    Field,
    Operation,
    combine,
    quote,
    reduce,
    take,
)
from diffplan.errors import ConfigError, describe_error, unknown_name
from diffplan.importing import is_import_path, look_in_working_directory

MAX_LENGTH, MAX_DEPTH, MAX_EXPONENT, MAX_INDEX = 2000, 50, 8, 10**6
"""Limits of an expression: characters, nesting, |exponent| and |index|. They bound the time of any expression."""

_EXAMPLE = "-mean(norm(position - [2, 3])) + 2 * keep_out([1, 2], 0.5)"

_GUIDES: dict[str, type] = {
    "goal_distance": GoalDistance,
    "keep_in": KeepIn,
    "keep_out": KeepOut,
    "keep_out_box": KeepOutBox,
    "smoothness": Smoothness,
    "speed_limit": SpeedLimit,
    "target_region": TargetRegion,
}
_FUNCTIONS = {**dict.fromkeys([*ELEMENTWISE, *REDUCTIONS], 1), **dict.fromkeys(PAIRWISE, 2), "clip": 3}
"""Functions of parts of the plan, and their numbers of arguments."""
_OPERATORS: dict[type[ast.operator], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def parse_guide(text: str, own: Mapping[str, type] = MappingProxyType({})) -> Guide:
    """The guide that a text describes; see the module.

    An import path may name a guide, a function of plans, or a class or function that makes one without arguments.

    Args:
        text: an import path or an expression.
        own: further classes of guides by the names that expressions call them by: dataclasses whose fields are numbers,
            lists of numbers or texts from a choice.

    Raises:
        ConfigError: the text describes no guide; the message says what was expected.
    """
    text = text.strip()
    return _import_guide(text) if is_import_path(text) else _Parser(text, {**_GUIDES, **own}).guide()


def parse_guides(texts: Sequence[str], own: Mapping[str, type] = MappingProxyType({})) -> Guide:
    """The sum of the guides that texts describe, each as for `parse_guide`.

    Raises:
        ConfigError: there is no text, or one describes no guide.
    """
    if not texts:
        raise ConfigError(f"guides: expected at least one, such as {_EXAMPLE!r}, got none")
    guides = [parse_guide(text, own) for text in texts]
    return guides[0] if len(guides) == 1 else WeightedSum(tuple((1.0, guide) for guide in guides))


def _import_guide(text: str) -> Guide:
    module_path, _, attribute_path = text.partition(":")
    look_in_working_directory()
    try:
        found: Any = importlib.import_module(module_path)
    except ImportError as error:
        raise ConfigError(
            f"guide {quote(text)}: cannot import {module_path} ({error}); install it or add its folder to PYTHONPATH"
        ) from error
    except (Exception, SystemExit) as error:  # whatever a module of the user raises
        raise ConfigError(f"guide {quote(text)}: importing {module_path} failed: {describe_error(error)}") from error
    for name in attribute_path.split("."):
        if not hasattr(found, name):
            near = difflib.get_close_matches(name, dir(found), n=1)
            hint = f"did you mean {near[0]!r}?" if near else "define it there"
            raise ConfigError(f"guide {quote(text)}: no {name!r} in {getattr(found, '__name__', module_path)}; {hint}")
        found = getattr(found, name)
    if isinstance(found, type) and _num_required(found):
        raise ConfigError(f"guide {quote(text)}: {found.__name__} needs arguments; name a function that makes one")
    try:
        return as_guide(found() if _makes_guide(found) else found)
    except ValueError as error:
        raise ConfigError(f"guide {quote(text)}: {error}") from error
    except SystemExit as error:  # `sys:exit` would end the program as if all were well
        raise ConfigError(f"guide {quote(text)}: expected a guide, got {describe_error(error)}") from error


def _makes_guide(found: Any) -> bool:
    """Whether an object makes a guide (a class or a function without arguments), and is not a guide itself."""
    if isinstance(found, type):
        return True
    return callable(found) and not isinstance(found, Guide) and _num_required(found, variadic=1) == 0


def _num_required(function: Callable[..., Any], variadic: int = 0) -> int:
    """Number of required arguments of a function; `*args` counts as `variadic`."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some built-in functions have no signature
        return variadic
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return len(required) + variadic * any(p.kind == p.VAR_POSITIONAL for p in parameters)


class _Parser:
    """Reads one expression. Its values are numbers, lists of numbers (tuples), texts, parts of plans and guides."""

    def __init__(self, text: str, guides: Mapping[str, type]) -> None:
        self.text, self.guides = text, guides

    def error(self, message: str) -> ConfigError:
        return ConfigError(f"guide {quote(self.text)}: {message}")

    def unknown(self, name: str, known: Sequence[str], where: str = "") -> ConfigError:
        return ConfigError(unknown_name(f"guide {quote(self.text)}{where}", name, known))

    def guide(self) -> Guide:
        if len(self.text) > MAX_LENGTH:
            raise self.error(f"expected at most {MAX_LENGTH} characters, got {len(self.text)}; write it in Python")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Python's parser warns about code that is refused here anyway
                tree = ast.parse(self.text, mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            reason = getattr(error, "msg", None) or type(error).__name__
            raise self.error(
                f"expected an expression such as {_EXAMPLE!r} or an import path such as "
                f"'my_package.guides:make_guide'; {reason}"
            ) from None
        return self.finished(self.value(tree.body, 0))

    def finished(self, value: Any) -> Guide:
        """A value as a complete guide."""
        if isinstance(value, Field | Operation):
            if value.axes:
                many = " and ".join(name for axis, name in ((STEPS, "step"), (COLUMNS, "column")) if axis in value.axes)
                raise self.error(f"expected one number per plan, got one for each {many}; take mean(...) or sum(...)")
            return Expression(self.text, value)
        if not isinstance(value, Guide):
            raise self.error(f"expected a guide or something of the plan such as position, got {_kind(value)}")
        return value

    def value(self, node: ast.expr, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise self.error(f"expected at most {MAX_DEPTH} operations within each other; write it in Python")
        inner = functools.partial(self.value, depth=depth + 1)
        match node:
            case ast.Constant(value=str() as text):
                return text
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                return self.number(float, number)
            case ast.List(elts=parts) | ast.Tuple(elts=parts) if parts:
                numbers = tuple(inner(part) for part in parts)
                if not all(isinstance(number, float) for number in numbers):
                    raise self.error(f"expected numbers in a list, got {', '.join(map(_kind, numbers))}")
                return numbers
            case ast.Name(id=name) if name in FIELDS:
                return Field(name)
            case ast.Name(id=name) if name in _FUNCTIONS or name in self.guides:
                raise self.error(f"expected {name} to be called, as in {name}(...)")
            case ast.Name(id=name):
                raise self.unknown(name, [*FIELDS, *_FUNCTIONS, *self.guides])
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
                return self.binary(ast.Mult(), -1.0 if isinstance(sign, ast.USub) else 1.0, inner(operand))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return self.binary(op, inner(left), inner(right))
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=keywords):
                if any(keyword.arg is None for keyword in keywords):
                    raise self.error(f"{name}: expected arguments one by one, got **")
                named = {str(keyword.arg): inner(keyword.value) for keyword in keywords}
                return self.call(name, [inner(argument) for argument in arguments], named)
            case ast.Subscript(value=part, slice=index):
                return self.indexed(inner(part), index, depth + 1)
            case _:
                got = quote(ast.get_source_segment(self.text, node) or type(node).__name__, 30)
                raise self.error(f"expected numbers, lists of them, names, calls, [...] and + - * / **, got {got}")

    def number(self, compute: Callable[..., Any], *arguments: Any) -> float:
        try:
            result = compute(*arguments)
        except (OverflowError, ZeroDivisionError) as error:
            raise self.error(f"expected finite numbers; {error}") from None
        if not (isinstance(result, float) and math.isfinite(result)):
            raise self.error(f"expected finite real numbers, got {result}")
        return result

    def binary(self, op: ast.operator, left: Any, right: Any) -> Any:
        function = _OPERATORS[type(op)]
        if isinstance(op, ast.Pow) and not (isinstance(right, float) and abs(right) <= MAX_EXPONENT):
            raise self.error(f"expected a number of at most {MAX_EXPONENT} as exponent, got {_kind(right)}")
        if isinstance(left, float) and isinstance(right, float):
            return self.number(function, left, right)
        reciprocal = (
            self.number(operator.truediv, 1.0, right) if isinstance(op, ast.Div) and isinstance(right, float) else None
        )
        if not (isinstance(left, Guide) or isinstance(right, Guide)):
            return self.combined(function, left, right)
        if isinstance(op, ast.Add | ast.Sub):
            sign = 1.0 if isinstance(op, ast.Add) else -1.0
            terms = [*_terms(self.finished(left)), *((sign * w, g) for w, g in _terms(self.finished(right)))]
            return WeightedSum(tuple(terms))
        if reciprocal is not None:
            op, right = ast.Mult(), reciprocal
        weight, guide = (left, right) if isinstance(left, float) else (right, left)
        if not (isinstance(op, ast.Mult) and isinstance(weight, float)):
            raise self.error(f"expected sums of guides and products with numbers, got {_kind(left)} and {_kind(right)}")
        return WeightedSum(tuple((self.number(operator.mul, weight, w), g) for w, g in _terms(guide)))

    def combined(self, function: Callable[..., torch.Tensor], *values: Any) -> Operation:
        """An elementwise function of parts of the plan and numbers."""
        of_plan = any(isinstance(value, Field | Operation) for value in values)
        if not of_plan or not all(isinstance(value, Field | Operation | float | tuple) for value in values):
            got = " and ".join(map(_kind, values))
            raise self.error(f"expected something of the plan such as position, alone or with numbers, got {got}")
        return combine(function, values)

    def call(self, name: str, arguments: list[Any], named: dict[str, Any]) -> Any:
        if name in self.guides:
            return self.ready(name, arguments, named)
        if name in FIELDS:
            raise self.error(f"expected {name} without (...)")
        if name not in _FUNCTIONS:
            raise self.unknown(name, [*_FUNCTIONS, *self.guides])
        if len(arguments) != _FUNCTIONS[name] or named:
            got = f"{len(arguments)} and {', '.join(named)}" if named else len(arguments)
            raise self.error(f"{name}: expected {_FUNCTIONS[name]} arguments without names, got {got}")
        if name == "clip":
            part, low, high = arguments
            if not (isinstance(low, float) and isinstance(high, float) and low <= high):
                raise self.error(f"clip: expected two numbers in order as limits, got {_kind(low)} and {_kind(high)}")
            return self.combined(functools.partial(torch.clamp, min=low, max=high), part)
        if name not in REDUCTIONS:
            return self.combined((ELEMENTWISE | PAIRWISE)[name], *arguments)
        (part,) = arguments
        if not isinstance(part, Field | Operation):
            raise self.error(f"{name}: expected something of the plan such as position, got {_kind(part)}")
        if name == "norm" and COLUMNS not in part.axes:
            raise self.error(
                "norm: expected something with columns such as position, got single numbers; take abs(...)"
            )
        return reduce(name, part)

    def ready(self, name: str, arguments: list[Any], named: dict[str, Any]) -> Guide:
        """A predefined guide from its arguments."""
        cls: Any = self.guides[name]
        hints = typing.get_type_hints(cls)
        fields = [field.name for field in dataclasses.fields(cls)]
        given = dict(zip(fields, arguments, strict=False))
        if len(arguments) > len(fields) or given.keys() & named.keys():
            raise self.error(f"{name}: expected {', '.join(fields) or 'no arguments'}, each at most once")
        given |= named
        for argument, value in given.items():
            if argument not in fields:
                raise self.unknown(argument, fields, f", argument of {name}")
            hint = hints[argument]
            choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
            if not (value in choices if choices else isinstance(value, float if hint is float else tuple)):
                wanted = f"one of {', '.join(choices)}" if choices else "a number" if hint is float else "a list [1, 2]"
                raise self.error(f"{name}: expected {wanted} as {argument}, got {_kind(value)}")
        missing = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING and f.name not in given]
        if missing:
            raise self.error(f"{name}: expected {', '.join(fields)}; {', '.join(missing)} is missing")
        try:
            return cls(**given)
        except ValueError as error:
            raise self.error(str(error)) from None

    def indexed(self, part: Any, index: ast.expr, depth: int) -> Operation:
        """Steps and columns of a part of the plan, counted as in PyTorch: [plans, steps, columns]."""
        if not isinstance(part, Field | Operation):
            raise self.error(f"expected something of the plan such as position before [...], got {_kind(part)}")
        picks = [self.pick(pick, depth) for pick in (index.elts if isinstance(index, ast.Tuple) else [index])]
        axes = [0, *sorted(part.axes)]
        num_omitted = len(axes) - sum(pick is not ... for pick in picks)
        if num_omitted < 0 or picks.count(...) > 1:
            raise self.error(f"expected at most {len(axes)} indices, the first for the plans, got {len(picks)}")
        at = picks.index(...) if ... in picks else len(picks)
        picks[at : at + 1] = [slice(None)] * num_omitted
        if picks[0] != slice(None):
            raise self.error("expected all plans as the first index, as in position[:, -1] or position[..., 0]")
        return take(part, dict(zip(axes[1:], picks[1:], strict=True)))

    def pick(self, node: ast.expr, depth: int) -> Any:
        """An index: a whole number, a slice of whole numbers, or an ellipsis."""
        if isinstance(node, ast.Constant) and node.value is ...:
            return ...
        if isinstance(node, ast.Slice):
            start, stop, step = (
                None if part is None else self.pick(part, depth) for part in (node.lower, node.upper, node.step)
            )
            if all(part is None or isinstance(part, int) for part in (start, stop, step)) and (
                step is None or step > 0
            ):
                return slice(start, stop, step)
        elif isinstance(node, ast.Constant | ast.UnaryOp):
            number = self.value(node, depth)
            if isinstance(number, float) and number.is_integer() and abs(number) <= MAX_INDEX:
                return int(number)
        raise self.error("expected whole numbers, slices of them with a positive step, or ... as indices")


def _terms(guide: Any) -> tuple[tuple[float, Guide], ...]:
    return guide.terms if isinstance(guide, WeightedSum) else ((1.0, guide),)


def _kind(value: Any) -> str:
    """The kind of a value, for errors."""
    if isinstance(value, float):
        return f"the number {value:g}"
    if isinstance(value, tuple):
        return "a list of numbers"
    if isinstance(value, str):
        return f"the text {quote(value, 30)}"
    return "a guide" if isinstance(value, Guide) else "something of the plan"

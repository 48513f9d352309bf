"""Tensor expressions over plans, as guides; `guide_expressions` reads them from text.

A value over plans always has three axes, [batch, steps, columns], with size 1 for an axis that it lacks. The axes of a
value are known without any plan. So parts are matched by the meaning of their axes, not by position, and a guide that
does not give one number per plan is refused when it is parsed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffplan.diffusion.guidance import PlanBatch
from diffplan.errors import PlanningError

STEPS, COLUMNS = 1, 2
"""Axes of a value besides the batch axis."""
_BOTH = frozenset({STEPS, COLUMNS})

FIELDS: dict[str, tuple[frozenset[int], Callable[[PlanBatch], Tensor | None]]] = {
    "action": (_BOTH, lambda plans: plans.actions),
    "goal": (
        frozenset({COLUMNS}),
        lambda plans: None if plans.goals is None else plans.goals.to(plans.transitions)[:, None],
    ),
    "observation": (_BOTH, lambda plans: plans.observations),
    "position": (_BOTH, lambda plans: plans.positions),
    "time": (frozenset({STEPS}), lambda plans: plans.times.to(plans.transitions)[None, :, None]),
    "velocity": (_BOTH, lambda plans: plans.velocities),
}
"""Parts of plans that expressions can name: their axes, and how they are read from plans."""

ELEMENTWISE: dict[str, Callable[..., Tensor]] = {
    "abs": torch.abs,
    "cos": torch.cos,
    "exp": torch.exp,
    "log": torch.log,
    "relu": torch.relu,
    "sin": torch.sin,
    "sqrt": torch.sqrt,
    "square": torch.square,
}
REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "max": functools.partial(torch.amax, dim=(STEPS, COLUMNS), keepdim=True),
    "mean": functools.partial(torch.mean, dim=(STEPS, COLUMNS), keepdim=True),
    "min": functools.partial(torch.amin, dim=(STEPS, COLUMNS), keepdim=True),
    "norm": functools.partial(torch.linalg.vector_norm, dim=COLUMNS, keepdim=True),
    "sum": functools.partial(torch.sum, dim=(STEPS, COLUMNS), keepdim=True),
}
"""`norm` is over the columns, the others over steps and columns."""
PAIRWISE: dict[str, Callable[..., Tensor]] = {"maximum": torch.maximum, "minimum": torch.minimum}


@dataclass(frozen=True)
class Field:
    """A part of a plan, by its name in expressions."""

    name: str

    @property
    def axes(self) -> frozenset[int]:
        """Axes of the part."""
        return FIELDS[self.name][0]

    @property
    def takes_lengths(self) -> bool:
        """Whether plans of several horizons may be evaluated in one batch."""
        return True

    def evaluate(self, plans: PlanBatch) -> Float[Tensor, "_ steps columns"]:
        """Values of the part.

        Raises:
            PlanningError: the plans do not have it.
        """
        values = FIELDS[self.name][1](plans)
        if values is None or values.shape[COLUMNS] == 0:
            raise PlanningError(f"expected plans with {self.name}, got plans that have none")
        return values


@dataclass(frozen=True)
class Operation:
    """A function of parts of a plan, numbers and lists of numbers.

    Attributes:
        axes: axes that the result has.
        function: the function.
        arguments: the arguments; a list of numbers has one for each column.
        picks_steps: whether the result has other steps than the plans, so that the ends of the plans are unknown.
    """

    axes: frozenset[int]
    function: Callable[..., Tensor]
    arguments: tuple[Any, ...]
    picks_steps: bool = False

    @property
    def takes_lengths(self) -> bool:
        """Whether plans of several horizons may be evaluated in one batch."""
        parts = (argument for argument in self.arguments if isinstance(argument, (Field, Operation)))
        return not self.picks_steps and all(part.takes_lengths for part in parts)

    def evaluate(self, plans: PlanBatch) -> Float[Tensor, "_ steps columns"]:
        """The values of the function.

        Raises:
            PlanningError: the plans lack a part that it uses.
        """

        def value(argument: Any) -> Tensor:
            if isinstance(argument, (Field, Operation)):
                return argument.evaluate(plans)
            numbers = argument if isinstance(argument, tuple) else (argument,)
            return plans.transitions.new_tensor(numbers)[None, None]

        return self.function(*map(value, self.arguments))


@dataclass(frozen=True)
class Reduction(Operation):
    """A function over the steps and columns of a part of a plan.

    Attributes:
        name: which of `REDUCTIONS`.
    """

    name: str = ""

    def evaluate(self, plans: PlanBatch) -> Float[Tensor, "_ steps columns"]:
        """The values of the function over the steps that belong to each plan; raises as its argument does."""
        (argument,) = self.arguments
        values, within = argument.evaluate(plans), plans.within()
        if within is None or STEPS not in argument.axes:
            return self.function(values)
        behind = ~within[:, :, None]
        if self.name in ("max", "min"):
            return self.function(values.masked_fill(behind, -torch.inf if self.name == "max" else torch.inf))
        total = values.masked_fill(behind, 0.0).sum(dim=(STEPS, COLUMNS), keepdim=True)
        return total if self.name == "sum" else total / (within.sum(dim=1)[:, None, None] * values.shape[COLUMNS])


@dataclass(frozen=True)
class Expression:
    """A tensor expression as a guide.

    Attributes:
        text: its source text, for errors.
        root: computes the scores; it has the batch axis only.
    """

    text: str
    root: Field | Operation = field(repr=False)

    @property
    def takes_lengths(self) -> bool:
        """Whether plans of several horizons may be scored in one batch; not if single steps are picked."""
        return self.root.takes_lengths

    def score(self, plans: PlanBatch) -> Float[Tensor, " batch"]:
        """Value of the expression for each plan.

        Raises:
            PlanningError: the plans lack parts that it uses, such as goals, or have too few steps or columns.
        """
        try:
            value = self.root.evaluate(plans)
        except PlanningError as error:
            raise PlanningError(f"guide {quote(self.text)}: {error}") from None
        return value[:, 0, 0].expand(len(plans.transitions))


def combine(function: Callable[..., Tensor], arguments: tuple[Any, ...]) -> Operation:
    """An elementwise function of one or two arguments."""
    axes = [argument.axes for argument in arguments if isinstance(argument, (Field, Operation))]
    axes += [frozenset({COLUMNS}) for argument in arguments if isinstance(argument, tuple)]
    shared = tuple(sorted(axes[0] & axes[1])) if len(axes) == 2 else ()
    return Operation(frozenset().union(*axes), functools.partial(_match, function, shared), arguments)


def reduce(name: str, argument: Field | Operation) -> Operation:
    """One of `REDUCTIONS`."""
    if name == "norm":
        return Operation(argument.axes - {COLUMNS}, REDUCTIONS[name], (argument,))
    return Reduction(argument.axes - _BOTH, REDUCTIONS[name], (argument,), name=name)


def take(argument: Field | Operation, picks: dict[int, int | slice]) -> Operation:
    """Some steps and columns: one, which removes the axis, or a slice."""
    left = frozenset(axis for axis in argument.axes if isinstance(picks[axis], slice))
    return Operation(left, functools.partial(_take, tuple(picks.items())), (argument,), _picks_steps(picks))


def _picks_steps(picks: dict[int, int | slice]) -> bool:
    return picks.get(STEPS, slice(None)) != slice(None)


def _match(function: Callable[..., Tensor], shared: tuple[int, ...], *values: Tensor) -> Tensor:
    """A function of values whose shared axes must have equal sizes; these are not broadcast from size 1."""
    for axis in shared:
        sizes = [value.shape[axis] for value in values]
        if len(set(sizes)) > 1:
            name = "steps" if axis == STEPS else "columns"
            raise PlanningError(f"expected as many {name} on both sides, got {sizes[0]} and {sizes[1]}")
    return function(*values)


def _take(picks: tuple[tuple[int, int | slice], ...], x: Tensor) -> Tensor:
    for axis, pick in picks:
        size = x.shape[axis]
        indices = list(range(size)[pick]) if isinstance(pick, slice) else [pick]
        if not indices or not all(-size <= index < size for index in indices):
            name = "steps" if axis == STEPS else "columns"
            wanted = f"[{pick.start}:{pick.stop}]".replace("None", "") if isinstance(pick, slice) else pick
            raise PlanningError(f"expected an index within {size} {name}, got {wanted}")
        x = x.index_select(axis, torch.tensor([index % size for index in indices], device=x.device))
    return x


def quote(text: str, length: int = 100) -> str:
    """A text in quotes, on one line, shortened if it is long."""
    return repr(text if len(text) <= length else text[:length] + "…")

"""Behaviors by import path: a function, a class or an object of the user; and checks of what behaviors return."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from diffplan.errors import ConfigError, DiffplanError, describe_error
from diffplan.tasks.contracts import BehaviorContext, BehaviorPart

FIELD = "collection.behavior"
COLUMNS_ATTRIBUTE = "COLUMNS"
"""What an imported behavior calls its further columns: names and sizes."""


def make_part(name: str, found: Any) -> BehaviorPart:
    """A behavior from what an import path names.

    Args:
        name: the import path.
        found: a `BehaviorPart`; a function `drive(observations)` or `drive(observations, rng)`; a class with `reset`
            and `act`, and `columns` if it has `COLUMNS`, that is made from nothing or from a `BehaviorContext`; or an
            object of such a class.

    Raises:
        ConfigError: something else.
    """
    if isinstance(found, BehaviorPart):
        return found
    if _is_behavior(found):
        columns = getattr(found, COLUMNS_ATTRIBUTE, {})
        if not isinstance(columns, Mapping) or not all(
            isinstance(column, str) and isinstance(size, int) and size >= 0 for column, size in columns.items()
        ):
            raise ConfigError(
                f"{FIELD}: {name}: expected {COLUMNS_ATTRIBUTE} with the size of each column by its name, such as "
                f"{{'goal': 2}}, got {columns!r}"
            )
        if inspect.isclass(found):
            return BehaviorPart(lambda context: _make_object(name, found, context), columns)
        return BehaviorPart(lambda context: found, columns)
    if inspect.isclass(found) or not callable(found):
        raise ConfigError(
            f"{FIELD}: {name}: expected a function of observations, or a class with reset and act, got "
            f"{'a class without' if inspect.isclass(found) else type(found).__name__}"
        )
    call = _find_call(name, found)
    return BehaviorPart(lambda context: _FunctionBehavior(call))


def _is_behavior(found: Any) -> bool:
    return all(callable(getattr(found, method, None)) for method in ("reset", "act"))


def _make_object(name: str, cls: type, context: BehaviorContext) -> Any:
    """An object of a class that is made from nothing, or from a context."""
    try:
        parameters = inspect.signature(cls).parameters
        required = [
            parameter
            for parameter in parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
        if "context" in parameters:
            return cls(context=context)
        return cls(context) if required else cls()
    except DiffplanError:
        raise
    except Exception as error:  # whatever a class of the user raises
        raise ConfigError(
            f"{FIELD}: {name}: expected a class that is made from nothing or from a BehaviorContext, got one that "
            f"fails ({describe_error(error)})"
        ) from error


Call = Callable[[np.ndarray, np.random.Generator], Any]


def _find_call(name: str, function: Callable[..., Any]) -> Call:
    """How a function is called: with or without random numbers."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # functions that are written in C need not tell
        return lambda observations, rng: function(observations)
    rng = signature.parameters.get("rng")
    if rng is not None and rng.kind is not rng.POSITIONAL_ONLY:
        calls: list[tuple[tuple[Any, ...], dict[str, Any], Call]] = [
            ((None,), {"rng": None}, lambda observations, rng: function(observations, rng=rng))
        ]
    else:
        calls = [
            ((None,), {}, lambda observations, rng: function(observations)),
            ((None, None), {}, lambda observations, rng: function(observations, rng)),
        ]
    for arguments, named, call in calls:
        try:
            signature.bind(*arguments, **named)
        except TypeError:
            continue
        return call
    raise ConfigError(
        f"{FIELD}: {name}: expected a function of observations, or of observations and rng, got one of {signature}"
    )


class _FunctionBehavior:
    """A function of observations as a behavior."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def reset(self, observations: np.ndarray, generators: Sequence[np.random.Generator]) -> None:
        # One generator for all environments: a unit is always collected in the same batch.
        self._rng = generators[0]

    def act(self, observations: np.ndarray) -> np.ndarray:
        return self._call(observations, self._rng)

    def columns(self) -> dict[str, np.ndarray]:
        return {}


class CheckedBehavior:
    """A behavior whose mistakes are told in one line.

    Args:
        name: what the user called it.
        behavior: the behavior; where it adds no columns, its method `columns` may be left out.
        columns: names and sizes of the columns that it is to add.
        action_dim: size of an action.
    """

    def __init__(self, name: str, behavior: Any, columns: Mapping[str, int], action_dim: int) -> None:
        self._where = f"{FIELD}: {name}"
        self._behavior, self._columns, self._action_dim = behavior, columns, action_dim

    def reset(self, observations: np.ndarray, generators: Sequence[np.random.Generator]) -> None:
        """Start episodes; raises `ConfigError` for whatever the behavior raises."""
        self._num_envs = len(observations)
        self._call("reset", self._behavior.reset, observations, generators)

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions, float32[num_envs, action_dim]; raises `ConfigError` if they are something else, or not finite."""
        expected = (self._num_envs, self._action_dim)
        actions = self._call("act", lambda: np.asarray(self._behavior.act(observations), dtype=np.float32))
        if actions.shape != expected:
            raise ConfigError(f"{self._where}: expected actions of shape {expected}, got {actions.shape}")
        if not np.isfinite(actions).all():
            raise ConfigError(f"{self._where}: expected finite actions, got NaN or infinity")
        return actions

    def take_over(self, observations: np.ndarray, taken: np.ndarray) -> None:
        """Begin to act in the middle of some episodes; raises `ConfigError` for whatever the behavior raises."""
        if (take_over := getattr(self._behavior, "take_over", None)) is not None:
            self._call("take_over", take_over, observations, taken)

    def columns(self) -> dict[str, np.ndarray]:
        """The columns that were announced; raises `ConfigError` if they are others, or of other sizes."""
        list_columns = getattr(self._behavior, "columns", dict)
        columns = self._call("columns", lambda: {k: np.asarray(v) for k, v in list_columns().items()})
        expected = {name: (self._num_envs, size) if size else (self._num_envs,) for name, size in self._columns.items()}
        if (found := {name: values.shape for name, values in columns.items()}) != expected:
            raise ConfigError(
                f"{self._where}: expected columns {expected or 'that COLUMNS announces'}, got {found or 'none'}"
            )
        return columns

    def _call(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except DiffplanError:
            raise
        except Exception as error:  # whatever a behavior of the user raises
            raise ConfigError(f"{self._where}: {what} failed: {describe_error(error)}") from error

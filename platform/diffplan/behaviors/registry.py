"""Behaviors by name: `random`, those of a task, by import path, a policy in a file, or a mixture of them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffplan.behaviors.mixture import MixtureBehavior
from diffplan.behaviors.policy_file import PREFIX as POLICY_PREFIX
from diffplan.behaviors.policy_file import PolicyFileBehavior
from diffplan.behaviors.random import RandomBehavior
from diffplan.errors import ConfigError
from diffplan.importing import is_import_path, load_object
from diffplan.suggestion import unknown_name
from diffplan.tasks.contracts import Behavior, BehaviorContext, BehaviorPart
from diffplan.tasks.registry import task_of
from diffplan.tasks.task import Task

FIELD = "collection.behavior"


def _random(context: BehaviorContext) -> Behavior:
    if not (np.isfinite(context.action_low).all() and np.isfinite(context.action_high).all()):
        raise ConfigError(f"{FIELD}: 'random' needs bounded actions, and those of {context.env.env_id} are not")
    return RandomBehavior(context.action_low, context.action_high)


RANDOM = BehaviorPart(_random)


def list_behaviors(task: Task) -> dict[str, BehaviorPart]:
    """The behaviors of a task by name, and `random`, which every task has."""
    return {"random": RANDOM, **task.behaviors}


def parse_mixture(text: str, task: Task) -> dict[str, float]:
    """Read a behavior, or a mixture such as `random:0.2,my_module:drive:0.8`, as probabilities that add up to 1.

    A trailing `:NUMBER` is a weight; without one it is 1.

    Raises:
        ConfigError: an unknown name, a weight that is no positive number, or a name twice.
    """
    known = list_behaviors(task)
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, value = _split_weight(part.strip(), known)
        if name not in known and not is_import_path(name) and not name.startswith(POLICY_PREFIX):
            raise ConfigError(
                unknown_name(FIELD, name, known) + " Or give an import path such as my_module:drive, or policy:FILE."
            )
        if not (np.isfinite(value) and value > 0) or name in weights:
            raise ConfigError(
                f"{FIELD}: expected different names with positive weights, such as 'random:0.2,my_module:drive:0.8', "
                f"got {text!r}"
            )
        weights[name] = value
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def _split_weight(part: str, known: dict[str, BehaviorPart]) -> tuple[str, float]:
    """A name and its weight, NaN where what stands for a weight is no number."""
    name, colon, weight = part.rpartition(":")
    if not colon:
        return part, 1.0
    try:
        return name, float(weight)
    except ValueError:
        # `my_module:drive` and `policy:FILE` have no weight; anything else behind a known name is a wrong one.
        return (name, np.nan) if name in known else (part, 1.0)


def make_behavior(text: str, context: BehaviorContext) -> Behavior:
    """Make a behavior or a mixture from its name.

    Raises:
        ConfigError: as `parse_mixture`; the environment is not one that the behavior can act in; what an import path
            names is no behavior.
    """
    task = task_of(context.env)
    weights = parse_mixture(text, task)
    parts = [_find_part(name, task) for name in weights]
    components = [part.make(context) for part in parts]
    if len(components) == 1:
        return components[0]
    columns = {name: size for part in parts for name, size in part.columns.items()}
    return MixtureBehavior(components, list(weights.values()), columns)


def list_columns(text: str, task: Task) -> dict[str, int]:
    """Further columns, and their sizes, that a behavior or mixture adds to a dataset."""
    return {
        column: size for name in parse_mixture(text, task) for column, size in _find_part(name, task).columns.items()
    }


def _find_part(name: str, task: Task) -> BehaviorPart:
    if (part := list_behaviors(task).get(name)) is not None:
        return part
    if name.startswith(POLICY_PREFIX):
        path = name.removeprefix(POLICY_PREFIX)
        return BehaviorPart(lambda context: PolicyFileBehavior.load(path, context))
    found = load_object(name, FIELD)
    if isinstance(found, BehaviorPart):
        return found
    return BehaviorPart(lambda context: _make_own(name, found, context), getattr(found, "COLUMNS", {}))


def _make_own(name: str, found: Any, context: BehaviorContext) -> Behavior:
    """A behavior from what the user's import path names: a class, an object with `reset` and `act`, or a function."""
    if inspect.isclass(found):
        try:
            takes_context = len(inspect.signature(found).parameters) > 0
            make: Any = found
            found = make(context) if takes_context else make()
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{FIELD}: {name}: expected a class that takes nothing or a BehaviorContext, got one that fails "
                f"({error})"
            ) from error
    if hasattr(found, "reset") and hasattr(found, "act"):
        return _Checked(name, _WithColumns(found), context)
    if not callable(found):
        raise ConfigError(
            f"{FIELD}: {name}: expected a function of observations, or a class with reset and act, got "
            f"{type(found).__name__}"
        )
    return _Checked(name, _FunctionBehavior(name, found), context)


class _FunctionBehavior:
    """A function `drive(observations)` or `drive(observations, rng)` as a behavior."""

    def __init__(self, name: str, function: Any) -> None:
        self._function = function
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):
            parameters = [None]
        self._takes_rng = len(parameters) >= 2
        required = [
            p for p in parameters if p is not None and p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
        ]
        if len(required) > 2 or not parameters:
            raise ConfigError(f"{FIELD}: {name}: expected a function of observations and, if wanted, rng")

    def reset(self, observations: np.ndarray, generators: Sequence[np.random.Generator]) -> None:
        # One generator for the batch: a unit is always collected in the same batch.
        self._rng = generators[0]

    def act(self, observations: np.ndarray) -> np.ndarray:
        return self._function(observations, self._rng) if self._takes_rng else self._function(observations)

    def columns(self) -> dict[str, np.ndarray]:
        return {}


class _WithColumns:
    """A behavior of the user, which may leave `columns` out."""

    def __init__(self, behavior: Any) -> None:
        self._behavior = behavior

    def reset(self, observations: np.ndarray, generators: Sequence[np.random.Generator]) -> None:
        self._behavior.reset(observations, generators)

    def act(self, observations: np.ndarray) -> np.ndarray:
        return self._behavior.act(observations)

    def columns(self) -> dict[str, np.ndarray]:
        return self._behavior.columns() if hasattr(self._behavior, "columns") else {}


class _Checked:
    """Actions of a behavior of the user, refused where they are not what the environment takes."""

    def __init__(self, name: str, behavior: Behavior, context: BehaviorContext) -> None:
        self._name, self._behavior = name, behavior
        self._action_dim = len(context.action_low)

    def reset(self, observations: np.ndarray, generators: Sequence[np.random.Generator]) -> None:
        self._behavior.reset(observations, generators)

    def act(self, observations: np.ndarray) -> np.ndarray:
        expected = (len(observations), self._action_dim)
        try:
            actions = np.asarray(self._behavior.act(observations), dtype=np.float32)
        except Exception as error:
            raise ConfigError(f"{FIELD}: {self._name} failed: {type(error).__name__}: {error}") from error
        if actions.shape != expected:
            raise ConfigError(f"{FIELD}: {self._name}: expected actions of shape {expected}, got {actions.shape}")
        if not np.isfinite(actions).all():
            raise ConfigError(f"{FIELD}: {self._name}: expected finite actions, got NaN or infinity")
        return actions

    def columns(self) -> dict[str, np.ndarray]:
        return self._behavior.columns()

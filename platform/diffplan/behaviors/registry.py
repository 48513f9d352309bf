"""Behaviors by name: `random`, those of a task, by import path, a policy in a file, or a mixture of them."""

from __future__ import annotations

import numpy as np

from diffplan.behaviors.imported import FIELD, CheckedBehavior, make_part
from diffplan.behaviors.mixture import MixtureBehavior
from diffplan.behaviors.policy_content import find_policy_file, hash_policy
from diffplan.behaviors.policy_file import make_policy
from diffplan.behaviors.policy_options import PREFIX as POLICY_PREFIX
from diffplan.behaviors.policy_options import split_policy
from diffplan.behaviors.random import RandomBehavior
from diffplan.errors import ConfigError, unknown_name
from diffplan.importing import is_import_path, load_object
from diffplan.tasks.contracts import Behavior, BehaviorContext, BehaviorPart
from diffplan.tasks.registry import task_of
from diffplan.tasks.task import Task


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
            names is no behavior; switching between less than two components.
    """
    task = task_of(context.env)
    weights = parse_mixture(text, task)
    if context.switch_steps is not None and len(weights) == 1:
        raise ConfigError(
            f"collection.switch_steps: expected a mixture in collection.behavior to switch between, got {text!r}; "
            "leave switch_steps out"
        )
    parts = {name: _find_part(name, task) for name in weights}
    components = [
        CheckedBehavior(name, part.make(context), part.columns, len(context.action_low)) for name, part in parts.items()
    ]
    if len(components) == 1:
        return components[0]
    return MixtureBehavior(components, list(weights.values()), list_columns(text, task), context.switch_steps)


def list_columns(text: str, task: Task) -> dict[str, int]:
    """Further columns, and their sizes, that a behavior or mixture adds to a dataset.

    Raises:
        ConfigError: as `make_behavior`; two components give different sizes to one column.
    """
    found: dict[str, int] = {}
    for name in parse_mixture(text, task):
        for column, size in _find_part(name, task).columns.items():
            if found.setdefault(column, size) != size:
                raise ConfigError(
                    f"{FIELD}: {name}: expected column {column!r} of size {found[column]}, as another component has "
                    f"it, got size {size}"
                )
    return found


def hash_policy_files(text: str, task: Task) -> dict[str, str]:
    """SHA-256 of each policy file or directory that a behavior or mixture names, by its path as it was given.

    Files of `norm=` are among them; other options are part of the behavior's name, which is recorded anyway.

    Raises:
        ConfigError: as `parse_mixture` and `split_policy`, or a file cannot be read.
    """
    paths: list[str] = []
    for name in parse_mixture(text, task):
        if name.startswith(POLICY_PREFIX):
            path, options = split_policy(name)
            paths += [path] if options.norm is None else [path, options.norm]
    return {path: hash_policy(find_policy_file(path, task)) for path in paths}


def _find_part(name: str, task: Task) -> BehaviorPart:
    if (part := list_behaviors(task).get(name)) is not None:
        return part
    if name.startswith(POLICY_PREFIX):
        return BehaviorPart(lambda context: make_policy(name, context))
    return make_part(name, load_object(name, FIELD))

"""Behaviors by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffplan.behaviors.behavior import Behavior
from diffplan.behaviors.mixture import MixtureBehavior
from diffplan.behaviors.random import RandomBehavior
from diffplan.behaviors.waypoint import WaypointBehavior
from diffplan.errors import ConfigError
from diffplan.suggestion import unknown_name


@dataclass(frozen=True)
class BehaviorContext:
    """What a behavior may need to know.

    Attributes:
        action_low: lower bounds of the actions.
        action_high: upper bounds of the actions.
        maze: the maze, or None in an environment without one.
        action_noise: standard deviation of the noise of noisy behaviors.
        max_goal_steps: steps after which a goal is given up.
    """

    action_low: np.ndarray
    action_high: np.ndarray
    maze: Any | None
    action_noise: float
    max_goal_steps: int

    def require_maze(self, behavior: str) -> Any:
        """The maze; raises `ConfigError` where there is none."""
        if self.maze is None:
            raise ConfigError(f"collection.behavior: {behavior!r} needs an environment with a maze; take 'random'")
        return self.maze


def _random(context: BehaviorContext) -> Behavior:
    if not (np.isfinite(context.action_low).all() and np.isfinite(context.action_high).all()):
        raise ConfigError("collection.behavior: 'random' needs bounded actions, and these are not")
    return RandomBehavior(context.action_low, context.action_high)


def _waypoint(context: BehaviorContext) -> Behavior:
    return WaypointBehavior(context.require_maze("waypoint"), max_goal_steps=context.max_goal_steps)


def _noisy_waypoint(context: BehaviorContext) -> Behavior:
    return WaypointBehavior(
        context.require_maze("noisy_waypoint"),
        action_noise=context.action_noise,
        max_goal_steps=context.max_goal_steps,
    )


BEHAVIORS: dict[str, Callable[[BehaviorContext], Behavior]] = {
    "random": _random,
    "waypoint": _waypoint,
    "noisy_waypoint": _noisy_waypoint,
}
"""How to make each behavior. A new one needs an entry here, and in `BEHAVIOR_COLUMNS` if it has columns."""

BEHAVIOR_COLUMNS: dict[str, dict[str, int]] = {"waypoint": {"goal": 2}, "noisy_waypoint": {"goal": 2}}
"""Further columns of each behavior and their sizes."""


def parse_mixture(text: str) -> dict[str, float]:
    """Read `waypoint` or `waypoint:0.8,random:0.2` as probabilities that add up to 1.

    Raises:
        ConfigError: an unknown name, a weight that is no positive number, or a name twice.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition(":")
        if name not in BEHAVIORS:
            raise ConfigError(unknown_name("collection.behavior", name, BEHAVIORS))
        try:
            value = float(weight) if weight else 1.0
        except ValueError:
            value = np.nan
        if not (np.isfinite(value) and value > 0) or name in weights:
            raise ConfigError(
                f"collection.behavior: expected different names with positive weights, such as "
                f"'waypoint:0.8,random:0.2', got {text!r}"
            )
        weights[name] = value
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def make_behavior(text: str, context: BehaviorContext) -> Behavior:
    """Make a behavior or a mixture from its name; raises `ConfigError` as `parse_mixture` does."""
    weights = parse_mixture(text)
    components = [BEHAVIORS[name](context) for name in weights]
    if len(components) == 1:
        return components[0]
    return MixtureBehavior(components, list(weights.values()), list_columns(text))


def list_columns(text: str) -> dict[str, int]:
    """Further columns, and their sizes, that a behavior or mixture adds to a dataset."""
    columns: dict[str, int] = {}
    for name in parse_mixture(text):
        columns.update(BEHAVIOR_COLUMNS.get(name, {}))
    return columns

"""Behaviors that collect in mazes, and untrained policies that planners are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffplan.errors import ConfigError
from diffplan.tasks.contracts import Behavior, BehaviorContext, BehaviorPart, Policy, RolloutContext
from diffplan.tasks.maze2d.environment import require_ways
from diffplan.tasks.maze2d.waypoint import WaypointBehavior


def _waypoint(context: BehaviorContext) -> Behavior:
    maze = require_ways(context.env, "collection.behavior: waypoint")
    return WaypointBehavior(maze, max_goal_steps=context.max_goal_steps)


def _noisy_waypoint(context: BehaviorContext) -> Behavior:
    maze = require_ways(context.env, "collection.behavior: noisy_waypoint")
    return WaypointBehavior(maze, action_noise=context.action_noise, max_goal_steps=context.max_goal_steps)


BEHAVIORS = {
    "waypoint": BehaviorPart(_waypoint, {"goal": 2}),
    "noisy_waypoint": BehaviorPart(_noisy_waypoint, {"goal": 2}),
}
"""D4RL's waypoint controller, which draws its own goals; and the same with noise."""


class _Waypoint:
    """The waypoint controller as a policy for evaluation."""

    def __init__(self, context: RolloutContext, name: str, *, knows_goal: bool) -> None:
        self._maze, self._seeds, self._knows_goal = require_ways(context.env, name), context.seeds, knows_goal

    def reset(self, observations: np.ndarray, goals: np.ndarray | None) -> None:
        if self._knows_goal and goals is None:
            raise ConfigError("baseline:waypoint: expected episodes with a goal, got none")
        self._behavior = WaypointBehavior(self._maze, goals=goals if self._knows_goal else None)
        self._behavior.reset(observations, _make_generators(self._seeds))

    def act(self, observations: np.ndarray) -> np.ndarray:
        return self._behavior.act(observations)


def _make_waypoint(context: RolloutContext) -> Policy:
    return _Waypoint(context, "baseline:waypoint", knows_goal=True)


def _make_behavior(context: RolloutContext) -> Policy:
    return _Waypoint(context, "baseline:behavior", knows_goal=False)


POLICIES = {"behavior": _make_behavior, "waypoint": _make_waypoint}
"""Policies that need no training and no model.

* `behavior`: the policy of the data: the waypoint controller, with goals that it draws itself.
* `waypoint`: the same controller with the goal of the evaluation. It uses the map of the maze, which planners do not
  have.
"""


def _make_generators(seeds: Sequence[int]) -> list[np.random.Generator]:
    return [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]

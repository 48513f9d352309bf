"""Policies that are evaluated: the contract, and how a block of episodes gets one.

Whatever is scored, a planner or what it is compared with, runs in the same rollout under the same protocol. A new kind
of policy needs a class with `reset` and `act`, and a function that makes it from a `RolloutContext`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from diffplan.behaviors.random import RandomBehavior
from diffplan.behaviors.waypoint import WaypointBehavior
from diffplan.config import EnvConfig
from diffplan.environments import get_maze
from diffplan.errors import ConfigError
from diffplan.planning.cloned_policy import ClonedPolicy
from diffplan.planning.control.policy import PlannerLike, PlanningPolicy


class Policy(Protocol):
    """Acts in a batch of environments, each with a goal.

    A policy that plans says so by `num_plans`, int[num_envs], and `plan_seconds`, the seconds spent on them over all
    environments; one whose plans are trajectories keeps them in `plans`, a `Plan` for each environment.
    """

    def reset(self, observations: np.ndarray, goals: np.ndarray) -> None:
        """Start episodes from observations float[num_envs, observation_dim], with goals float[num_envs, goal_dim]."""
        ...

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions float32[num_envs, action_dim] for the present observations."""
        ...


@dataclass(frozen=True)
class RolloutContext:
    """What a policy may need to know of the episodes it is to act in.

    Attributes:
        env: the environment under its protocol.
        seeds: a seed for each environment, independent of the one that the environment was reset with.
        generator: source of noise that is drawn for all environments at once.
        action_low: lower bounds of the actions, -inf where there are none.
        action_high: upper bounds of the actions, inf where there are none.
    """

    env: EnvConfig
    seeds: Sequence[int]
    generator: torch.Generator
    action_low: np.ndarray
    action_high: np.ndarray


MakePolicy = Callable[[RolloutContext], Policy]


def follow_planner(planner: PlannerLike) -> MakePolicy:
    """The policy that follows a planner's plans by the rules of its settings."""
    return lambda context: PlanningPolicy(planner, context.generator, context.action_low, context.action_high)


def _make_random(context: RolloutContext) -> Policy:
    if not (np.isfinite(context.action_low).all() and np.isfinite(context.action_high).all()):
        raise ConfigError(f"random: expected bounded actions, got those of {context.env.env_id}, which are not")
    return _Random(context)


def _make_waypoint(context: RolloutContext) -> Policy:
    return _Waypoint(context, "waypoint", knows_goal=True)


def _make_behavior(context: RolloutContext) -> Policy:
    return _Waypoint(context, "behavior", knows_goal=False)


SCRIPTED: dict[str, MakePolicy] = {"random": _make_random, "behavior": _make_behavior, "waypoint": _make_waypoint}
"""Policies that need no training and no model.

* `random`: uniform actions.
* `behavior`: what the data of the mazes come from, D4RL's waypoint controller on the way to goals that it draws itself.
* `waypoint`: the same controller told the goal of the evaluation. It finds its way on the map of the maze, which no
  planner is shown.
"""


class _Random:
    def __init__(self, context: RolloutContext) -> None:
        self._behavior = RandomBehavior(context.action_low, context.action_high)
        self._seeds = context.seeds

    def reset(self, observations: np.ndarray, goals: np.ndarray) -> None:
        self._behavior.reset(observations, _make_generators(self._seeds))

    def act(self, observations: np.ndarray) -> np.ndarray:
        return self._behavior.act(observations)


class _Waypoint:
    def __init__(self, context: RolloutContext, name: str, *, knows_goal: bool) -> None:
        self._maze, self._seeds, self._knows_goal = get_maze(context.env), context.seeds, knows_goal
        if self._maze is None:
            raise ConfigError(f"{name}: expected an environment with a maze, got {context.env.env_id}")

    def reset(self, observations: np.ndarray, goals: np.ndarray) -> None:
        self._behavior = WaypointBehavior(self._maze, goals=goals if self._knows_goal else None)
        self._behavior.reset(observations, _make_generators(self._seeds))

    def act(self, observations: np.ndarray) -> np.ndarray:
        return self._behavior.act(observations)


class GoalCloned:
    """A cloned policy in an evaluation, told the goals if it was trained to be.

    Args:
        policy: the policy, in environment units.
        action_low: lower bounds of the actions.
        action_high: upper bounds of the actions.
    """

    def __init__(self, policy: ClonedPolicy, action_low: np.ndarray, action_high: np.ndarray) -> None:
        self._policy = policy
        self._bounds = action_low, action_high

    def reset(self, observations: np.ndarray, goals: np.ndarray) -> None:
        """Start episodes."""
        self._goals = np.array(goals) if self._policy.goal_columns else None

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions, float32[num_envs, action_dim]."""
        return np.clip(self._policy.act(observations, self._goals), *self._bounds).astype(np.float32)


def follow_clone(policy: ClonedPolicy) -> MakePolicy:
    """The policy that was cloned from data."""
    return lambda context: GoalCloned(policy, context.action_low, context.action_high)


def _make_generators(seeds: Sequence[int]) -> list[np.random.Generator]:
    return [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]

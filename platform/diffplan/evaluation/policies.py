"""Policies for evaluation: of a planner, cloned from data, or without training.

Planners and baselines run in the same rollout under the same protocol. A new kind of policy needs a class with `reset`
and `act`, and a function that makes it from a `RolloutContext`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffplan.behaviors.random import RandomBehavior
from diffplan.errors import ConfigError
from diffplan.planning.cloned_policy import ClonedPolicy
from diffplan.planning.control.episodes import PlannerLike
from diffplan.planning.control.policy import PlanningPolicy
from diffplan.tasks.contracts import MakePolicy, Policy, RolloutContext
from diffplan.tasks.registry import task_of
from diffplan.tasks.task import Task


def follow_planner(planner: PlannerLike) -> MakePolicy:
    """The policy that follows a planner's plans by the controller and the rule of its settings."""
    return lambda context: PlanningPolicy(
        planner,
        context.generator,
        context.action_low,
        context.action_high,
        controllers=task_of(context.env).controllers,
    )


def _make_random(context: RolloutContext) -> Policy:
    if not (np.isfinite(context.action_low).all() and np.isfinite(context.action_high).all()):
        raise ConfigError(f"random: expected bounded actions, got those of {context.env.env_id}, which are not")
    return _Random(context)


SCRIPTED: dict[str, MakePolicy] = {"random": _make_random}
"""Untrained policies of every task; tasks add their own."""


def list_scripted(task: Task) -> dict[str, MakePolicy]:
    """The untrained policies of a task by name."""
    return {**SCRIPTED, **task.policies}


class _Random:
    def __init__(self, context: RolloutContext) -> None:
        self._behavior = RandomBehavior(context.action_low, context.action_high)
        self._seeds = context.seeds

    def reset(self, observations: np.ndarray, goals: np.ndarray | None) -> None:
        self._behavior.reset(observations, _make_generators(self._seeds))

    def act(self, observations: np.ndarray) -> np.ndarray:
        return self._behavior.act(observations)


class GoalCloned:
    """A cloned policy in an evaluation; it gets the goals if it is goal-conditioned.

    Args:
        policy: the policy, in environment units.
        action_low: lower bounds of the actions.
        action_high: upper bounds of the actions.
    """

    def __init__(self, policy: ClonedPolicy, action_low: np.ndarray, action_high: np.ndarray) -> None:
        self._policy = policy
        self._bounds = action_low, action_high

    def reset(self, observations: np.ndarray, goals: np.ndarray | None) -> None:
        """Start episodes; raises `ConfigError` if the policy is goal-conditioned and there is no goal."""
        if goals is None and self._policy.goal_columns:
            raise ConfigError("cloned policy: expected episodes with a goal, which it was trained to be told, got none")
        self._goals = np.array(goals) if self._policy.goal_columns else None

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions, float32[num_envs, action_dim]."""
        return np.clip(self._policy.act(observations, self._goals), *self._bounds).astype(np.float32)


def follow_clone(policy: ClonedPolicy) -> MakePolicy:
    """The policy that was cloned from data."""
    return lambda context: GoalCloned(policy, context.action_low, context.action_high)


def _make_generators(seeds: Sequence[int]) -> list[np.random.Generator]:
    return [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]

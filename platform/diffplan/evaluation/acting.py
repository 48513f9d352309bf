"""Policies for use outside of evaluations: in the user's own loop, or on a robot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from diffplan.config import EnvConfig, PlanningConfig
from diffplan.environments import get_box_bounds, make_vector_env
from diffplan.errors import ConfigError, PlanningError
from diffplan.evaluation.rollout import ask_for_goal, start_policy
from diffplan.evaluation.sources import find_policy
from diffplan.seeding import Stream, make_seed
from diffplan.tasks.contracts import MakePolicy, RolloutContext
from diffplan.tasks.registry import task_of
from diffplan.types import Plan


class LoadedPolicy:
    """Acts in one environment or a batch of them.

    Args:
        name: the path or name that it was loaded from.
        make_policy: makes the policy of a batch.
        env: the environment.
        action_low: lower bounds of the actions, float[action_dim], -inf where there are none.
        action_high: upper bounds of the actions.
        generator: source of the noise in plans.
    """

    def __init__(
        self,
        name: str,
        make_policy: MakePolicy,
        env: EnvConfig,
        action_low: np.ndarray,
        action_high: np.ndarray,
        generator: torch.Generator,
    ) -> None:
        self._name, self._make_policy, self._env = name, make_policy, env
        self._bounds, self._generator = (action_low, action_high), generator
        self._policy = None
        self._is_single = True

    def __repr__(self) -> str:
        return f"<policy of {self._name} for {self._env.env_id}>"

    @property
    def plans(self) -> list[Plan]:
        """The plan that is followed in each environment; empty for a policy that does not plan."""
        return list(getattr(self._policy, "plans", ()))

    def reset(self, observation: np.ndarray, goal: np.ndarray | None = None) -> None:
        """Start an episode, or one in each environment of a batch.

        Args:
            observation: float[observation_dim], or float[num_envs, observation_dim].
            goal: the `goal` of the environment's infos, float[goal_dim] for all environments or float[num_envs,
                goal_dim]; None for no goal. The task says what it asks of plans, as in an evaluation.

        Raises:
            PlanningError: arrays of the wrong shape or with values that are not finite, or a goal that the model does
                not take.
        """
        observations = self._take(observation)
        self._is_single = np.ndim(observation) == 1
        goals = None
        if goal is not None:
            goals = np.array(goal, dtype=np.float64)
            goals = np.tile(goals, (len(observations), 1)) if goals.ndim == 1 else goals
        numbers = torch.randint(2**62, (len(observations),), generator=self._generator)
        context = RolloutContext(self._env, [int(n) for n in numbers], self._generator, *self._bounds)
        self._policy = self._make_policy(context)
        infos = {} if goals is None else {"goal": goals}
        ask = (task_of(self._env).ask or ask_for_goal)(self._env, observations, infos)
        start_policy(self._policy, observations, ask.goals, ask)

    def act(self, observation: np.ndarray) -> np.ndarray:
        """The action for the present observation.

        Args:
            observation: of the same shape as for `reset`.

        Returns:
            float32[action_dim], or float32[num_envs, action_dim] for a batch.

        Raises:
            PlanningError: `reset` was not called before, or observations of another shape.
        """
        if self._policy is None:
            raise PlanningError("act: expected reset(observation, goal) before, got none in this episode")
        observations = self._take(observation)
        if (np.ndim(observation) == 1) != self._is_single:
            raise PlanningError("act: expected one observation or a batch, as reset was given, got the other")
        actions = self._policy.act(observations)
        return actions[0] if self._is_single else actions

    @staticmethod
    def _take(observation: np.ndarray) -> np.ndarray:
        observations = np.asarray(observation, dtype=np.float64)
        if observations.ndim not in (1, 2):
            raise PlanningError(
                f"observation: expected an array of one dimension, or of two for a batch, got {observations.ndim}"
            )
        return np.atleast_2d(observations)


def load_policy(
    path: str | Path,
    settings: PlanningConfig | None = None,
    *,
    env: EnvConfig | None = None,
    generator: torch.Generator | None = None,
    action_low: np.ndarray | None = None,
    action_high: np.ndarray | None = None,
) -> LoadedPolicy:
    """A policy from a checkpoint, to act with.

    Args:
        path: directory or URL of a checkpoint, `pretrained:NAME`, or a baseline such as `baseline:random`.
        settings: how to plan; None for the settings of the checkpoint.
        env: the environment; None for that of the checkpoint.
        generator: source of the noise in plans; None for one with seed 0.
        action_low: lower bounds of the actions; None for those of the environment, which is then made.
        action_high: upper bounds of the actions; None likewise.

    Raises:
        CheckpointError: no checkpoint there, or one that cannot act.
        ConfigError: the environment is not installed here and no bounds are given.
        PlanningError: settings that the model does not support.
    """
    source = find_policy(path, env=env, settings=settings)
    if (action_low is None) != (action_high is None):
        raise ConfigError("load_policy: expected action_low and action_high, or neither, got one of them")
    if action_low is None or action_high is None:
        made = make_vector_env(source.env, 1)
        bounds = get_box_bounds(made)
        made.close()
        action_low, action_high = (
            np.array([default if value is None else value for value in values])
            for values, default in zip(bounds, (-np.inf, np.inf), strict=True)
        )
    if generator is None:
        generator = torch.Generator().manual_seed(make_seed(0, Stream.EVALUATION))
    return LoadedPolicy(
        source.name, source.load(), source.env, np.asarray(action_low), np.asarray(action_high), generator
    )

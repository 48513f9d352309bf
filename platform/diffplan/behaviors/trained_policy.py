"""A policy that `diffplan baseline train` wrote, as a behavior for collection."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffplan.behaviors.imported import FIELD
from diffplan.behaviors.offline_policy import OfflinePolicy, load_offline_policy
from diffplan.behaviors.policy_content import check_policy_directory
from diffplan.behaviors.policy_options import PolicyOptions
from diffplan.errors import CheckpointError, ConfigError
from diffplan.tasks.contracts import BehaviorContext


class TrainedPolicy:
    """Acts without noise, as in an evaluation, towards the goal that the policy was trained for if it has one.

    Args:
        policy: the policy.
        context: of the collection.
        where: what messages begin with.

    Raises:
        ConfigError: the policy is told its goal, which collection does not know, or is one for other actions.
    """

    def __init__(self, policy: OfflinePolicy, context: BehaviorContext, where: str = FIELD) -> None:
        goal = policy.description.goal
        if goal is None and policy.description.goal_dim:
            raise ConfigError(
                f"{where}: expected a policy of one goal (`diffplan baseline train --goal`), got one that is told goals"
            )
        bounds = [np.asarray(bound) for bound in (policy.description.action_low, policy.description.action_high)]
        for found, expected in zip(bounds, (context.action_low, context.action_high), strict=True):
            if found.shape != expected.shape or not np.allclose(found, expected):
                raise ConfigError(
                    f"{where}: expected the action bounds of {context.env.env_id}, {context.action_low.tolist()} to "
                    f"{context.action_high.tolist()}, got {bounds[0].tolist()} to {bounds[1].tolist()}"
                )
        self._policy, self._goal = policy, None if goal is None else np.array(goal)

    @classmethod
    def load(cls, path: str, context: BehaviorContext, options: PolicyOptions | None = None) -> TrainedPolicy:
        """A behavior from a directory.

        Args:
            path: of the directory.
            context: of the collection.
            options: must have neither `activation` nor `norm`, which such a policy has itself.

        Raises:
            ConfigError: no policy there, a damaged one, or one that does not fit.
        """
        where = f"{FIELD}: {path}"
        check_policy_directory(path)
        for name in ("activation", "norm"):
            if options is not None and getattr(options, name) is not None:
                raise ConfigError(f"{where}: expected no option {name} for a policy that has its own")
        try:
            return cls(load_offline_policy(path), context, where)
        except CheckpointError as error:
            raise ConfigError(f"{FIELD}: {error}") from None

    def reset(self, observations: np.ndarray, generators: Sequence[np.random.Generator]) -> None:
        """Start episodes; raises `ConfigError` for observations of another size."""
        goals = None if self._goal is None else np.tile(self._goal, (len(observations), 1))
        self._policy.reset(observations, goals)

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions within their bounds, float32[num_envs, action_dim]."""
        return self._policy.act(observations)

    def columns(self) -> dict[str, np.ndarray]:
        """No further columns."""
        return {}

"""A policy whose actions are scaled and disturbed, or that does not see all of an observation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffplan.behaviors.draws import BlockDraws
from diffplan.behaviors.policy_options import PolicyOptions
from diffplan.errors import ConfigError
from diffplan.tasks.contracts import Behavior, BehaviorContext


class VariedPolicy:
    """Passes the last observation columns to a policy, and clip(factor * action + noise) on to the environment.

    Args:
        policy: what acts.
        options: `noise`, `scale`, `scale_steps` and `skip` are used.
        context: of the collection.
        where: what messages begin with.

    Raises:
        ConfigError: noise in halves of a range that is infinite.
    """

    def __init__(self, policy: Behavior, options: PolicyOptions, context: BehaviorContext, where: str) -> None:
        self._policy, self._options, self._where = policy, options, where
        self._low, self._high = context.action_low, context.action_high
        half_range = (self._high - self._low) / 2
        if options.noise and not np.isfinite(half_range).all():
            raise ConfigError(f"{where}: expected an environment with bounded actions for noise, got unbounded ones")
        self._noise_std = options.noise * half_range if options.noise else None

    def reset(self, observations: np.ndarray, generators: Sequence[np.random.Generator]) -> None:
        """Start episodes, and draw a factor for each; raises `ConfigError` if the policy would see no column."""
        if self._options.skip >= observations.shape[1]:
            raise ConfigError(
                f"{self._where}: expected skip below the {observations.shape[1]} observation columns, got "
                f"{self._options.skip}"
            )
        self._policy.reset(observations[:, self._options.skip :], generators)
        low, high = self._options.scale or (1.0, 1.0)
        drawn = [generator.uniform(low, high) if low < high else low for generator in generators]
        self._factors = np.array(drawn)
        self._noise = BlockDraws(generators, lambda generator, shape: generator.standard_normal(shape), len(self._low))
        self._changes = BlockDraws(generators, lambda generator, shape: generator.random(shape), 2)
        self._num_steps = 0

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions within their bounds, float32[num_envs, action_dim]."""
        actions = self._policy.act(observations[:, self._options.skip :])
        if self._options.scale_steps is not None and self._num_steps:
            draws = self._changes.next()
            low, high = self._options.scale or (1.0, 1.0)
            changed = draws[:, 0] * self._options.scale_steps < 1
            self._factors = np.where(changed, low + (high - low) * draws[:, 1], self._factors)
        self._num_steps += 1
        if self._options.scale is not None:
            actions = self._factors[:, None] * actions
        if self._noise_std is not None:
            actions = actions + self._noise_std * self._noise.next()
        return np.clip(actions, self._low, self._high).astype(np.float32)

    def columns(self) -> dict[str, np.ndarray]:
        """Those of the policy."""
        return self._policy.columns()

"""What happened in a batch of episodes, step by step, and what that adds up to."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

_STEPS_AT_ONCE = 64
"""Steps of all episodes that a function of observations is called with: more would take memory and save nothing."""


class Record:
    """The steps of episodes that run side by side, each at its own time.

    Args:
        observations: what they begin with, float[num_envs, observation_dim].

    Attributes:
        lengths: steps of each episode so far, int[num_envs].
        observations: float64[steps + 1, num_envs, observation_dim]; what stands behind the end of an episode means
            nothing.
    """

    def __init__(self, observations: np.ndarray) -> None:
        self.lengths = np.zeros(len(observations), dtype=int)
        self.observations = np.array(observations, dtype=np.float64)[None]
        self._rewards, self._success = np.zeros((0, len(observations))), np.zeros((0, len(observations)), dtype=bool)
        self._longest = 0

    def add(self, envs: np.ndarray, observations: np.ndarray, rewards: np.ndarray, success: np.ndarray) -> None:
        """Add a step of some of the episodes.

        Args:
            envs: which, int[num].
            observations: what followed, float[num, observation_dim].
            rewards: float[num].
            success: whether the goal is reached now, bool[num].
        """
        steps = self.lengths[envs]
        self._longest = max(self._longest, int(steps.max(initial=-1)) + 1)
        if self._longest > len(self._rewards):
            self._grow()
        self._rewards[steps, envs], self._success[steps, envs] = rewards, success
        self.observations[steps + 1, envs] = observations
        self.lengths[envs] = steps + 1

    def _grow(self) -> None:
        """Make room for twice as many steps."""
        num = max(len(self._rewards), 64)

        def longer(array: np.ndarray) -> np.ndarray:
            return np.concatenate([array, np.zeros((num, *array.shape[1:]), dtype=array.dtype)])

        self.observations = longer(self.observations)
        self._rewards, self._success = longer(self._rewards), longer(self._success)

    @cached_property
    def returns(self) -> np.ndarray:
        """Undiscounted returns, float64[num_envs]."""
        return _add_up(self._rewards)

    @cached_property
    def times_to_goal(self) -> np.ndarray:
        """Steps until the goal was first reached, int[num_envs]; -1 where it never was."""
        return np.where(self._success.any(axis=0), self._success.argmax(axis=0) + 1, -1)

    def path_lengths(self, columns: list[int]) -> np.ndarray:
        """Way travelled until the goal was first reached, or to the end, float64[num_envs].

        Args:
            columns: observation columns that hold the position.
        """
        ends = np.where(self.times_to_goal >= 0, self.times_to_goal, self.lengths)
        ways = np.diff(self.observations[: self._longest + 1, :, columns], axis=0)
        on_the_way = np.arange(self._longest)[:, None] < ends
        return _add_up(np.where(on_the_way, np.sqrt((ways**2).sum(axis=2)), 0.0))

    def count(self, holds: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Steps that led to an observation of which something holds, int[num_envs].

        Args:
            holds: from observations float[..., observation_dim] to bool[...].
        """
        total = np.zeros(len(self.lengths), dtype=int)
        for first in range(0, self._longest, _STEPS_AT_ONCE):
            steps = np.arange(first, min(first + _STEPS_AT_ONCE, self._longest))
            happened = steps[:, None] < self.lengths
            total += (happened & holds(self.observations[steps + 1])).sum(axis=0)
        return total


def _add_up(steps: np.ndarray) -> np.ndarray:
    """Sums over steps float64[steps, num_envs], to the last bit the same whatever is beside or behind an episode."""
    return steps.cumsum(axis=0)[-1]

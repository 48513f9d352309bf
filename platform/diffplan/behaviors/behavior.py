"""The contract of a behavior, and the random numbers of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np


class Behavior(Protocol):
    """Acts in a batch of environments.

    What it does in one environment must not depend on the others in the batch: all its random numbers for environment i
    come from generator i, so an episode is the same whatever batch it is collected in.
    """

    def reset(self, observations: np.ndarray, generators: Sequence[np.random.Generator]) -> None:
        """Start episodes in all environments, from observations float[num_envs, observation_dim]."""
        ...

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions float32[num_envs, action_dim] for the current observations."""
        ...

    def columns(self) -> dict[str, np.ndarray]:
        """Further columns of the step just acted, each float[num_envs, size], such as the goal that is pursued."""
        ...


class BlockDraws:
    """Random numbers for a batch, drawn from each environment's own generator in blocks of many steps at once."""

    def __init__(
        self,
        generators: Sequence[np.random.Generator],
        draw: Callable[[np.random.Generator, tuple[int, int]], np.ndarray],
        size: int,
        block_steps: int = 512,
    ) -> None:
        self._generators = generators
        self._draw = draw
        self._shape = (block_steps, size)
        self._block = np.empty((block_steps, len(generators), size))
        self._next = block_steps

    def next(self) -> np.ndarray:
        """Numbers of the next step, float64[num_envs, size]."""
        if self._next == len(self._block):
            for i, generator in enumerate(self._generators):
                self._block[:, i] = self._draw(generator, self._shape)
            self._next = 0
        self._next += 1
        return self._block[self._next - 1]

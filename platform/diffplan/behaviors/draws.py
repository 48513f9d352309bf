"""The random numbers of a batch of environments, each from its own generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


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

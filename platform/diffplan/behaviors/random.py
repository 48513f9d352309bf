"""Uniformly random actions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffplan.behaviors.draws import BlockDraws


class RandomBehavior:
    """Draws each action uniformly between the bounds.

    Args:
        low: lower bound of each action entry.
        high: upper bound of each action entry.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray) -> None:
        self._low, self._high = np.asarray(low), np.asarray(high)

    def reset(self, observations: np.ndarray, generators: Sequence[np.random.Generator]) -> None:
        """Start episodes."""
        self._draws = BlockDraws(
            generators, lambda generator, shape: generator.uniform(self._low, self._high, shape), len(self._low)
        )

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Draw actions."""
        return self._draws.next().astype(np.float32)

    def columns(self) -> dict[str, np.ndarray]:
        """No further columns."""
        return {}

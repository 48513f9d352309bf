"""The columns of an observation: the arm, and for each block its position, its orientation and whether it is held."""

from __future__ import annotations

import numpy as np

NUM_JOINTS, NUM_BLOCKS, BLOCK_COLUMNS = 7, 4, 8


def read_blocks(observations: np.ndarray) -> np.ndarray:
    """Positions of the blocks in m, float[..., blocks, 3], of observations float[..., 7 + 8 * blocks]."""
    return _apart(observations)[..., :3]


def read_held(observations: np.ndarray) -> np.ndarray:
    """Which blocks are held, bool[..., blocks]."""
    return _apart(observations)[..., 7] > 0.5


def _apart(observations: np.ndarray) -> np.ndarray:
    blocks = observations[..., NUM_JOINTS:]
    return blocks.reshape(*blocks.shape[:-1], -1, BLOCK_COLUMNS)


def read_pairs(goal: np.ndarray | None) -> np.ndarray:
    """Pairs (top, bottom), int[pairs, 2], of a goal float[2 * pairs] that has -1 where there are none."""
    pairs = np.zeros((0, 2)) if goal is None else np.asarray(goal).reshape(-1, 2)
    return pairs[pairs[:, 0] >= 0].astype(int)

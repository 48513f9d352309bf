"""Returns-to-go: the discounted sum of the rewards from each step to the end of its episode."""

from __future__ import annotations

import numpy as np
from scipy.signal import lfilter

# Episodes longer than this are computed one by one; shorter ones together.
_LONG = 512


def compute_returns_to_go(
    rewards: np.ndarray,
    lengths: np.ndarray,
    discount: float,
    terminated: np.ndarray | None = None,
    termination_penalty: float = 0.0,
) -> np.ndarray:
    """Returns-to-go of consecutive episodes.

    The value of row t is the sum of discount^(k - t) * reward k over the rows k >= t of its episode, in float64. A
    non-finite reward affects only the rows before it in its own episode.

    Args:
        rewards: reward of every step, float[num_steps].
        lengths: steps of each episode, positive, int[num_episodes].
        discount: discount in (0, 1].
        terminated: whether the environment ended an episode, bool[num_episodes]; None for none.
        termination_penalty: subtracted from the last reward of terminated episodes, >= 0. Janner et al. 2022 train
            values with 100.

    Returns:
        float32[num_steps].

    Raises:
        ValueError: arguments that are inconsistent or out of range.
    """
    rewards, lengths = np.array(rewards, dtype=np.float64), np.asarray(lengths)
    _check(rewards, lengths, discount, termination_penalty)
    lengths = lengths.astype(np.int64)
    ends = np.cumsum(lengths)
    if terminated is not None:
        terminated = np.asarray(terminated, dtype=bool)
        if terminated.shape != lengths.shape:
            raise ValueError(f"terminated: expected shape {lengths.shape}, as lengths, got {terminated.shape}")
        rewards[ends[terminated] - 1] -= termination_penalty
    returns = rewards  # summed in place
    long = lengths > _LONG
    for start, end in zip((ends - lengths)[long], ends[long], strict=True):
        returns[start:end] = lfilter([1.0], [1.0, -discount], rewards[start:end][::-1])[::-1]
    _sweep(returns, ends[~long], lengths[~long], discount)
    with np.errstate(over="ignore"):
        return returns.astype(np.float32)


def _sweep(returns: np.ndarray, ends: np.ndarray, lengths: np.ndarray, discount: float) -> None:
    """Go back from the ends of all episodes at once, step by step; replaces rewards by returns in place."""
    order = np.argsort(-lengths, kind="stable")
    rows, descending = ends[order] - 1, -lengths[order]
    for step in range(1, int(lengths.max(initial=0))):
        # Sorted by length, descending, so the episodes with this many steps are the first ones.
        rows = rows[: np.searchsorted(descending, -step)] - 1
        returns[rows] += discount * returns[rows + 1]


def _check(rewards: np.ndarray, lengths: np.ndarray, discount: float, termination_penalty: float) -> None:
    if rewards.ndim != 1:
        raise ValueError(f"rewards: expected one dimension, got shape {rewards.shape}")
    if lengths.ndim != 1 or (lengths.size and not np.issubdtype(lengths.dtype, np.integer)):
        raise ValueError(f"lengths: expected integers in one dimension, got {lengths.dtype} of shape {lengths.shape}")
    if (lengths < 1).any():
        raise ValueError(f"lengths: expected positive numbers, got {lengths.min()}; leave empty episodes out")
    if lengths.sum() != len(rewards):
        raise ValueError(f"lengths: expected a sum of {len(rewards)}, the number of rewards, got {lengths.sum()}")
    if not 0 < discount <= 1:
        raise ValueError(f"discount: expected a number in (0, 1], got {discount}")
    if not 0 <= termination_penalty < np.inf:
        raise ValueError(f"termination_penalty: expected a finite number >= 0, got {termination_penalty}")

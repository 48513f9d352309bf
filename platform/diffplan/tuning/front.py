"""Pareto fronts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def find_front(values: Sequence[Sequence[float]], less_is_better: Sequence[bool]) -> list[int]:
    """Indices of the points that no other point beats.

    A point beats another if it is at least as good in everything and better in something. Of points that are equal in
    everything the first stands for all.

    Args:
        values: float[points, objectives].
        less_is_better: of each objective.

    Returns:
        Indices, sorted from the best to the worst value of the last objective.
    """
    if not len(values):
        return []
    costs = np.asarray(values, dtype=np.float64) * np.where(less_is_better, 1.0, -1.0)
    no_worse = (costs[:, None] <= costs[None]).all(axis=-1)  # [i, j]: i is at least as good as j in everything
    better = (costs[:, None] < costs[None]).any(axis=-1)
    beaten = (no_worse & better).any(axis=0)
    equal_before = np.triu((costs[:, None] == costs[None]).all(axis=-1), k=1).any(axis=0)
    kept = np.flatnonzero(~beaten & ~equal_before)
    return [int(i) for i in kept[np.argsort(costs[kept, -1], kind="stable")]]

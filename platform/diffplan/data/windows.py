"""Windows: pieces of episodes, gathered for whole batches straight from the mapped shards.

A window of `horizon` steps and `stride` s that starts at row r takes the rows r, r + s, …, r + (horizon - 1) s of one
episode. Every window of every episode is equally likely:

```
episode   0 0 0 0 0 0 0 1 1 1 1 1 1        horizon 3, stride 2: a window spans 5 rows
row       0 1 2 3 4 5 6 0 1 2 3 4 5
starts    * * *         * *                episode 0 has 3 starts, episode 1 has 2: cumulative counts 3, 5
```

No index of windows is kept: a number below the total is looked up in the cumulative counts of the episodes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from diffplan.data.dataset import TrajectoryDataset
from diffplan.errors import DataError


class Windows:
    """All windows of a dataset.

    Args:
        dataset: the dataset.
        columns: float columns to join side by side, such as `("action", "observation")`.
        stride: environment steps between two steps of a window.
    """

    def __init__(self, dataset: TrajectoryDataset, columns: Sequence[str], stride: int) -> None:
        self.dataset = dataset
        self.columns = tuple(columns)
        self.stride = stride
        self.lengths = np.array([episode.length for episode in dataset.episodes])
        self._views = [_AddressSpan(dataset, name) for name in self.columns]
        self._cumulative: dict[int, np.ndarray] = {}

    def count(self, horizon: int) -> int:
        """Number of windows of a horizon.

        Raises:
            DataError: every episode is shorter than such a window.
        """
        if horizon not in self._cumulative:
            span = (horizon - 1) * self.stride + 1
            self._cumulative[horizon] = np.cumsum(np.maximum(self.lengths - span + 1, 0))
            if self._cumulative[horizon][-1] == 0:
                raise DataError(
                    f"{self.dataset.root}: a window of horizon {horizon} and stride {self.stride} spans {span} steps, "
                    f"but the longest episode has {self.lengths.max()}; take a shorter horizon or longer episodes"
                )
        return int(self._cumulative[horizon][-1])

    def sample(self, num_windows: int, horizon: int, generator: np.random.Generator) -> np.ndarray:
        """Draw windows uniformly with replacement, float32[num_windows, horizon, size], in environment units."""
        return self.gather(generator.integers(self.count(horizon), size=num_windows), horizon)

    def gather(self, windows: np.ndarray, horizon: int) -> np.ndarray:
        """The windows of the given numbers, each below `count(horizon)`."""
        self.count(horizon)
        cumulative = self._cumulative[horizon]
        episodes = np.searchsorted(cumulative, windows, side="right")
        before = np.where(episodes > 0, cumulative[episodes - 1], 0)
        rows = (windows - before)[:, None] + np.arange(horizon) * self.stride
        return np.concatenate([view.rows(episodes[:, None], rows) for view in self._views], axis=-1)


class _AddressSpan:
    """One column of all shards as a single array over the addresses they are mapped at.

    The shards lie scattered in memory with gaps between them. One strided view from the lowest to the highest address
    lets one gather read a whole batch, however many shards it touches; the gaps are never read. This is ten times
    faster than a loop over shards.
    """

    def __init__(self, dataset: TrajectoryDataset, name: str) -> None:
        self.size = max(dataset.column_size(name), 1)
        self._keep = [dataset.column(commit, name) for commit in dataset.commits]  # holds the mappings open
        addresses = np.array([column.ctypes.data for column in self._keep])
        lowest = int(addresses.min())
        highest = max(column.ctypes.data + column.nbytes for column in self._keep)
        buffer = (ctypes.c_float * ((highest - lowest) // 4)).from_address(lowest)
        flat = np.ctypeslib.as_array(buffer)
        self._windows = np.lib.stride_tricks.as_strided(
            flat, (len(flat) - self.size + 1, self.size), (4, 4), writeable=False
        )
        starts = []
        for commit, address in zip(dataset.commits, addresses, strict=True):
            starts += [(int(address) - lowest) // 4 + e.first_row * self.size for e in commit.episodes]
        self._starts = np.array(starts)

    def rows(self, episodes: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Rows of episodes, float32[*rows.shape, size]; the arguments broadcast."""
        return self._windows[self._starts[episodes] + rows * self.size]

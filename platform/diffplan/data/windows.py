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
import time
from collections.abc import Sequence

import numpy as np

from diffplan.data.dataset import TrajectoryDataset
from diffplan.data.window_index import Padding, WindowIndex

SIZE_CHECK_SECONDS = 1.0


class Windows:
    """All windows of a dataset, gathered from its mapped shards.

    Args:
        dataset: the dataset.
        columns: columns to join side by side, such as `("action", "observation")`.
        stride: environment steps between two steps of a window.
        padding: what to do with episodes that are shorter than a window; see `WindowIndex`.
    """

    def __init__(
        self, dataset: TrajectoryDataset, columns: Sequence[str], stride: int, padding: Padding = "skip"
    ) -> None:
        self.dataset = dataset
        self.columns = tuple(columns)
        self.index = WindowIndex(dataset, stride, padding)
        self._views = [_AddressSpan(dataset, name) for name in self.columns]
        self._checked_at = time.monotonic()

    def count(self, horizon: int) -> int:
        """Number of windows of a horizon; raises `DataError` if there is none."""
        return self.index.count(horizon)

    def sample(self, num_windows: int, horizon: int, generator: np.random.Generator) -> np.ndarray:
        """Draw windows with replacement, float32[num_windows, horizon, size], in environment units."""
        return self.gather(self.index.draw(num_windows, horizon, generator), horizon)

    def gather(self, windows: np.ndarray, horizon: int) -> np.ndarray:
        """The windows of the given numbers, each below `count(horizon)`."""
        episodes, first_rows = self.index.locate(windows, horizon)
        return self.gather_at(episodes, first_rows, horizon)

    def gather_at(self, episodes: np.ndarray, first_rows: np.ndarray, horizon: int) -> np.ndarray:
        """The windows that begin at rows of episodes."""
        if (now := time.monotonic()) - self._checked_at > SIZE_CHECK_SECONDS:
            self.dataset.check_sizes()
            self._checked_at = now
        rows = self.index.rows(episodes, first_rows, horizon)
        return np.concatenate([view.rows(episodes[:, None], rows) for view in self._views], axis=-1)


class _AddressSpan:
    """One column of all shards as a single array over the addresses they are mapped at.

    The shards lie scattered in memory with gaps between them. One strided view from the lowest to the highest address
    lets one gather read a whole batch, however many shards it touches; the gaps are never read. This is ten times
    faster than a loop over shards.
    """

    def __init__(self, dataset: TrajectoryDataset, name: str) -> None:
        column = dataset.describe_column(name)
        self.size = column.size
        self._keep = [dataset.column(shard, name) for shard in dataset.shards]  # holds the mappings open
        addresses = np.array([values.ctypes.data for values in self._keep])
        lowest = int(addresses.min())
        highest = max(values.ctypes.data + values.nbytes for values in self._keep)
        width = column.numpy_dtype.itemsize
        buffer = (ctypes.c_char * (highest - lowest)).from_address(lowest)
        flat = np.frombuffer(buffer, column.numpy_dtype)
        self._rows = np.lib.stride_tricks.as_strided(
            flat, (len(flat) - self.size + 1, self.size), (width, width), writeable=False
        )
        self._offsets = (addresses - lowest) // width
        self._episodes = dataset.episodes

    def rows(self, episodes: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Rows of episodes, float32[*rows.shape, size]; the arguments broadcast."""
        table = self._episodes
        starts = self._offsets[table.shard[episodes]] + table.first_row[episodes].astype(np.int64) * self.size
        return self._rows[starts + rows * self.size].astype(np.float32, copy=False)

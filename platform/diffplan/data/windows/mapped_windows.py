"""Windows: pieces of episodes, gathered for whole batches directly from the mapped shards.

A window of `horizon` steps and `stride` s that starts at row r takes the rows r, r + s, …, r + (horizon - 1) s of one
episode. Every window of every episode is equally likely:

```
episode   0 0 0 0 0 0 0 1 1 1 1 1 1        horizon 3, stride 2: a window spans 5 rows
row       0 1 2 3 4 5 6 0 1 2 3 4 5
starts    * * *         * *                episode 0 has 3 starts, episode 1 has 2: cumulative counts 3, 5
```

There is no table of windows: the number of a window is looked up in the cumulative counts of the episodes.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence

import numpy as np
import torch

from diffplan.data.format.dataset import TrajectoryDataset
from diffplan.data.windows.flat_windows import gather_rows, gather_windows
from diffplan.data.windows.window_index import Padding, WindowIndex

SIZE_CHECK_SECONDS = 1.0
"""Interval of size checks of mapped shards, see `TrajectoryDataset.check_sizes`."""


class Windows:
    """All windows of a dataset, gathered from its mapped shards.

    Args:
        dataset: the dataset.
        columns: columns to join side by side, such as `("action", "observation")`.
        stride: environment steps between two steps of a window.
        padding: treatment of episodes that are shorter than a window; see `WindowIndex`.
        index: the windows, instead of `stride` and `padding`.
    """

    def __init__(
        self,
        dataset: TrajectoryDataset,
        columns: Sequence[str],
        stride: int = 1,
        padding: Padding = "skip",
        *,
        index: WindowIndex | None = None,
    ) -> None:
        self.dataset = dataset
        self.columns = tuple(columns)
        self.index = index or WindowIndex(dataset, stride, padding)
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
        if not self.index.is_even:
            rows = self.index.rows(episodes, first_rows, horizon)
            parts = [gather_rows(v.flat, v.starts(episodes[:, None], rows), v.size) for v in self._views]
        else:
            stride = self.index.stride
            parts = [
                gather_windows(v.flat, v.starts(episodes, first_rows), horizon, v.size, stride) for v in self._views
            ]
        return torch.cat([part.to(torch.float32) for part in parts], dim=-1).numpy()


class _AddressSpan:
    """One column of all shards as a single array over the addresses of the mappings.

    The mappings of shards are scattered in memory with gaps between them. With one view from the lowest to the
    highest address, one gather reads a whole batch from any number of shards; the gaps are never read. This is ten
    times faster than a loop over shards.
    """

    def __init__(self, dataset: TrajectoryDataset, name: str) -> None:
        column = dataset.describe_column(name)
        self.size = column.size
        self._keep = [dataset.column(shard, name) for shard in dataset.shards]  # keeps the mappings open
        addresses = np.array([values.ctypes.data for values in self._keep])
        lowest = int(addresses.min())
        highest = max(values.ctypes.data + values.nbytes for values in self._keep)
        width = column.numpy_dtype.itemsize
        buffer = (ctypes.c_char * (highest - lowest)).from_address(lowest)
        self.flat = torch.frombuffer(buffer, dtype=_TORCH_DTYPES[column.dtype])
        self._offsets = (addresses - lowest) // width
        self._episodes = dataset.episodes

    def starts(self, episodes: np.ndarray, rows: np.ndarray) -> torch.Tensor:
        """Index in `flat` of the first element of rows of episodes, int64; the arguments broadcast."""
        table = self._episodes
        rows = rows + table.first_row[episodes]
        return torch.from_numpy(self._offsets[table.shard[episodes]] + rows.astype(np.int64, copy=False) * self.size)


_TORCH_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "int64": torch.int64,
    "int32": torch.int32,
    "uint8": torch.uint8,
    "bool": torch.bool,
}

"""Reads rows of shards into memory by ranges, without mapping: a shard that shrinks is an error, not a crash."""

from __future__ import annotations

import numpy as np

from diffplan.data.format.checksums import read_range
from diffplan.data.format.commit_record import ShardRecord
from diffplan.data.format.manifest import Manifest
from diffplan.storage.store import Store


class ShardReader:
    """Reads ranges of rows.

    Args:
        store: the store of the dataset.
        manifest: the manifest of the dataset.
        verify: verify the checksum of every chunk that is read.
    """

    def __init__(self, store: Store, manifest: Manifest, *, verify: bool = False) -> None:
        self._store = store
        self._manifest = manifest
        self._verify = verify

    def read_rows(self, shard: ShardRecord, name: str, first_row: int, num_rows: int) -> np.ndarray:
        """Rows of a column, [num_rows, size], in their stored type.

        Raises:
            DataError: the shard is missing, too short or damaged.
        """
        column = self._manifest.column(name)
        row_bytes = column.size * column.numpy_dtype.itemsize
        start = shard.offsets[name] + first_row * row_bytes
        content = read_range(self._store, shard, start, num_rows * row_bytes, verify=self._verify)
        return np.frombuffer(content, column.numpy_dtype).reshape(num_rows, column.size)

    def read_joined(self, shard: ShardRecord, names: tuple[str, ...], first_row: int, num_rows: int) -> np.ndarray:
        """Rows of columns side by side, float32[num_rows, total size]."""
        joined = np.empty((num_rows, sum(self._manifest.column(name).size for name in names)), np.float32)
        at = 0
        for name in names:
            values = self.read_rows(shard, name, first_row, num_rows)
            joined[:, at : at + values.shape[1]] = values
            at += values.shape[1]
        return joined

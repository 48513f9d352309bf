"""Parquet files of steps, split between episodes, and the options of all Parquet files of an export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP_BYTES = 2**26
"""Uncompressed size of a row group: the memory of a reader, and the buffer of the writer."""


class StepFiles:
    """Numbered files of steps, split between episodes.

    Args:
        directory: directory of the files.
        schema: their columns.
        rows_per_file: number of steps after which a new file begins.
    """

    def __init__(self, directory: Path, schema: pa.Schema, rows_per_file: int) -> None:
        self._directory, self._schema, self._rows_per_file = directory, schema, rows_per_file
        row_bytes = sum(_row_bytes(field.type) for field in schema)
        self._rows_per_group = min(max(int(ROW_GROUP_BYTES / row_bytes), 1), 2**20)
        self._writer: pq.ParquetWriter | None = None
        self._num_files = self._num_rows = self._num_waiting = 0
        self._waiting: list[pa.Table] = []

    def write(self, table: pa.Table, starts: np.ndarray) -> None:
        """Add whole episodes, which begin at the rows `starts`, int[episodes]."""
        ends = np.append(starts[1:], table.num_rows)
        first = 0
        while first < len(starts):
            room = self._rows_per_file - self._num_rows
            last = int(np.searchsorted(ends, starts[first] + room, side="right"))
            if last <= first and self._num_rows:
                self._finish()
                continue
            last = max(last, first + 1)
            self._append(table.slice(starts[first], ends[last - 1] - starts[first]))
            first = last

    def _append(self, table: pa.Table) -> None:
        if self._writer is None:
            path = self._directory / f"part-{self._num_files:05d}.parquet"
            self._writer = pq.ParquetWriter(path, self._schema, **parquet_options(self._schema))
            self._num_files += 1
        self._waiting.append(table)
        self._num_waiting += table.num_rows
        self._num_rows += table.num_rows
        whole = self._num_waiting - self._num_waiting % self._rows_per_group
        if whole:
            self._flush(whole)

    def _flush(self, num_rows: int) -> None:
        waiting = pa.concat_tables(self._waiting)
        if self._writer is not None:
            self._writer.write_table(waiting.slice(0, num_rows), self._rows_per_group)
        self._waiting, self._num_waiting = [waiting.slice(num_rows)], self._num_waiting - num_rows

    def _finish(self) -> None:
        if self._num_waiting:
            self._flush(self._num_waiting)
        self._close()
        self._waiting, self._num_rows = [], 0

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def __enter__(self) -> StepFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._finish()
        else:
            self._close()


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """Write options: byte stream split for floats, which compresses them best, and dictionaries for other columns."""
    leaves = {f"{f.name}.list.element" if _is_list(f.type) else f.name: _value_type(f.type) for f in schema}
    return {
        "compression": "zstd",
        "use_byte_stream_split": [leaf for leaf, kind in leaves.items() if pa.types.is_floating(kind)],
        "use_dictionary": [leaf for leaf, kind in leaves.items() if not pa.types.is_floating(kind)],
        "write_page_checksum": True,
    }


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_fixed_size_list(kind)


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if _is_list(kind) else kind


def _row_bytes(kind: pa.DataType) -> float:
    """Approximate memory of a value, in bytes."""
    if _is_list(kind):
        return kind.list_size * _row_bytes(kind.value_type)
    return 16 if pa.types.is_string(kind) else kind.bit_width / 8

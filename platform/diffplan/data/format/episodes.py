"""The index of a dataset: its episodes as arrays, small enough for millions of them.

The fields of an episode that windows need (its shard, first row, length and task) are kept as arrays; all others are
read on demand.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import pyarrow as pa

from diffplan.data.format.commit_record import CommitRecord, EpisodeRecord
from diffplan.data.format.manifest import Column

CORE = ("unit", "shard", "first_row", "length", "task")
"""Columns of the index that are always in memory."""
CORE_DTYPES = {"unit": np.int32, "shard": np.int32, "first_row": np.int32, "length": np.int32, "task": np.int16}


class EpisodeTable(Sequence[EpisodeRecord]):
    """The episodes of a dataset in the order of units and rows.

    It is a sequence of `EpisodeRecord`s; its columns are arrays.

    Args:
        core: the columns named in `CORE`, one entry per episode.
        load: reads the whole table, in the same order.
    """

    def __init__(self, core: dict[str, np.ndarray], load: Callable[[], pa.Table]) -> None:
        self._core = {name: core[name].astype(CORE_DTYPES[name], copy=False) for name in CORE}
        self._load = load

    def __reduce__(self) -> tuple[Any, ...]:
        return EpisodeTable.from_arrow, (self.to_arrow(),)

    @classmethod
    def from_arrow(cls, table: pa.Table) -> EpisodeTable:
        """Make a table from an Arrow table in memory."""
        return cls(read_core(table), lambda: table)

    @classmethod
    def concatenate(cls, parts: Sequence[EpisodeTable]) -> EpisodeTable:
        """Concatenate tables and sort by unit; shard numbers must refer to the shards of the result."""
        core = {name: np.concatenate([part._core[name] for part in parts]) for name in CORE}
        order = np.argsort(core["unit"], kind="stable")
        core = {name: values[order] for name, values in core.items()}

        def load() -> pa.Table:
            tables = [_with_places(part._table, part.shard, part.first_row) for part in parts]
            return pa.concat_tables(tables).take(order)

        return cls(core, load)

    def select(
        self, chosen: np.ndarray, *, shard: np.ndarray | None = None, first_row: np.ndarray | None = None
    ) -> EpisodeTable:
        """The episodes of a mask or of indices, optionally with new shard numbers or first rows."""
        core = {name: values[chosen] for name, values in self._core.items()}
        core |= {"shard": shard} if shard is not None else {}
        core |= {"first_row": first_row} if first_row is not None else {}

        def load() -> pa.Table:
            indices = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
            return _with_places(self._table.take(indices), core["shard"], core["first_row"])

        return EpisodeTable(core, load)

    @property
    def unit(self) -> np.ndarray:
        """Unit of each episode, int32[episodes]."""
        return self._core["unit"]

    @property
    def shard(self) -> np.ndarray:
        """Number of the shard of each episode, int32[episodes]."""
        return self._core["shard"]

    @property
    def first_row(self) -> np.ndarray:
        """First row of each episode in its shard, int32[episodes]."""
        return self._core["first_row"]

    @property
    def length(self) -> np.ndarray:
        """Steps of each episode, int32[episodes]."""
        return self._core["length"]

    @property
    def task(self) -> np.ndarray:
        """Task of each episode, int16[episodes]."""
        return self._core["task"]

    @property
    def num_index_bytes(self) -> int:
        """Memory of the arrays, in bytes."""
        return sum(values.nbytes for values in self._core.values())

    @functools.cached_property
    def _table(self) -> pa.Table:
        return self._load()

    def to_arrow(self) -> pa.Table:
        """The whole table, one row per episode."""
        return self._table

    def column(self, name: str) -> np.ndarray:
        """A column of the whole table as an array, such as `undiscounted_return` or `terminated`."""
        return self._table.column(name).to_numpy()

    @property
    def final_observations(self) -> np.ndarray:
        """Observation after the last action of each episode, float[episodes, observation_dim]."""
        return _lists_to_array(self._table.column("final_observation"))

    def find_copies(self) -> np.ndarray:
        """For each episode the first with the same length, return and last observation, itself if there is none before.

        Two different episodes hardly agree in all of them.

        Returns:
            Indices of episodes, int[episodes].
        """
        final = self.final_observations.astype(np.float64)
        keys = np.column_stack([self.length, self.column("undiscounted_return"), final.reshape(len(self), -1)])
        whole = np.ascontiguousarray(keys).view(np.dtype((np.void, keys.shape[1] * keys.itemsize))).ravel()
        _, first, group = np.unique(whole, return_index=True, return_inverse=True)
        return first[group]

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """Runs of rows that are contiguous in a shard and here: number of the shard, first row, number of rows."""
        if not len(self):
            return
        ends = self.first_row.astype(np.int64) + self.length
        joined = (self.shard[1:] == self.shard[:-1]) & (self.first_row[1:] == ends[:-1])
        firsts = np.flatnonzero(np.concatenate([[True], ~joined]))
        lasts = np.concatenate([firsts[1:] - 1, [len(self) - 1]])
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
            first_row = int(self.first_row[first])
            yield int(self.shard[first]), first_row, int(ends[last]) - first_row

    def __len__(self) -> int:
        return len(self._core["length"])

    def __iter__(self) -> Iterator[EpisodeRecord]:
        for batch in self._table.to_batches(max_chunksize=4096):
            yield from map(_to_record, batch.to_pylist())

    @overload
    def __getitem__(self, index: int) -> EpisodeRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[EpisodeRecord]: ...
    def __getitem__(self, index: int | slice) -> EpisodeRecord | list[EpisodeRecord]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"expected an episode below {len(self)}, got {index}")
        return _to_record(self._table.slice(index % len(self), 1).to_pylist()[0])


def episodes_schema(observation: Column) -> pa.Schema:
    """Columns of the table of episodes."""
    return pa.schema(
        [
            pa.field("unit", pa.int64()),
            pa.field("shard", pa.int32()),
            pa.field("first_row", pa.int64()),
            pa.field("length", pa.int64()),
            pa.field("task", pa.int32()),
            pa.field("episode_index", pa.int64()),
            pa.field("seed", pa.int64()),
            pa.field("behavior", pa.string()),
            pa.field("undiscounted_return", pa.float64()),
            pa.field("terminated", pa.bool_()),
            pa.field("truncated", pa.bool_()),
            pa.field("final_observation", pa.list_(observation.arrow_type.value_type, observation.size))
            if observation.shape
            else pa.field("final_observation", pa.list_(observation.arrow_type, 1)),
            pa.field("details", pa.string()),
        ]
    )


def make_episode_table(commits: Sequence[CommitRecord], shard_numbers: Sequence[int], observation: Column) -> pa.Table:
    """The table of the episodes of commits; `shard_numbers` are the numbers of their shards."""
    rows = []
    for commit, shard in zip(commits, shard_numbers, strict=True):
        for e in commit.episodes:
            details = {"final_values": e.final_values, "options": e.options}
            rows.append(
                {
                    "unit": commit.unit,
                    "shard": shard,
                    **{name: getattr(e, name) for name in e.__dataclass_fields__ if name not in details},
                    "details": json.dumps(details) if e.final_values or e.options is not None else None,
                }
            )
    return pa.Table.from_pylist(rows, schema=episodes_schema(observation))


def read_core(table: pa.Table) -> dict[str, np.ndarray]:
    """The arrays of `CORE`."""
    return {name: table.column(name).to_numpy().astype(CORE_DTYPES[name]) for name in CORE}


def _with_places(table: pa.Table, shard: np.ndarray, first_row: np.ndarray) -> pa.Table:
    for name, values in (("shard", shard), ("first_row", first_row)):
        index = table.schema.get_field_index(name)
        table = table.set_column(index, name, pa.array(values).cast(table.schema.field(name).type))
    return table


def _to_record(row: dict[str, Any]) -> EpisodeRecord:
    details = json.loads(row.pop("details") or "{}")
    known = {name: row[name] for name in EpisodeRecord.__dataclass_fields__ if name in row}
    return EpisodeRecord(**known, **details)


def _lists_to_array(column: pa.ChunkedArray) -> np.ndarray:
    arrays = [chunk.flatten().to_numpy() for chunk in column.chunks]
    return np.concatenate(arrays).reshape(-1, column.type.list_size)

"""Compaction: joins many small shards to few large ones; concurrent reads and writes are safe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa

from diffplan.data.format.checksums import read_checked
from diffplan.data.format.commit_record import ShardRecord
from diffplan.data.format.dataset import read_manifest
from diffplan.data.format.manifest import Manifest
from diffplan.data.format.snapshot import (
    DatasetState,
    list_snapshots,
    read_snapshot,
    read_state,
    relocate,
    write_state,
)
from diffplan.data.format.structure import check_structure
from diffplan.data.format.writer import write_shard
from diffplan.errors import DataError
from diffplan.storage.store import Store

TARGET_BYTES = 128 * 2**20
"""Target size of compacted shards, in bytes."""


def plan_compaction(state: DatasetState, target_bytes: int) -> list[list[int]]:
    """Groups of shards to join: two or more neighbours with at most `target_bytes` together."""
    groups: list[list[int]] = [[]]
    size = 0
    for number, shard in enumerate(state.shards):
        if groups[-1] and size + shard.num_bytes > target_bytes:
            groups.append([])
            size = 0
        groups[-1].append(number)
        size += shard.num_bytes
    return [group for group in groups if len(group) > 1]


def compact(
    store: Store, *, target_bytes: int = TARGET_BYTES, on_progress: Callable[[int, int], None] | None = None
) -> tuple[int, int]:
    """Join small shards and commit the result as a snapshot.

    Checksums of all data are verified first. Readers see the old shards or the new ones with the same episodes in the
    same order; runs pinned to older snapshots read the same windows. The old shards stay until they are swept. If
    another writer commits a snapshot at the same time, compaction starts again from that snapshot.

    Args:
        store: the store of the dataset.
        target_bytes: greatest size of a joined shard.
        on_progress: called with the number of groups done and their total.

    Returns:
        The number of shards before and after.

    Raises:
        DataError: no dataset, or a shard is damaged.
    """
    if target_bytes < 1:
        raise DataError(f"target size: expected at least 1 byte, got {target_bytes}")
    manifest = read_manifest(store)
    while True:
        numbers = list_snapshots(store)
        state = read_state(store, manifest)
        if state is None:
            raise DataError(f"{store.uri}: expected a dataset with episodes, got none")
        state = relocate(store, manifest, state)
        groups = plan_compaction(state, target_bytes)
        if not groups:
            return len(state.shards), len(state.shards)
        joined: list[ShardRecord] = []
        try:
            for number, group in enumerate(groups):
                joined.append(_join(store, manifest, state, group))
                if on_progress is not None:
                    on_progress(number + 1, len(groups))
        except BaseException:
            _delete(store, joined)
            raise
        compacted = _replace_shards(state, groups, joined)
        base = numbers[-1] if numbers else None
        number = 0 if base is None else base + 1
        if write_state(store, manifest, replace(compacted, base=base)) is not None or _names(
            store, manifest, number, joined[0]
        ):
            return len(state.shards), len(compacted.shards)
        _delete(store, joined)  # based on an outdated state


def _names(store: Store, manifest: Manifest, number: int, shard: ShardRecord) -> bool:
    """Whether a snapshot names a shard: then our own put of the snapshot succeeded, but its answer was lost."""
    return any(other.name == shard.name for other in read_snapshot(store, manifest, number).shards)


def _delete(store: Store, shards: list[ShardRecord]) -> None:
    for shard in shards:
        store.delete(shard.name)


def _join(store: Store, manifest: Manifest, state: DatasetState, group: list[int]) -> ShardRecord:
    """Write the episodes of some shards as one shard, in the order of their units."""
    tables = {}
    for number in group:
        content = pa.py_buffer(b"".join(read_checked(store, state.shards[number])))
        check_structure(store.locate(state.shards[number].name), content, state.shards[number], manifest)
        tables[number] = pa.ipc.open_file(content).read_all().replace_schema_metadata(None)
    episodes = state.episodes.select(np.isin(state.episodes.shard, group))
    pieces = [tables[number].slice(first_row, num_rows) for number, first_row, num_rows in episodes.runs()]
    (batch,) = pa.concat_tables(pieces).combine_chunks().to_batches()
    shard, _ = write_shard(store, manifest, f"{episodes.unit.min():08d}-{episodes.unit.max():08d}", batch)
    return shard


def _replace_shards(state: DatasetState, groups: list[list[int]], joined: list[ShardRecord]) -> DatasetState:
    """The state with each group of shards replaced by the joined shard."""
    group_of = np.full(len(state.shards), -1)
    for index, group in enumerate(groups):
        group_of[group] = index
    shards: list[ShardRecord] = []
    new_number = np.zeros(len(state.shards), dtype=np.int32)
    for number, shard in enumerate(state.shards):
        index = group_of[number]
        if index < 0:
            new_number[number] = len(shards)
            shards.append(shard)
        elif number == groups[index][0]:
            new_number[groups[index]] = len(shards)
            shards.append(joined[index])
    episodes = state.episodes
    first_row = episodes.first_row.copy()
    moved = group_of[episodes.shard]
    for index in range(len(groups)):
        chosen = moved == index
        lengths = episodes.length[chosen].astype(np.int64)
        first_row[chosen] = np.cumsum(lengths) - lengths
    table = episodes.select(np.arange(len(episodes)), shard=new_number[episodes.shard], first_row=first_row)
    return replace(state, shards=tuple(shards), episodes=table, number=None)

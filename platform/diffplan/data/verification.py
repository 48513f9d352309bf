"""Check every byte of a dataset, and drop what is damaged so that it can be made again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from diffplan.data.checksums import read_checked
from diffplan.data.commit import list_committed_units
from diffplan.data.dataset import read_manifest
from diffplan.data.format import COMMITS, SHARDS, SNAPSHOTS, Manifest, commit_name, snapshot_name
from diffplan.data.snapshot import (
    DatasetState,
    find_units,
    list_snapshots,
    read_commits,
    read_snapshot,
    read_state,
    state_of_commits,
    write_state,
)
from diffplan.data.store import Store
from diffplan.errors import DataError

_ROW_COLUMNS = ("episode_index", "t", "termination", "truncation")


@dataclass(frozen=True)
class Damage:
    """Something of a dataset that is not as it was written.

    Attributes:
        error: what is wrong.
        units: units whose episodes cannot be trusted.
        shard: the damaged shard, if it is one.
        snapshot: number of the damaged snapshot, if it is one.
    """

    error: DataError
    units: tuple[int, ...] = ()
    shard: str | None = None
    snapshot: int | None = None


def count_objects(store: Store) -> int:
    """How many objects `find_damage` looks at, about."""
    return sum(len(store.list(directory)) for directory in (SNAPSHOTS, COMMITS, SHARDS))


def find_damage(store: Store) -> Iterator[Damage | None]:
    """Read everything and compare it with its checksums; yields the damage, or None, of each object.

    Snapshots first, then commits, then shards. Beyond checksums, the rows of a shard must be those that the index says:
    episode numbers, time steps from 0 on, and ends only in last rows.

    Raises:
        DataError: the manifest is damaged or there is no dataset, so nothing else can be read.
    """
    manifest = read_manifest(store)
    snapshots, units = set(), set()
    for number in list_snapshots(store):
        try:
            read_snapshot(store, manifest, number).episodes.to_arrow()
            yield None
        except DataError as error:
            snapshots.add(number)
            yield Damage(error, snapshot=number)
    for unit in list_committed_units(store):
        try:
            read_commits(store, manifest, [unit])
            yield None
        except DataError as error:
            units.add(unit)
            yield Damage(error, units=(unit,))
    state = read_state(store, manifest, without_units=units, without_snapshots=snapshots)
    if state is None:
        return
    present = {stored.name for stored in store.list(SHARDS)}
    for number, shard in enumerate(state.shards):
        try:
            check_shard(store, manifest, state, number)
            yield None
        except DataError as error:
            of_shard = np.unique(state.episodes.unit[state.episodes.shard == number]).tolist()
            if shard.name not in present:  # then its units may be elsewhere by now
                of_shard = sorted(set(of_shard) - set(find_units(store, manifest, of_shard, present)))
            if of_shard:
                yield Damage(error, units=tuple(of_shard), shard=shard.name)


def check_shard(store: Store, manifest: Manifest, state: DatasetState, number: int) -> None:
    """Check the bytes and the rows of one shard.

    Raises:
        DataError: it is missing or damaged.
    """
    shard = state.shards[number]
    path = store.locate(shard.name)
    content = b"".join(read_checked(store, shard))
    if (size := store.size(shard.name)) != shard.num_bytes:
        raise DataError(f"{path}: expected {shard.num_bytes} bytes, got {size}; something was appended to the shard")
    episodes = state.episodes.select(state.episodes.shard == number)
    try:
        batch = pa.ipc.open_file(content).get_batch(0)
        found = {name: batch.column(name).to_numpy(zero_copy_only=False) for name in _ROW_COLUMNS}
    except (pa.ArrowException, OSError, UnicodeDecodeError, KeyError) as error:
        raise DataError(f"{path}: expected an Arrow IPC file, got something else ({error})") from None
    if not batch.schema.remove_metadata().equals(manifest.arrow_schema):
        raise DataError(f"{path}: expected the columns of the manifest, got {batch.schema.names} or other types")
    first, length = episodes.first_row.astype(np.int64), episodes.length.astype(np.int64)
    rows = np.repeat(first - np.cumsum(length) + length, length) + np.arange(length.sum())
    ends = {name: np.zeros(len(rows), bool) for name in ("termination", "truncation")}
    ends["termination"][np.cumsum(length) - 1] = episodes.column("terminated")
    ends["truncation"][np.cumsum(length) - 1] = episodes.column("truncated")
    expected = {
        "episode_index": np.repeat(episodes.column("episode_index"), length),
        "t": np.concatenate([np.arange(n) for n in length]),
        **ends,
    }
    for name, values in expected.items():
        wrong = np.flatnonzero(found[name][rows] != values)
        if len(wrong):
            raise DataError(f"{path}: column {name!r} does not follow the index of episodes in row {rows[wrong[0]]}")


def drop_damage(store: Store, damages: list[Damage]) -> tuple[int, ...]:
    """Take what is damaged out of the dataset, and return the units that must be made again.

    Order matters: the units leave the index first, then their commits and shards, so that a reader finds either the
    old state or the new one, and the same call after an interruption goes on.
    """
    manifest = read_manifest(store)
    for damage in damages:
        if damage.snapshot is not None:
            store.delete(snapshot_name(damage.snapshot))
    units = sorted({unit for damage in damages for unit in damage.units})
    numbers = list_snapshots(store)
    if units and numbers:
        newest = read_snapshot(store, manifest, numbers[-1])
        kept = newest.episodes.select(~np.isin(newest.episodes.unit, units))
        if len(kept) < len(newest.episodes):
            # Statistics do not subtract: those of the rest come from its commits.
            rest = read_commits(store, manifest, np.unique(kept.unit).tolist())
            statistics = state_of_commits(rest, manifest).statistics if rest else newest.statistics
            write_state(store, manifest, replace(newest, episodes=kept, statistics=statistics))
    for unit in units:
        store.delete(commit_name(unit))
    for damage in damages:
        if damage.shard is not None:
            store.delete(damage.shard)
    return tuple(units)

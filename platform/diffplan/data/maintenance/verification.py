"""Verify every byte of a dataset, and remove damaged units so that they can be made again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from diffplan.data.format.checksums import read_checked
from diffplan.data.format.commit import list_committed_units
from diffplan.data.format.dataset import TrajectoryDataset, describe_repeated, find_repeated, read_manifest
from diffplan.data.format.manifest import COMMITS, SHARDS, SNAPSHOTS, Manifest, commit_name, snapshot_name
from diffplan.data.format.snapshot import (
    DatasetState,
    find_units,
    list_snapshots,
    read_commits,
    read_snapshot,
    read_state,
    state_of_commits,
    write_state,
)
from diffplan.data.format.statistics import ColumnStatistics, compute_statistics, merge_statistics
from diffplan.data.format.structure import CURE, check_structure
from diffplan.errors import DataError
from diffplan.storage.store import Store

_ROW_COLUMNS = ("episode_index", "t", "termination", "truncation")


@dataclass(frozen=True)
class Damage:
    """A damaged object of a dataset.

    Attributes:
        error: description of the damage.
        units: units with unreliable episodes.
        shard: the damaged shard, if the object is a shard.
        snapshot: number of the damaged snapshot, if the object is one.
    """

    error: DataError
    units: tuple[int, ...] = ()
    shard: str | None = None
    snapshot: int | None = None


def count_objects(store: Store) -> int:
    """Approximate number of objects that `find_damage` checks."""
    return sum(len(store.list(directory)) for directory in (SNAPSHOTS, COMMITS, SHARDS))


def find_damage(store: Store) -> Iterator[Damage | None]:
    """Read everything and verify its checksums; yields the damage, or None, of each object.

    Snapshots first, then commits, then shards. Besides checksums, the rows of a shard must match the index: episode
    numbers, time steps from 0 on, and ends only in last rows.

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
    for unit, error in {
        again: describe_repeated(store.uri, number, first, again)
        for number, first, again in find_repeated(state.episodes)
    }.items():
        yield Damage(error, units=(unit,))
    present = {stored.name for stored in store.list(SHARDS)}
    for number, shard in enumerate(state.shards):
        of_shard = set(np.unique(state.episodes.unit[state.episodes.shard == number]).tolist())
        moved = {}
        if shard.name not in present:  # its units may be in another shard by now
            readable = sorted(of_shard - units)
            moved = find_units(store, manifest, readable, present, without_snapshots=snapshots)
        for unit, (other, episodes) in moved.items():
            alone = episodes.select(np.arange(len(episodes)), shard=np.zeros(len(episodes), np.int32))
            yield _check(store, manifest, DatasetState((other,), alone, {}), 0, {unit})
        if of_shard - set(moved):
            yield _check(store, manifest, state, number, of_shard - set(moved))


def _check(store: Store, manifest: Manifest, state: DatasetState, number: int, units: set[int]) -> Damage | None:
    try:
        check_shard(store, manifest, state, number)
    except DataError as error:
        return Damage(error, units=tuple(sorted(units)), shard=state.shards[number].name)
    return None


def check_shard(store: Store, manifest: Manifest, state: DatasetState, number: int) -> None:
    """Check the bytes and the rows of one shard.

    Raises:
        DataError: the shard is missing or damaged.
    """
    shard = state.shards[number]
    path = store.locate(shard.name)
    content = b"".join(read_checked(store, shard))
    if (size := store.size(shard.name)) != shard.num_bytes:
        raise DataError(f"{path}: expected {shard.num_bytes} bytes, got {size}; something was appended: {CURE}")
    batch = check_structure(path, pa.py_buffer(content), shard, manifest)
    found = {name: batch.column(name).to_numpy(zero_copy_only=False) for name in _ROW_COLUMNS}
    episodes = state.episodes.select(state.episodes.shard == number)
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
            raise DataError(
                f"{path}: expected {name} {values[wrong[0]]} in row {rows[wrong[0]]}, as the index of episodes has it, "
                f"got {found[name][rows[wrong[0]]]}; {CURE}"
            )


def drop_damage(store: Store, damages: list[Damage]) -> tuple[int, ...]:
    """Remove damaged objects from the dataset, and return the units that must be made again.

    Order matters: the units are removed from the index first, then their commits and shards, so that a reader finds
    either the old state or the new one. After an interruption, `find_damage` finds the remaining work.
    """
    manifest = read_manifest(store)
    for damage in damages:
        if damage.snapshot is not None:
            store.delete(snapshot_name(damage.snapshot))
    units = sorted({unit for damage in damages for unit in damage.units})
    while units and (numbers := list_snapshots(store)):
        newest = read_snapshot(store, manifest, numbers[-1])
        chosen = ~np.isin(newest.episodes.unit, units)
        if chosen.all():
            break
        used, shard = np.unique(newest.episodes.shard[chosen], return_inverse=True)
        kept = replace(
            newest,
            shards=tuple(newest.shards[i] for i in used),
            episodes=newest.episodes.select(chosen, shard=shard.astype(np.int32)),
        )
        statistics = _compute_statistics(store, manifest, kept)
        if write_state(store, manifest, replace(kept, statistics=statistics)) is not None:
            break
    for unit in units:
        store.delete(commit_name(unit))
    for damage in damages:
        if damage.shard is not None:
            store.delete(damage.shard)
    return tuple(units)


def _compute_statistics(store: Store, manifest: Manifest, state: DatasetState) -> dict[str, ColumnStatistics]:
    """Statistics of a state, from its commits, or from rows if a commit is missing: statistics cannot be subtracted."""
    if not len(state.episodes):
        return {c.name: compute_statistics(np.zeros((0, c.size))) for c in manifest.columns}
    units = set(np.unique(state.episodes.unit).tolist())
    committed = sorted(units & set(list_committed_units(store)))
    parts = [state_of_commits(read_commits(store, manifest, committed), manifest).statistics] if committed else []
    if rest := sorted(units - set(committed)):
        episodes = state.episodes.select(np.isin(state.episodes.unit, rest))
        dataset = TrajectoryDataset(store, manifest, state.shards, episodes, {})
        rows = {c.name: dataset.read_column(c.name).reshape(dataset.num_steps, -1) for c in manifest.columns}
        parts.append({name: compute_statistics(values) for name, values in rows.items()})
    return {c.name: merge_statistics([part[c.name] for part in parts]) for c in manifest.columns}

"""Snapshots: numbered, immutable lists of all shards and episodes of a dataset.

A snapshot pins the data of a training run, makes opening a dataset fast (one file in place of a commit per unit), and
commits every replacement of shards: compaction, and removal of damaged ones. Numbers have no gaps. The writer of
snapshot N has read N - 1, and creating N fails if there is one already, so no change is lost: a second writer then
reads again and retries.

```
snapshots/<N>.parquet   one row per episode; its metadata have a record (diffplan.data.format.record) with the shards
                        and the statistics of all columns
```

The content of a snapshot never changes, but its shards may be replaced by later ones with the same episodes. Episodes
are therefore found by unit: if a shard of an old snapshot is missing, its units are read from their present shards, in
the same order, so a pinned run reads the same windows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Set
from dataclasses import asdict, dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diffplan.data.format.commit import list_committed_units, read_commit
from diffplan.data.format.commit_checks import (
    check_against,
    check_index,
    check_places,
    check_statistics,
    check_table,
)
from diffplan.data.format.commit_record import CommitRecord, ShardRecord
from diffplan.data.format.episodes import CORE, EpisodeTable, episodes_schema, make_episode_table, read_core
from diffplan.data.format.manifest import SHARDS, SNAPSHOTS, Manifest, commit_name, snapshot_name
from diffplan.data.format.record import decode_record, encode_record
from diffplan.data.format.statistics import ColumnStatistics, merge_statistics
from diffplan.errors import DataError, StoreError
from diffplan.storage.store import Store

METADATA_KEY = b"diffplan.snapshot"
MAX_UNCHECKED_EPISODES = 1_000_000
"""Episodes of a snapshot that are read without a look at the shards: they take 20 MB."""
MIN_ROW_BYTES = 12
"""Bytes of the episode and the time step in each row of a shard."""
T = TypeVar("T")


@dataclass(frozen=True)
class DatasetState:
    """All shards and episodes at one time.

    Attributes:
        shards: the shards, in the order of their units.
        episodes: the episodes; their `shard` is an index of `shards`.
        statistics: statistics of each column, over all episodes.
        number: number of the snapshot with exactly this content, None if there is none.
        base: number of the newest snapshot when this was read, None if there was none.
    """

    shards: tuple[ShardRecord, ...]
    episodes: EpisodeTable
    statistics: dict[str, ColumnStatistics]
    number: int | None = None
    base: int | None = None


def list_snapshots(store: Store) -> list[int]:
    """Numbers of the snapshots of a dataset, ascending."""
    matches = (re.fullmatch(rf"{SNAPSHOTS}/(\d+)\.parquet", stored.name) for stored in store.list(SNAPSHOTS))
    return sorted(int(match[1]) for match in matches if match)


def read_state(
    store: Store,
    manifest: Manifest,
    *,
    without_units: Set[int] = frozenset(),
    without_snapshots: Set[int] = frozenset(),
) -> DatasetState | None:
    """Everything committed so far: the newest snapshot and the commits that came after it; None if there is nothing.

    Args:
        store: the store of the dataset.
        manifest: the manifest of the dataset.
        without_units: damaged commits to skip.
        without_snapshots: damaged snapshots to skip.
    """
    numbers = [number for number in list_snapshots(store) if number not in without_snapshots]
    base = read_snapshot(store, manifest, numbers[-1]) if numbers else None
    known = set(without_units) if base is None else set(np.unique(base.episodes.unit).tolist()) | without_units
    commits = read_commits(store, manifest, [u for u in list_committed_units(store) if u not in known])
    if base is None and not commits:
        return None
    if base is None or not commits:
        return base or state_of_commits(commits, manifest, 0)
    added = state_of_commits(commits, manifest, len(base.shards))
    return DatasetState(
        shards=base.shards + added.shards,
        episodes=EpisodeTable.concatenate([base.episodes, added.episodes]),
        statistics={n: merge_statistics([base.statistics[n], added.statistics[n]]) for n in base.statistics},
        base=base.number,
    )


def state_of_commits(commits: list[CommitRecord], manifest: Manifest, first_shard: int = 0) -> DatasetState:
    """The state of these commits alone, with shards numbered from `first_shard`."""
    numbers = range(first_shard, first_shard + len(commits))
    table = make_episode_table(commits, numbers, manifest.column("observation"))
    statistics = {c.name: merge_statistics([commit.statistics[c.name] for commit in commits]) for c in manifest.columns}
    return DatasetState(tuple(c.shard for c in commits), EpisodeTable.from_arrow(table), statistics)


def read_commits(store: Store, manifest: Manifest, units: list[int]) -> list[CommitRecord]:
    """The commits of units; raises `DataError` for a damaged one or one of another dataset."""
    commits = []
    for unit in units:
        path = store.locate(commit_name(unit))
        try:
            commit = read_commit(store, unit)
        except FileNotFoundError:
            raise DataError(f"{path}: the commit was dropped just now; open the dataset again") from None
        if commit.dataset_uuid != manifest.dataset_uuid:
            raise DataError(
                f"{path}: expected dataset {manifest.dataset_uuid}, got {commit.dataset_uuid}; misplaced? "
                "Move it back to its dataset"
            )
        try:
            check_against(commit, manifest)
        except ValueError as error:
            raise DataError(
                f"{path}: expected a commit of this dataset, got another ({error}); delete it and make its unit again "
                "(collect with --resume, or import again)"
            ) from None
        commits.append(commit)
    return commits


def read_snapshot(store: Store, manifest: Manifest, number: int) -> DatasetState:
    """A snapshot as it was written; raises `DataError` if it is missing or damaged."""
    name = snapshot_name(number)
    path = store.locate(name)
    schema = episodes_schema(manifest.column("observation"))

    def read() -> DatasetState:
        with store.open(name) as file:
            found = pq.read_metadata(file)
        values = decode_record((found.metadata or {})[METADATA_KEY])
        if values["dataset_uuid"] != manifest.dataset_uuid:
            raise ValueError(f"it belongs to dataset {values['dataset_uuid']}")
        num_episodes = values["num_episodes"]
        if type(num_episodes) is not int or found.num_rows != num_episodes:
            raise ValueError(f"it has {found.num_rows} episodes, not {num_episodes}")
        shards = tuple(ShardRecord.from_dict(shard) for shard in values["shards"])
        for shard in shards:
            check_places(shard, manifest)
        _check_room(store, num_episodes)

        def load() -> pa.Table:
            def read_whole() -> pa.Table:
                table = _read_table(store, name, schema, num_episodes)
                check_table(table, manifest)
                return table

            return _guard(path, read_whole)

        core = _read_table(store, name, pa.schema([schema.field(column) for column in CORE]), num_episodes)
        check_index({column: core.column(column).to_numpy() for column in CORE}, shards)
        statistics = {column: ColumnStatistics.from_dict(v) for column, v in values["statistics"].items()}
        check_statistics(statistics, manifest)
        return DatasetState(
            shards=shards,
            episodes=EpisodeTable(read_core(core), load),
            statistics=statistics,
            number=number,
            base=number,
        )

    try:
        return _guard(path, read)
    except FileNotFoundError:
        expected = list_snapshots(store)
        raise DataError(f"{store.uri}: expected one of the snapshots {expected}, got {number}") from None


def _check_room(store: Store, num_episodes: int) -> None:
    """Raise `ValueError` for more episodes than the shards there can hold; they take memory as soon as they are read.

    Equal values take next to no room in a snapshot, so its own size tells nothing. Shards that a snapshot names may be
    gone, but then their rows are in others.
    """
    if num_episodes > MAX_UNCHECKED_EPISODES:
        num_bytes = sum(stored.num_bytes for stored in store.list(SHARDS))
        if num_episodes * MIN_ROW_BYTES > num_bytes:
            raise ValueError(f"its {num_episodes} episodes are more than {num_bytes} bytes of shards can hold")


def _read_table(store: Store, name: str, schema: pa.Schema, num_episodes: int) -> pa.Table:
    """The columns of a schema; pages have their own checksums, and the rest is compared with the record."""
    with store.open(name) as file:
        # No threads: one that releases a Python buffer during interpreter shutdown crashes the process.
        table = pq.ParquetFile(file, page_checksum_verification=True).read(columns=schema.names, use_threads=False)
    if not table.schema.remove_metadata().equals(schema):
        raise ValueError(f"it has the columns {table.schema.names} or other types")
    if table.num_rows != num_episodes:
        raise ValueError(f"it has {table.num_rows} episodes, not {num_episodes}")
    return table


def _guard(path: str, read: Callable[[], T]) -> T:
    """Run `read`; errors by damage become a `DataError`."""
    try:
        return read()
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path}: expected a snapshot, got something else ({first}); it is damaged: delete it, and the dataset is "
            "read from its commits and the snapshots before it"
        ) from None


def write_state(store: Store, manifest: Manifest, state: DatasetState) -> int | None:
    """Write a state as the snapshot after `state.base`.

    Returns:
        The number of the snapshot, or None if another writer was first: read the state again.

    Raises:
        StoreError: the store refuses to write.
    """
    values = {
        "dataset_uuid": manifest.dataset_uuid,
        "num_episodes": len(state.episodes),
        "shards": [asdict(shard) for shard in state.shards],
        "statistics": {name: statistics.to_dict() for name, statistics in state.statistics.items()},
    }
    table = state.episodes.to_arrow().replace_schema_metadata(None)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table)
        # Metadata of the schema would be stored twice.
        writer.add_key_value_metadata({METADATA_KEY.decode(): encode_record(values).decode()})
    number = 0 if state.base is None else state.base + 1
    name = snapshot_name(number)
    try:
        return number if store.put_if_absent(name, sink.getvalue().to_pybytes()) else None
    except OSError as error:
        raise StoreError(
            f"{store.locate(name)}: the snapshot could not be written ({error.strerror or error}); make room or mend "
            "the permissions, then try again: nothing is lost"
        ) from error


def relocate(store: Store, manifest: Manifest, state: DatasetState) -> DatasetState:
    """The same state with missing shards replaced by the present shards of their episodes.

    Raises:
        DataError: some episodes are in no shard.
    """
    present = {stored.name for stored in store.list(SHARDS)}
    gone = np.array([shard.name not in present for shard in state.shards])
    if not gone.any():
        return state
    units = np.unique(state.episodes.unit[gone[state.episodes.shard]]).tolist()
    found = find_units(store, manifest, units, present)
    if missing := [unit for unit in units if unit not in found]:
        shard = state.shards[int(state.episodes.shard[np.searchsorted(state.episodes.unit, missing[0])])]
        raise DataError(
            f"{store.locate(shard.name)}: the shard of unit {missing[0]} is missing; delete "
            f"{commit_name(missing[0])} and make the unit again (collect with --resume, or import again)"
        )
    shards = list(state.shards)
    numbers = {shard.name: i for i, shard in enumerate(shards)}
    parts = [state.episodes.select(~np.isin(state.episodes.unit, units))]
    for unit in units:
        shard, episodes = found[unit]
        if not np.array_equal(episodes.length, state.episodes.length[state.episodes.unit == unit]):
            raise DataError(f"{store.locate(shard.name)}: unit {unit} has other episodes than the snapshot has of it")
        if shard.name not in numbers:
            numbers[shard.name] = len(shards)
            shards.append(shard)
        parts.append(episodes.select(np.arange(len(episodes)), shard=np.full(len(episodes), numbers[shard.name])))
    episodes = EpisodeTable.concatenate(parts)
    used, shard = np.unique(episodes.shard, return_inverse=True)
    return DatasetState(
        tuple(shards[i] for i in used),
        episodes.select(np.arange(len(episodes)), shard=shard),
        state.statistics,
        base=state.base,
        number=state.number,
    )


def find_units(
    store: Store,
    manifest: Manifest,
    units: list[int],
    present: set[str],
    *,
    without_snapshots: Set[int] = frozenset(),
) -> dict[int, tuple[ShardRecord, EpisodeTable]]:
    """The present shard of each unit, and its episodes there; units without a shard are left out.

    Args:
        store: the store of the dataset.
        manifest: the manifest of the dataset.
        units: the units to find.
        present: names of the existing shards.
        without_snapshots: damaged snapshots to skip.
    """
    found: dict[int, tuple[ShardRecord, EpisodeTable]] = {}
    committed = set(list_committed_units(store)) & set(units)
    for commit in read_commits(store, manifest, sorted(committed)):
        if commit.shard.name in present:
            state = state_of_commits([commit], manifest, 0)
            found[commit.unit] = (commit.shard, state.episodes)
    numbers = [number for number in list_snapshots(store) if number not in without_snapshots]
    if len(found) < len(units) and numbers:
        newest = read_snapshot(store, manifest, numbers[-1])
        for unit in units:
            of_unit = newest.episodes.select(newest.episodes.unit == unit)
            if unit not in found and len(of_unit) and newest.shards[int(of_unit.shard[0])].name in present:
                found[unit] = (newest.shards[int(of_unit.shard[0])], of_unit)
    return found

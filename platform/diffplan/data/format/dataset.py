"""Open a dataset: its episodes, and zero-copy access to their columns."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from diffplan.config import CollectionConfig, EnvConfig, config_from_dict
from diffplan.data.format.cache import fetch_shard
from diffplan.data.format.checksums import read_checked
from diffplan.data.format.commit_record import ShardRecord
from diffplan.data.format.episodes import EpisodeTable
from diffplan.data.format.manifest import MANIFEST_NAME, SHARDS, Column, Manifest
from diffplan.data.format.snapshot import (
    DatasetState,
    list_snapshots,
    read_snapshot,
    read_state,
    relocate,
    write_state,
)
from diffplan.data.format.statistics import ColumnStatistics
from diffplan.data.format.structure import CURE, check_structure
from diffplan.errors import DataError
from diffplan.files import open_file
from diffplan.storage.opening import open_store
from diffplan.storage.store import Store


@dataclass(frozen=True)
class TrajectoryDataset:
    """The state of a dataset when it was opened; later commits do not change it.

    Attributes:
        store: the store of the dataset.
        manifest: the manifest of the dataset.
        shards: its shards, in the order of their units.
        episodes: its episodes, in the order of units and rows.
        statistics: statistics of each column, over all episodes.
        snapshot: number of the opened snapshot, or None for all commits.
    """

    store: Store
    manifest: Manifest
    shards: tuple[ShardRecord, ...]
    episodes: EpisodeTable
    statistics: dict[str, ColumnStatistics]
    snapshot: int | None = None

    @property
    def uri(self) -> str:
        """Path or URL of the dataset."""
        return self.store.uri

    @property
    def env(self) -> EnvConfig:
        """The environment; that of the first task if tasks differ."""
        return config_from_dict(EnvConfig, self.manifest.env)

    @property
    def collection(self) -> CollectionConfig | None:
        """The settings of its collection; None for other data."""
        values = self.manifest.collection
        return None if values is None else config_from_dict(CollectionConfig, values)

    @property
    def num_steps(self) -> int:
        """Environment steps."""
        return int(self.episodes.length.sum(dtype=np.int64))

    @property
    def num_bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.num_bytes for shard in self.shards)

    def describe_column(self, name: str) -> Column:
        """The column of a name; raises `DataError` if there is none."""
        try:
            return self.manifest.column(name)
        except DataError as error:
            raise DataError(f"{self.uri}: {error}") from None

    def column(self, shard: ShardRecord, name: str) -> np.ndarray:
        """A column of a shard, [num_rows, *shape], mapped and read-only."""
        column = self.describe_column(name)
        mapped = self.map_shard(shard)
        count = shard.num_rows * column.size
        values = np.frombuffer(mapped, column.numpy_dtype, count, shard.offsets[name])
        return values.reshape(shard.num_rows, *column.shape)

    def episode_column(self, episode: int, name: str) -> np.ndarray:
        """A column of one episode, numbered as in `episodes`."""
        first, length = int(self.episodes.first_row[episode]), int(self.episodes.length[episode])
        return self.column(self.shards[self.episodes.shard[episode]], name)[first : first + length]

    def read_column(self, name: str) -> np.ndarray:
        """A column of the whole dataset, copied, in the order of `episodes`."""
        runs = [self.column(shard, name)[first : first + count] for shard, first, count in self.iterate_runs()]
        return np.concatenate(runs)

    def iterate_runs(self) -> Iterator[tuple[ShardRecord, int, int]]:
        """Runs of rows that are contiguous in a shard and in this dataset: shard, first row, number of rows."""
        for number, first_row, num_rows in self.episodes.runs():
            yield self.shards[number], first_row, num_rows

    def iterate_tables(self) -> Iterator[pa.Table]:
        """Each shard as an Arrow table, mapped, with the rows of this dataset only."""
        for number, shard in enumerate(self.shards):
            table = pa.ipc.open_file(pa.py_buffer(self.map_shard(shard))).read_all()
            chosen = self.episodes.shard == number
            lengths = self.episodes.length[chosen]
            if lengths.sum() != shard.num_rows:  # a compacted shard has units that an older snapshot lacks
                firsts = self.episodes.first_row[chosen]
                table = pa.concat_tables([table.slice(f, n) for f, n in zip(firsts, lengths, strict=True)])
            yield table

    def content_hash(self) -> str:
        """SHA-256 of all episodes by number: equal for equal content, independent of writers and shard sizes."""
        digest = hashlib.sha256(repr([(c.name, c.shape, c.dtype) for c in self.manifest.columns]).encode())
        records = list(self.episodes)
        for i in np.argsort([record.episode_index for record in records]):
            e = records[i]
            for column in self.manifest.columns:
                digest.update(self.episode_column(int(i), column.name).tobytes())
            known = (e.episode_index, e.seed, e.behavior, e.task, e.length, e.terminated, e.truncated, e.options)
            digest.update(repr((*known, e.final_observation, sorted(e.final_values.items()))).encode())
        return digest.hexdigest()

    def map_shard(self, shard: ShardRecord) -> mmap.mmap:
        """The bytes of a shard, mapped; its structure is checked on first use."""
        maps: dict[str, mmap.mmap] = self.__dict__.setdefault("_maps", {})
        if shard.name not in maps:
            path = fetch_shard(self.store, shard, self.manifest.dataset_uuid)
            mapped = _map(path, shard.num_bytes)
            check_structure(path, pa.py_buffer(mapped), shard, self.manifest)
            maps[shard.name] = mapped
        return maps[shard.name]

    def verify_shards(self) -> None:
        """Verify the checksums of all shards; raises `DataError` at the first damage."""
        for shard in self.shards:
            for _ in read_checked(self.store, shard):
                pass

    def check_sizes(self) -> None:
        """Raise `DataError` if the size of a mapped shard has changed.

        An access to a mapping beyond the end of its file kills the process (SIGBUS), so long-running readers call this
        from time to time. A shard that shrinks between the check and the access is not detected. A shard that was
        deleted, or replaced by another file, stays valid in existing mappings.
        """
        for name, mapped in self.__dict__.get("_maps", {}).items():
            try:
                num_bytes = mapped.size()  # of the mapped file, which may have another name by now
            except OSError as error:  # stale handle of a file server
                raise DataError(f"{self.store.locate(name)}: {_reason(error)}; open the dataset again") from None
            if num_bytes != len(mapped):
                raise DataError(
                    f"{self.store.locate(name)}: expected {len(mapped)} bytes, got {num_bytes}; it was changed: {CURE}"
                )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_maps"}


def open_dataset(path: str | Path | Store, *, snapshot: int | None = None) -> TrajectoryDataset:
    """Open a dataset for reading.

    Checked at once: the manifest, every commit that is read, that shards exist with their exact size, and that no
    episode occurs twice. The structure of a shard is checked on first access, checksums by `diffplan data verify`.

    Args:
        path: directory or URL of the dataset.
        snapshot: number of a snapshot to open; None for everything committed so far.

    Raises:
        DataError: not a dataset, damaged, or without episodes.
    """
    store = open_store(path)
    manifest = read_manifest(store)
    state = read_state(store, manifest) if snapshot is None else read_snapshot(store, manifest, snapshot)
    if state is None or not len(state.episodes):
        raise DataError(f"{store.uri}: the dataset has no episodes yet; go on with `diffplan collect … --resume`")
    state = relocate(store, manifest, state)
    _check_sizes(store, state)
    dataset = TrajectoryDataset(store, manifest, state.shards, state.episodes, state.statistics, snapshot)
    _check_unique(dataset)
    return dataset


def read_manifest(store: Store) -> Manifest:
    """The manifest of a dataset; raises `DataError` if there is none or it is damaged."""
    try:
        content = store.read(MANIFEST_NAME)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise DataError(
            f"{store.uri}: expected a dataset (no {MANIFEST_NAME} there); make one with `diffplan collect`"
        ) from None
    return Manifest.from_json(content, store.locate(MANIFEST_NAME))


def write_snapshot(dataset: TrajectoryDataset) -> int:
    """Make sure that a snapshot has everything committed so far, and return its number.

    No new one is written if the newest snapshot is up to date.
    """
    return pin_commits(dataset.store, dataset.manifest)


def pin_commits(store: Store, manifest: Manifest) -> int:
    """`write_snapshot` without opening the dataset, which would read all its commits again.

    Raises:
        DataError: no commits, or a damaged or missing shard.
    """
    while True:
        numbers = list_snapshots(store)
        state = read_state(store, manifest)
        if state is None:
            raise DataError(f"{store.uri}: the dataset has no episodes to pin")
        current = relocate(store, manifest, state)
        if current is state and state.number is not None:
            return state.number
        _check_sizes(store, current)
        number = write_state(store, manifest, replace(current, base=numbers[-1] if numbers else None))
        if number is not None:
            return number


def list_orphans(dataset: TrajectoryDataset) -> list[str]:
    """Unreferenced shards: left by killed writers, or replaced; invisible to readers."""
    state = read_state(dataset.store, dataset.manifest)
    named = set() if state is None else {shard.name for shard in state.shards}
    stored = (shard.name for shard in dataset.store.list(SHARDS))
    return [name for name in stored if name.endswith(".arrow") and name not in named]


def _map(path: Path, num_bytes: int) -> mmap.mmap:
    """Map a shard; raises `DataError` if it is missing, has another size or cannot be mapped."""
    try:
        with open_file(path) as file:
            found = os.fstat(file.fileno()).st_size
            if found == num_bytes and found > 0:
                return mmap.mmap(file.fileno(), found, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise DataError(f"{path}: the shard is gone; open the dataset again") from None
    except OSError as error:
        cure = "check the permissions and the disk, then try again"
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            cure = (
                "many shards need as many mappings: raise the limits (ulimit -n, vm.max_map_count) or compact the "
                "dataset"
            )
        raise DataError(f"{path}: expected a shard to map, got {_reason(error)}; {cure}") from None
    raise DataError(f"{path}: expected {num_bytes} bytes, got {found}; the shard was changed: {CURE}")


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def find_repeated(episodes: EpisodeTable) -> Iterator[tuple[int, int, int]]:
    """Episodes that occur more than once: number, first unit, other unit."""
    numbers = episodes.column("episode_index")
    ordered = np.sort(numbers)
    if not (ordered[1:] == ordered[:-1]).any():  # shortcut, three times as fast as the general case
        return
    order = np.argsort(numbers, kind="stable")
    for place in np.flatnonzero(numbers[order][1:] == numbers[order][:-1]):
        first, again = order[place], order[place + 1]
        yield int(numbers[first]), int(episodes.unit[first]), int(episodes.unit[again])


def describe_repeated(uri: str, number: int, first: int, again: int) -> DataError:
    """The error of an episode that occurs more than once."""
    return DataError(
        f"{uri}: episode {number} occurs more than once, in the units {first} and {again}; run `diffplan data verify "
        "--drop_damaged`, then make the second one again with other numbers"
    )


def _check_unique(dataset: TrajectoryDataset) -> None:
    for number, first, again in find_repeated(dataset.episodes):
        raise describe_repeated(dataset.uri, number, first, again)


def _check_sizes(store: Store, state: DatasetState) -> None:
    sizes = {stored.name: stored.num_bytes for stored in store.list(SHARDS)}
    for shard in state.shards:
        if sizes.get(shard.name) != shard.num_bytes:
            raise DataError(
                f"{store.locate(shard.name)}: expected {shard.num_bytes} bytes, got {sizes.get(shard.name)}; the shard "
                "is truncated or was changed: run `diffplan data verify --drop_damaged`, then make its units again"
            )


__all__ = [
    "TrajectoryDataset",
    "list_orphans",
    "list_snapshots",
    "open_dataset",
    "read_manifest",
    "write_snapshot",
]

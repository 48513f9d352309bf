"""Open a dataset: which episodes there are, and zero-copy access to their columns."""

from __future__ import annotations

import functools
import hashlib
import mmap
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diffplan.config import CollectionConfig, EnvConfig, config_from_dict
from diffplan.data.commit import CommitRecord, EpisodeRecord, put_if_absent
from diffplan.data.format import COMMITS, MANIFEST_NAME, SHARDS, SNAPSHOTS, Manifest, VectorColumn
from diffplan.data.statistics import ColumnStatistics, merge_statistics
from diffplan.data.writer import locate_buffers
from diffplan.errors import DataError


@dataclass(frozen=True)
class TrajectoryDataset:
    """A dataset as it was when opened: later commits do not change it.

    Attributes:
        root: its directory.
        manifest: what all shards share.
        commits: the committed units, ascending.
        snapshot: number of the snapshot that it was opened at, or None for all commits.
    """

    root: Path
    manifest: Manifest
    commits: tuple[CommitRecord, ...]
    snapshot: int | None = None

    @property
    def env(self) -> EnvConfig:
        """The environment it was collected in."""
        return config_from_dict(EnvConfig, self.manifest.env)

    @property
    def collection(self) -> CollectionConfig:
        """How it was collected."""
        return config_from_dict(CollectionConfig, self.manifest.collection)

    @functools.cached_property
    def episodes(self) -> tuple[EpisodeRecord, ...]:
        """All episodes, by unit and row."""
        return tuple(episode for commit in self.commits for episode in commit.episodes)

    @property
    def num_steps(self) -> int:
        """Environment steps."""
        return sum(commit.num_rows for commit in self.commits)

    @property
    def num_bytes(self) -> int:
        """Size of all shards."""
        return sum(commit.num_bytes for commit in self.commits)

    @functools.cached_property
    def statistics(self) -> dict[str, ColumnStatistics]:
        """Statistics of each float column over all shards."""
        return {
            column.name: merge_statistics(commit.statistics[column.name] for commit in self.commits)
            for column in self.manifest.float_columns
        }

    def column_size(self, name: str) -> int:
        """Entries per row of a float column, 0 for a plain one; raises `DataError` if there is none."""
        for column in self.manifest.float_columns:
            if column.name == name:
                return column.size
        known = ", ".join(column.name for column in self.manifest.float_columns)
        raise DataError(f"{self.root}: expected one of the columns {known}, got {name!r}")

    def column(self, commit: CommitRecord, name: str) -> np.ndarray:
        """A float column of a shard, float32[num_rows, size] or float32[num_rows], mapped and read-only."""
        size = self.column_size(name)
        mapped = self._map(commit)  # checks the buffers
        buffer = commit.buffers[name]
        values = np.frombuffer(mapped, np.float32, buffer.num_bytes // 4, buffer.offset)
        return values.reshape(commit.num_rows, size) if size else values

    def read_column(self, name: str) -> np.ndarray:
        """A float column of the whole dataset, copied, in the order of `episodes`."""
        return np.concatenate([self.column(commit, name) for commit in self.commits])

    def iterate_tables(self) -> Iterator[pa.Table]:
        """Each shard as an Arrow table, mapped."""
        for commit in self.commits:
            self._map(commit)
            yield pa.ipc.open_file(pa.memory_map(str(self.root / commit.shard))).read_all()

    def content_hash(self) -> str:
        """SHA-256 of all episodes: equal for two datasets with the same content, whoever wrote them when."""
        digest = hashlib.sha256()
        for commit in self.commits:
            for column in self.manifest.float_columns:
                digest.update(self.column(commit, column.name).tobytes())
            for e in commit.episodes:
                digest.update(repr((e.episode_index, e.seed, e.length, e.terminated, e.truncated)).encode())
                digest.update(np.asarray(e.final_observation, dtype=np.float32).tobytes())
        return digest.hexdigest()

    def verify(self) -> Iterator[CommitRecord]:
        """Check every byte of every shard, yielding each commit after its shard was found good.

        Raises:
            DataError: a shard does not match the checksum in its commit.
        """
        for commit in self.commits:
            crc32 = zlib.crc32(self._map(commit))
            if crc32 != commit.crc32:
                raise DataError(
                    f"{self.root / commit.shard}: expected checksum {commit.crc32:08x}, got {crc32:08x}; the shard is "
                    f"damaged: delete it with its commit {commit.unit:08d}.json and collect again with --resume"
                )
            yield commit

    def _map(self, commit: CommitRecord) -> mmap.mmap:
        """Map a shard; its structure is checked the first time."""
        maps: dict[int, mmap.mmap] = self.__dict__.setdefault("_maps", {})
        if commit.unit not in maps:
            path = self.root / commit.shard
            _check_size(path, commit)
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            _check_shard(path, mapped, commit, self.manifest)
            maps[commit.unit] = mapped
        return maps[commit.unit]


def open_dataset(path: str | Path, *, snapshot: int | None = None) -> TrajectoryDataset:
    """Open a dataset for reading.

    Checked at once: the manifest, every commit, that shards exist with their exact size and that no episode occurs
    twice. The structure of a shard is checked on first touch, checksums by `verify`.

    Args:
        path: directory of the dataset.
        snapshot: number of a snapshot to open; None for everything committed so far.

    Raises:
        DataError: not a dataset, damaged, or without episodes.
    """
    root = Path(path)
    manifest_path = root / MANIFEST_NAME
    if not manifest_path.is_file():
        raise DataError(f"{root}: expected a dataset (no {MANIFEST_NAME} there); make one with `diffplan collect`")
    manifest = Manifest.from_json(manifest_path.read_bytes(), manifest_path)
    commits = read_commits(root, manifest)
    if snapshot is not None:
        units = _read_snapshot_units(root, snapshot)
        missing = sorted(units - {commit.unit for commit in commits})
        if missing:
            raise DataError(f"{root}: snapshot {snapshot} lists unit {missing[0]}, which has no commit; is it damaged?")
        commits = tuple(commit for commit in commits if commit.unit in units)
    if not commits:
        raise DataError(f"{root}: the dataset has no episodes yet; go on with `diffplan collect … --resume`")
    for commit in commits:
        _check_size(root / commit.shard, commit)
    dataset = TrajectoryDataset(root, manifest, commits, snapshot)
    indices = [episode.episode_index for episode in dataset.episodes]
    if len(set(indices)) != len(indices):
        twice = next(i for i in indices if indices.count(i) > 1)
        raise DataError(f"{root}: episode {twice} occurs in more than one shard; the dataset is damaged")
    return dataset


def read_commits(root: Path, manifest: Manifest) -> tuple[CommitRecord, ...]:
    """All commits of a dataset, ascending by unit; raises `DataError` for a damaged or foreign one."""
    commits = []
    for path in sorted((root / COMMITS).glob("*.json")):
        commit = CommitRecord.from_json(path.read_bytes(), path)
        if commit.dataset_uuid != manifest.dataset_uuid:
            raise DataError(f"{path}: expected dataset {manifest.dataset_uuid}, got {commit.dataset_uuid}; misplaced?")
        if path.stem != f"{commit.unit:08d}":
            raise DataError(f"{path}: expected unit {path.stem}, got {commit.unit}; was the file renamed?")
        if set(commit.statistics) != {column.name for column in manifest.float_columns}:
            raise DataError(f"{path}: its statistics are not of the columns of {MANIFEST_NAME}; the commit is damaged")
        commits.append(commit)
    return tuple(commits)


def write_snapshot(dataset: TrajectoryDataset) -> int:
    """Write the next snapshot of a dataset, one row per episode, and return its number.

    A dataset whose newest snapshot already holds the same units gets no new one.
    """
    directory = dataset.root / SNAPSHOTS
    directory.mkdir(exist_ok=True)
    numbers = list_snapshots(dataset.root)
    units = {commit.unit for commit in dataset.commits}
    if numbers and _read_snapshot_units(dataset.root, numbers[-1]) == units:
        return numbers[-1]
    rows = [
        {
            "unit": commit.unit,
            "shard": commit.shard,
            "shard_num_bytes": commit.num_bytes,
            "shard_crc32": commit.crc32,
            "episode_index": e.episode_index,
            "first_row": e.first_row,
            "length": e.length,
            "undiscounted_return": e.undiscounted_return,
            "terminated": e.terminated,
            "truncated": e.truncated,
            "behavior": e.behavior,
        }
        for commit in dataset.commits
        for e in commit.episodes
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, compression="zstd")
    content = sink.getvalue().to_pybytes()
    number = numbers[-1] + 1 if numbers else 0
    while not put_if_absent(directory / f"{number}.parquet", content):
        number += 1
    return number


def list_snapshots(root: Path) -> list[int]:
    """Numbers of the snapshots of a dataset, ascending."""
    return sorted(int(path.stem) for path in (root / SNAPSHOTS).glob("*.parquet") if path.stem.isdigit())


def list_orphans(dataset: TrajectoryDataset) -> list[Path]:
    """Shards that no commit names: left by writers that were killed, invisible to readers."""
    named = {commit.shard for commit in read_commits(dataset.root, dataset.manifest)}
    return [p for p in sorted((dataset.root / SHARDS).glob("*.arrow")) if f"{SHARDS}/{p.name}" not in named]


def _read_snapshot_units(root: Path, number: int) -> set[int]:
    path = root / SNAPSHOTS / f"{number}.parquet"
    try:
        return set(pq.read_table(path, columns=["unit"]).column("unit").to_pylist())
    except FileNotFoundError:
        raise DataError(f"{root}: expected one of the snapshots {list_snapshots(root)}, got {number}") from None
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise DataError(f"{path}: expected a snapshot, got something else ({error}); delete it") from None


def _check_size(path: Path, commit: CommitRecord) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise DataError(
            f"{path}: the shard of unit {commit.unit} is missing; delete commits/{commit.unit:08d}.json and collect "
            "again with --resume"
        ) from None
    if size != commit.num_bytes:
        raise DataError(
            f"{path}: expected {commit.num_bytes} bytes, got {size}; the shard is truncated or was changed: delete it "
            f"with commits/{commit.unit:08d}.json and collect again with --resume"
        )


def _check_shard(path: Path, mapped: mmap.mmap, commit: CommitRecord, manifest: Manifest) -> None:
    content = pa.py_buffer(mapped)
    try:
        reader = pa.ipc.open_file(content)
        num_batches = reader.num_record_batches
        schema = reader.schema.remove_metadata()
        names = schema.names
        num_rows = reader.get_batch(0).num_rows if num_batches else 0
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected an Arrow IPC file, got something else ({error}); is it damaged?") from None
    if num_batches != 1 or num_rows != commit.num_rows:
        raise DataError(
            f"{path}: expected 1 record batch of {commit.num_rows} rows, got {num_batches} with {num_rows} in the first"
        )
    if not schema.equals(manifest.arrow_schema):
        raise DataError(f"{path}: expected the columns {_names(manifest)}, got {names} or other types")
    if locate_buffers(content, manifest) != commit.buffers:
        raise DataError(f"{path}: columns do not lie where the commit says; shard or commit is damaged")


def _names(manifest: Manifest) -> list[str]:
    return [field.name for field in manifest.arrow_schema]


__all__ = [
    "TrajectoryDataset",
    "VectorColumn",
    "list_orphans",
    "list_snapshots",
    "open_dataset",
    "read_commits",
    "write_snapshot",
]

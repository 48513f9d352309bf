"""Exactly-once commits: a unit of a dataset exists from the moment that its commit record does.

A writer writes its shard under a name of its own attempt, makes it durable, and then puts the commit record if there is
none. Whoever comes second finds a record, reads it and drops its own shard. There is no lock and no rename of data.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from diffplan.data.commit_checks import check_record
from diffplan.data.format import COMMITS, SHARDS, commit_name
from diffplan.data.record import decode_record, encode_record
from diffplan.data.statistics import ColumnStatistics
from diffplan.data.store import Store
from diffplan.errors import DataError

CHUNK_BYTES = 2**20
"""Bytes of a shard under one checksum, so that a piece of it can be checked alone."""


@dataclass(frozen=True)
class EpisodeRecord:
    """An episode as its commit describes it.

    Attributes:
        episode_index: number of the episode in its dataset.
        seed: seed that the environment was reset with, where known.
        behavior: what acted.
        first_row: its first row, counted from the start of the shard.
        length: its steps.
        undiscounted_return: sum of its rewards.
        terminated: whether the environment ended it.
        truncated: whether a limit ended it.
        final_observation: observation after the last action, flattened.
        task: number of its task in a merged dataset.
        final_values: value after the last action of each further column that has one, flattened.
        options: options that the environment was reset with, where known.
    """

    episode_index: int
    seed: int | None
    behavior: str
    first_row: int
    length: int
    undiscounted_return: float
    terminated: bool
    truncated: bool
    final_observation: list[float]
    task: int = 0
    final_values: dict[str, list[Any]] = field(default_factory=dict)
    options: dict[str, Any] | None = None


@dataclass(frozen=True)
class ShardRecord:
    """A shard, described well enough to map it or read ranges of it without Arrow.

    Attributes:
        name: its name in the store.
        num_bytes: its size.
        num_rows: its rows.
        offsets: byte at which the values of each column begin.
        checksums: CRC-32 of each `CHUNK_BYTES` of it.
    """

    name: str
    num_bytes: int
    num_rows: int
    offsets: dict[str, int]
    checksums: tuple[int, ...]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ShardRecord:
        """Read from JSON values; raises `ValueError`, `TypeError` or `KeyError` if they are no shard."""
        shard = cls(**{**values, "checksums": tuple(values["checksums"])})
        if not isinstance(shard.name, str) or not re.fullmatch(rf"{SHARDS}/[\w-]+\.arrow", shard.name):
            raise ValueError(f"expected a shard inside the dataset, got {shard.name!r}")
        counts = [shard.num_bytes, shard.num_rows, *shard.offsets.values(), *shard.checksums]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError(f"a number of shard {shard.name} is no count")
        if len(shard.checksums) != -(-shard.num_bytes // CHUNK_BYTES):
            raise ValueError(f"shard {shard.name} of {shard.num_bytes} bytes has {len(shard.checksums)} checksums")
        return shard


@dataclass(frozen=True)
class CommitRecord:
    """The commit of a unit.

    Attributes:
        unit: index of the unit.
        dataset_uuid: the dataset it belongs to.
        attempt: random name of the attempt that wrote the shard.
        shard: where its rows are.
        episodes: the episodes, in the order of the rows.
        statistics: summary of each column.
        provenance: versions and host of the writer.
    """

    unit: int
    dataset_uuid: str
    attempt: str
    shard: ShardRecord
    episodes: tuple[EpisodeRecord, ...]
    statistics: dict[str, ColumnStatistics]
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """The record as it lies on disk."""
        values = asdict(replace(self, statistics={}))  # arrays would be copied one by one
        values["statistics"] = {name: statistics.to_dict() for name, statistics in self.statistics.items()}
        return encode_record(values)

    @classmethod
    def from_json(cls, text: bytes, path: str) -> CommitRecord:
        """Read a record that lies at a path; raises `DataError` if it is damaged."""
        try:
            values = decode_record(text)
            values["shard"] = ShardRecord.from_dict(values["shard"])
            values["episodes"] = tuple(EpisodeRecord(**e) for e in values["episodes"])
            values["statistics"] = {k: ColumnStatistics.from_dict(v) for k, v in values["statistics"].items()}
            record = cls(**values)
            check_record(record)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{path}: expected a commit record, got something else ({type(error).__name__}: {error}); "
                "delete it and make its unit again (collect with --resume, or import again)"
            ) from None
        return record


def commit_unit(store: Store, record: CommitRecord) -> CommitRecord:
    """Commit a unit whose shard has been written durably.

    Returns:
        The record that counts: this one, or that of the attempt that came first, in which case this attempt's shard
        is deleted.
    """
    if store.put_if_absent(commit_name(record.unit), record.to_json()):
        return record
    winner = read_commit(store, record.unit)
    if winner.attempt != record.attempt:
        store.delete(record.shard.name)
    return winner


def read_commit(store: Store, unit: int) -> CommitRecord:
    """The commit of a unit; raises `DataError` if it is damaged, `FileNotFoundError` if there is none."""
    name = commit_name(unit)
    path = store.locate(name)
    record = CommitRecord.from_json(store.read(name), path)
    if record.unit != unit:
        raise DataError(
            f"{path}: expected unit {unit}, got {record.unit}; was the file renamed? Give it back "
            "its name, or delete it and make its unit again"
        )
    return record


def list_committed_units(store: Store) -> list[int]:
    """Units that have a commit, ascending; no record is read."""
    matches = (re.fullmatch(rf"{COMMITS}/(\d{{8,}})\.json", stored.name) for stored in store.list(COMMITS))
    return sorted(int(match[1]) for match in matches if match)

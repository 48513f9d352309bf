"""Exactly-once commits: a unit of a dataset exists from the moment that its commit record does.

A writer writes its shard under a name of its own attempt, makes it durable, and then puts the commit record if there is
none. Whoever comes second finds a record, reads it and drops its own shard. There is no lock and no rename of data.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from diffplan.data.format import commit_path
from diffplan.data.record import decode_record, encode_record
from diffplan.data.statistics import ColumnStatistics
from diffplan.errors import DataError


@dataclass(frozen=True)
class EpisodeRecord:
    """An episode as its commit describes it; `first_row` counts from the start of the shard."""

    episode_index: int
    seed: int
    behavior: str
    first_row: int
    length: int
    undiscounted_return: float
    terminated: bool
    truncated: bool
    final_observation: list[float]


@dataclass(frozen=True)
class BufferRecord:
    """Where the values of a column lie in its shard, so that they can be mapped without Arrow."""

    offset: int
    num_bytes: int


@dataclass(frozen=True)
class CommitRecord:
    """The commit of a unit.

    Attributes:
        unit: index of the unit.
        dataset_uuid: the dataset it belongs to.
        attempt: random name of the attempt that wrote the shard.
        shard: path of the shard relative to the dataset.
        num_bytes: size of the shard.
        crc32: checksum of the shard.
        num_rows: rows of the shard.
        buffers: where each float32 column lies.
        episodes: the episodes, in the order of the rows.
        statistics: summary of each float32 column.
        provenance: versions and host of the writer.
    """

    unit: int
    dataset_uuid: str
    attempt: str
    shard: str
    num_bytes: int
    crc32: int
    num_rows: int
    buffers: dict[str, BufferRecord]
    episodes: tuple[EpisodeRecord, ...]
    statistics: dict[str, ColumnStatistics]
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """The record as it lies on disk."""
        values = {**asdict(self), "statistics": {k: v.to_dict() for k, v in self.statistics.items()}}
        return encode_record(values)

    @classmethod
    def from_json(cls, text: bytes, path: Path) -> CommitRecord:
        """Read a record; raises `DataError` if it is damaged."""
        try:
            values = decode_record(text)
            values["buffers"] = {k: BufferRecord(**v) for k, v in values["buffers"].items()}
            values["episodes"] = tuple(EpisodeRecord(**e) for e in values["episodes"])
            values["statistics"] = {k: ColumnStatistics.from_dict(v) for k, v in values["statistics"].items()}
            record = cls(**values)
            _check_types(record)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}: expected a commit record, got something else ({type(error).__name__}: {error}); "
                "delete it and collect again with --resume"
            ) from None
        shard = Path(record.shard)
        if shard.is_absolute() or ".." in shard.parts:
            raise DataError(f"{path}: expected a shard inside the dataset, got {record.shard!r}; the commit is damaged")
        return record


def _check_types(record: CommitRecord) -> None:
    """Raise `ValueError` unless numbers are counts and the episodes fill the shard one after the other."""
    for name in ("dataset_uuid", "attempt", "shard"):
        if not isinstance(getattr(record, name), str):
            raise ValueError(f"{name} is no text")
    for name in ("unit", "num_bytes", "crc32", "num_rows"):
        if type(getattr(record, name)) is not int or getattr(record, name) < 0:
            raise ValueError(f"{name} is no count")
    next_row = 0
    for episode in record.episodes:
        if type(episode.length) is not int or episode.length < 1 or episode.first_row != next_row:
            raise ValueError(f"episode {episode.episode_index!r} does not begin where the one before it ends")
        next_row += episode.length
    if next_row != record.num_rows:
        raise ValueError(f"its episodes have {next_row} rows, its shard {record.num_rows}")


def put_if_absent(path: Path, content: bytes) -> bool:
    """Create a file with its whole content, durably, unless it exists; atomic among any number of writers.

    Returns:
        Whether this call created the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tmp-{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        sync_directory(path.parent)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit_unit(root: Path, record: CommitRecord) -> CommitRecord:
    """Commit a unit whose shard has been written and synced.

    Returns:
        The record that counts: this one, or that of the attempt that came first, in which case this attempt's shard
        is deleted.
    """
    path = commit_path(root, record.unit)
    if put_if_absent(path, record.to_json()):
        return record
    winner = CommitRecord.from_json(path.read_bytes(), path)
    if winner.attempt != record.attempt:
        (root / record.shard).unlink(missing_ok=True)
    return winner

"""Exactly-once commits: a unit of a dataset exists if and only if its commit record exists.

A writer writes its shard under a name that is unique to the attempt, makes it durable, and then creates the commit
record, which fails if there is one already. A second writer of the unit then deletes its own shard. There is no lock,
and no data are renamed.
"""

from __future__ import annotations

import re
from dataclasses import asdict, replace

from diffplan.data.format.commit_checks import check_record
from diffplan.data.format.commit_record import CommitRecord, EpisodeRecord, ShardRecord
from diffplan.data.format.manifest import COMMITS, commit_name
from diffplan.data.format.record import decode_record, encode_record
from diffplan.data.format.statistics import ColumnStatistics
from diffplan.errors import DataError
from diffplan.storage.store import Store


def encode_commit(record: CommitRecord) -> bytes:
    """The bytes of a commit in its file."""
    values = asdict(replace(record, statistics={}))  # asdict would copy the arrays
    values["statistics"] = {name: statistics.to_dict() for name, statistics in record.statistics.items()}
    return encode_record(values)


def decode_commit(text: bytes, path: str) -> CommitRecord:
    """Decode a commit from the bytes of a file; raises `DataError` if it is damaged."""
    try:
        values = decode_record(text)
        values["shard"] = ShardRecord.from_dict(values["shard"])
        values["episodes"] = tuple(EpisodeRecord(**e) for e in values["episodes"])
        values["statistics"] = {k: ColumnStatistics.from_dict(v) for k, v in values["statistics"].items()}
        record = CommitRecord(**values)
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
        The valid record: this one, or that of an earlier attempt; in this case the shard of this attempt is
        deleted.
    """
    if store.put_if_absent(commit_name(record.unit), encode_commit(record)):
        return record
    winner = read_commit(store, record.unit)
    if winner.attempt != record.attempt:
        store.delete(record.shard.name)
    return winner


def read_commit(store: Store, unit: int) -> CommitRecord:
    """The commit of a unit; raises `DataError` if it is damaged, `FileNotFoundError` if there is none."""
    name = commit_name(unit)
    path = store.locate(name)
    record = decode_commit(store.read(name), path)
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

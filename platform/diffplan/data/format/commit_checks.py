"""Validation of commits and snapshots. Checksums do not suffice, because those of a faulty writer match too.

All values that are used later without a check are validated here: types and ranges, offsets inside the shard, and the
number of rows of statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from diffplan.data.format.commit_record import CommitRecord, EpisodeRecord, ShardRecord
from diffplan.data.format.manifest import Column, Manifest
from diffplan.data.format.statistics import ColumnStatistics
from diffplan.errors import show_value
from diffplan.files import parse_json

LIMIT = 2**31
"""Numbers of units and of rows in a shard are below this, because the index stores them as 32-bit integers."""
TASK_LIMIT = 2**15
NOT_FINITE = ("nan", "inf", "-inf")
INT64 = range(-(2**63), 2**63)

# type() rather than isinstance(), because bool is a subclass of int.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "episode_index": lambda v: type(v) is int and v in INT64,
    "seed": lambda v: v is None or (type(v) is int and v in INT64),
    "behavior": lambda v: type(v) is str,
    "length": lambda v: type(v) is int and v >= 1,
    "undiscounted_return": lambda v: type(v) is float and math.isfinite(v),
    "terminated": lambda v: type(v) is bool,
    "truncated": lambda v: type(v) is bool,
    "task": lambda v: type(v) is int and 0 <= v < TASK_LIMIT,
    "final_observation": lambda v: type(v) is list,
    "final_values": lambda v: type(v) is dict,
    "options": lambda v: v is None or type(v) is dict,
}


def check_record(record: CommitRecord) -> None:
    """Raise `ValueError` unless the fields have their types and the episodes fill the shard without gaps."""
    for name in ("dataset_uuid", "attempt"):
        if not isinstance(getattr(record, name), str):
            raise ValueError(f"{name} is no text")
    if not isinstance(record.provenance, dict):
        raise ValueError("provenance is no object")
    check_unit(record.unit)
    check_episodes(record.episodes)
    next_row = 0
    for episode in record.episodes:
        if type(episode.first_row) is not int or episode.first_row != next_row:
            raise ValueError(f"episode {episode.episode_index} does not begin where the one before it ends")
        next_row += episode.length
    if next_row != record.shard.num_rows:
        raise ValueError(f"its episodes have {next_row} rows, its shard {record.shard.num_rows}")
    for name, statistics in record.statistics.items():
        if (statistics.count + statistics.num_nonfinite != next_row).any():
            raise ValueError(f"the statistics of {name} are not those of {next_row} rows")


def check_unit(unit: Any) -> None:
    """Raise `ValueError` unless this is a valid number of a unit."""
    if type(unit) is not int or not 0 <= unit < LIMIT:
        raise ValueError(f"expected a unit from 0 to {LIMIT - 1}, got {str(unit)[:40]!r}")


def check_episodes(episodes: tuple[EpisodeRecord, ...]) -> None:
    """Raise `ValueError` unless episodes have the types and ranges of the index, and distinct numbers."""
    for episode in episodes:
        for name, fits in _FIELDS.items():
            if not fits(value := getattr(episode, name)):
                number, got = str(episode.episode_index)[:20], repr(value)[:40]
                raise ValueError(f"episode {number} has the {name} {got}, of another type or out of range")
    if len({episode.episode_index for episode in episodes}) != len(episodes):
        raise ValueError("two of its episodes have the same number")
    if sum(episode.length for episode in episodes) >= LIMIT:
        raise ValueError(f"expected fewer than {LIMIT} rows in a unit")


def check_against(record: CommitRecord, manifest: Manifest) -> None:
    """Raise `ValueError` unless a commit matches the manifest of its dataset."""
    if not record.episodes:
        raise ValueError("it has no episodes")
    check_places(record.shard, manifest)
    check_statistics(record.statistics, manifest)
    finals = {column.name: column for column in manifest.extra_columns if column.has_final}
    for episode in record.episodes:
        _check_numbers(episode.final_observation, manifest.column("observation"), episode.episode_index)
        if set(episode.final_values) != set(finals):
            raise ValueError(f"episode {episode.episode_index} lacks a value after its last action")
        for name, column in finals.items():
            _check_numbers(episode.final_values[name], column, episode.episode_index)


def check_places(shard: ShardRecord, manifest: Manifest) -> None:
    """Raise `ValueError` unless a shard has the columns of the manifest, each inside the file."""
    if set(shard.offsets) != {column.name for column in manifest.columns}:
        raise ValueError("it does not describe the columns of the manifest")
    for column in manifest.columns:
        num_bytes = shard.num_rows * column.size * column.numpy_dtype.itemsize
        if shard.offsets[column.name] + num_bytes > shard.num_bytes:
            raise ValueError(f"column {column.name} would lie outside of {shard.name}")
    # Episode, time step and the values of a row; its two flags are bits.
    row_bytes = 8 + 4 + sum(column.size * column.numpy_dtype.itemsize for column in manifest.columns)
    if shard.num_rows * row_bytes > shard.num_bytes:
        raise ValueError(f"{shard.name} of {shard.num_bytes} bytes cannot hold {shard.num_rows} rows")


def check_index(core: dict[str, np.ndarray], shards: tuple[ShardRecord, ...]) -> None:
    """Raise `ValueError` unless episodes, given as the arrays of an index, are in order and inside their shards."""
    unit, shard, first, length, task = (core[name] for name in ("unit", "shard", "first_row", "length", "task"))
    fits = (unit >= 0) & (unit < LIMIT) & (shard >= 0) & (shard < len(shards))
    fits &= (first >= 0) & (length >= 1) & (task >= 0) & (task < TASK_LIMIT)
    if not fits.all() or (unit[1:] < unit[:-1]).any():
        raise ValueError("a number in its index of episodes is out of range or out of order")
    num_rows = np.array([shard.num_rows for shard in shards] or [0])
    if (num_rows >= LIMIT).any() or (first + length > num_rows[shard]).any():
        raise ValueError("an episode in its index would lie outside of its shard")


def check_table(table: pa.Table, manifest: Manifest) -> None:
    """Raise `ValueError` unless the episodes of a snapshot have the values that commits may have."""
    for column in table.column_names:
        values = table.column(column)
        if values.null_count and column not in ("seed", "details"):
            raise ValueError(f"{values.null_count} of its episodes have no {column}")
        for chunk in values.chunks:
            numbers = chunk.flatten() if pa.types.is_fixed_size_list(values.type) else chunk
            if numbers.null_count and column == "final_observation":
                raise ValueError(f"a number in {column} is missing")
            if pa.types.is_floating(numbers.type) and not np.isfinite(numbers.to_numpy(zero_copy_only=False)).all():
                raise ValueError(f"a number in {column} is NaN or infinite")
    finals = {column.name: column for column in manifest.extra_columns if column.has_final}
    details = table.column("details")
    if finals or details.null_count < len(details):
        for index, text in zip(table.column("episode_index").to_pylist(), details.to_pylist(), strict=True):
            _check_details(index, text, finals)


def _check_details(episode: int, text: str | None, finals: dict[str, Column]) -> None:
    """Raise `ValueError` unless a text holds what a snapshot keeps of an episode besides its columns."""
    found = parse_json(text or "{}")
    if not isinstance(found, dict) or not set(found) <= {"final_values", "options"}:
        raise ValueError(f"episode {episode} has the details {show_value(found)}")
    options, values = found.get("options"), found.get("final_values", {})
    if not (options is None or isinstance(options, dict)) or not isinstance(values, dict) or set(values) != set(finals):
        raise ValueError(f"episode {episode} has the details {show_value(found)}")
    for name, column in finals.items():
        _check_numbers(values[name], column, episode)


def check_statistics(statistics: dict[str, ColumnStatistics], manifest: Manifest) -> None:
    """Raise `ValueError` unless there are statistics for every entry of every column of the manifest."""
    if {name: len(s.mean) for name, s in statistics.items()} != {c.name: c.size for c in manifest.columns}:
        raise ValueError("its statistics are not those of the columns of the manifest")


def _check_numbers(values: Any, column: Column, episode: int) -> None:
    """Raise `ValueError` unless values are one row of a column; non-finite numbers are encoded as text."""
    dtype = column.numpy_dtype
    fits = isinstance(values, list) and len(values) == column.size
    if fits and dtype.kind == "f":
        may_be_text = column.name != "observation"
        numbers = [v for v in values if not (may_be_text and v in NOT_FINITE)]
        largest = float(np.finfo(dtype).max)
        fits = all(type(v) is float and abs(v) <= largest for v in numbers)
    elif fits:
        lowest, highest = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        fits = all(type(v) is int and lowest <= v <= highest for v in values)
    if not fits:
        raise ValueError(
            f"the {column.name} after the last action of episode {episode} is not {column.size} {column.dtype} numbers"
        )

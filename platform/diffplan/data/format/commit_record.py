"""The content of commits: shards and episodes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from diffplan.data.format.manifest import SHARDS
from diffplan.data.format.statistics import ColumnStatistics

CHUNK_BYTES = 2**20
"""Bytes of a shard per checksum, so that a part of it can be verified alone."""


@dataclass(frozen=True)
class EpisodeRecord:
    """The description of an episode in its commit.

    Attributes:
        episode_index: number of the episode in its dataset.
        seed: seed of the environment's reset, if known.
        behavior: the behavior that acted.
        first_row: its first row in the shard.
        length: its number of steps.
        undiscounted_return: sum of its rewards.
        terminated: whether the environment ended it.
        truncated: whether a time limit ended it.
        final_observation: observation after the last action, flattened.
        task: number of its task in a merged dataset.
        final_values: value after the last action of each further column that has one, flattened.
        options: options of the environment's reset, if known.
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
    """A shard, with the offsets to map it or read ranges of it without Arrow.

    Attributes:
        name: its name in the store.
        num_bytes: its size in bytes.
        num_rows: its number of rows.
        offsets: offset of the values of each column, in bytes.
        checksums: CRC-32 of each chunk of `CHUNK_BYTES`.
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
        dataset_uuid: uuid of its dataset.
        attempt: random name of the attempt that wrote the shard.
        shard: the shard with its rows.
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

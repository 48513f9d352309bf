"""Dataset format v1: the manifest, the columns of a shard and the names of files.

```
<root>/_dataset.json                  manifest, written once
       shards/<unit>-<attempt>.arrow  immutable Arrow IPC file, uncompressed, one record batch, one row per step
       commits/<unit>.json            the commit of a unit; a shard without one does not exist
       snapshots/<N>.parquet          one row per episode of all units committed at that moment
```

Manifest and commits carry checksums of their own; see `diffplan.data.record`.

Rows of a shard: `episode_index, t, observation, action, reward, termination, truncation` and named further columns.
Episodes are contiguous and never span shards. Row t holds the observation before action t; the observation after the
last action is in the commit, so an episode of T rows has T + 1 observations, as in Minari.
"""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from diffplan.data.record import decode_record, encode_record
from diffplan.errors import DataError

FORMAT_NAME = "diffplan-trajectories"
FORMAT_VERSION = 1
MANIFEST_NAME = "_dataset.json"
SHARDS, COMMITS, SNAPSHOTS = "shards", "commits", "snapshots"


@dataclass(frozen=True)
class VectorColumn:
    """A column of fixed-size float32 lists; size 0 stands for a plain float32 column."""

    name: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """What all shards of a dataset share.

    Attributes:
        dataset_uuid: names this dataset for good.
        env: the `EnvConfig` as a dict.
        collection: the `CollectionConfig` as a dict.
        observation_dim: size of an observation.
        action_dim: size of an action.
        action_low: lower bound of each action entry, None where unbounded.
        action_high: upper bound of each action entry, None where unbounded.
        extra_columns: further columns of a shard.
        features: names of format features that a reader must know; none so far.
    """

    dataset_uuid: str
    env: dict[str, Any]
    collection: dict[str, Any]
    observation_dim: int
    action_dim: int
    action_low: list[float | None]
    action_high: list[float | None]
    extra_columns: tuple[VectorColumn, ...] = ()
    features: tuple[str, ...] = ()

    @property
    def float_columns(self) -> tuple[VectorColumn, ...]:
        """All float32 columns of a shard."""
        return (
            VectorColumn("observation", self.observation_dim),
            VectorColumn("action", self.action_dim),
            VectorColumn("reward", 0),
            *self.extra_columns,
        )

    @property
    def arrow_schema(self) -> pa.Schema:
        """Schema of every shard, without metadata."""

        def arrow_type(column: VectorColumn) -> pa.DataType:
            return pa.list_(pa.float32(), column.size) if column.size else pa.float32()

        observation, action, reward, *extra = self.float_columns
        return pa.schema(
            [pa.field("episode_index", pa.int64(), nullable=False), pa.field("t", pa.int32(), nullable=False)]
            + [pa.field(c.name, arrow_type(c), nullable=False) for c in (observation, action, reward)]
            + [pa.field(name, pa.bool_(), nullable=False) for name in ("termination", "truncation")]
            + [pa.field(c.name, arrow_type(c), nullable=False) for c in extra]
        )

    def to_json(self) -> bytes:
        """The manifest as it lies on disk."""
        values = {"format": FORMAT_NAME, "format_version": FORMAT_VERSION, **asdict(self)}
        return encode_record(values)

    @classmethod
    def from_json(cls, text: bytes, path: Path) -> Manifest:
        """Read a manifest.

        Raises:
            DataError: not a manifest of a version that this reader knows.
        """
        try:
            values = decode_record(text)
            name, version = values.pop("format"), values.pop("format_version")
        except (ValueError, KeyError, AttributeError, TypeError):
            raise DataError(f"{path}: expected a dataset manifest (JSON), got something else; is it damaged?") from None
        if name != FORMAT_NAME or version != FORMAT_VERSION:
            raise DataError(
                f"{path}: expected {FORMAT_NAME} version {FORMAT_VERSION}, got {name} version {version}; "
                "read it with a diffplan of that version"
            )
        if unknown := values.get("features"):
            raise DataError(f"{path}: the dataset needs features {unknown} that this diffplan lacks; upgrade diffplan")
        try:
            values["extra_columns"] = tuple(VectorColumn(**column) for column in values["extra_columns"])
            values["features"] = tuple(values["features"])
            return cls(**values)
        except (TypeError, KeyError) as error:
            raise DataError(f"{path}: the manifest lacks or misnames a field ({error}); is it damaged?") from None


def new_dataset_uuid() -> str:
    """A fresh dataset uuid."""
    return str(uuid.uuid4())


def commit_path(root: Path, unit: int) -> Path:
    """Path of the commit of a unit."""
    return root / COMMITS / f"{unit:08d}.json"

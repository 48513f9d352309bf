"""Dataset format v1: the manifest, the columns of a shard and the names of files.

```
<root>/_dataset.json                  manifest, written once
       shards/<unit>-<attempt>.arrow  immutable Arrow IPC file, uncompressed, one record batch, one row per step
       commits/<unit>.json            the commit of a unit; a shard without one does not exist
       snapshots/<N>.parquet          all shards and episodes at one time; see `diffplan.data.format.snapshot`
```

Manifest and commits have their own checksums; see `diffplan.data.format.record`.

Columns of a shard: `episode_index, t, observation, action, reward, termination, truncation` and named further ones.
Episodes are contiguous and never span shards. Row t has the observation before action t; the observation after the
last action is in the commit, so an episode of T rows has T + 1 observations, as in Minari. A further column may have a
value after the last action too (`has_final`).
"""

from __future__ import annotations

import math
import re
import sys
import uuid
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from diffplan.config.environment import MAX_COLUMNS
from diffplan.data.format.record import decode_record, encode_record
from diffplan.errors import DataError, show_value

FORMAT_NAME = "diffplan-trajectories"
FORMAT_VERSION = 1
MANIFEST_NAME = "_dataset.json"
SHARDS, COMMITS, SNAPSHOTS = "shards", "commits", "snapshots"

ARROW_TYPES = {
    "float32": pa.float32(),
    "float64": pa.float64(),
    "int64": pa.int64(),
    "int32": pa.int32(),
    "uint8": pa.uint8(),
    "bool": pa.uint8(),  # Arrow packs booleans to bits, which cannot be mapped as an array
}
"""Possible types of the values of a column, with their Arrow types."""


@dataclass(frozen=True)
class Column:
    """A column of numbers, a fixed-size list per row.

    Attributes:
        name: its name; the parts of names from dict spaces and infos are joined by dots.
        shape: shape of the value of one row, () for a number.
        dtype: one of `ARROW_TYPES`.
        has_final: whether episodes have a value after their last action.
    """

    name: str
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    has_final: bool = False

    @property
    def size(self) -> int:
        """Numbers per row."""
        return math.prod(self.shape)

    @property
    def numpy_dtype(self) -> np.dtype:
        """Type of the values as an array."""
        return np.dtype(self.dtype)

    @property
    def arrow_type(self) -> pa.DataType:
        """Type of the column in a shard."""
        return pa.list_(ARROW_TYPES[self.dtype], self.size) if self.shape else ARROW_TYPES[self.dtype]


@dataclass(frozen=True)
class Task:
    """One of the datasets in a merged dataset.

    Attributes:
        name: its name for users.
        weight: its share of the windows, relative to those of the other tasks.
        dataset_uuid: uuid of the original dataset.
        env: its environment, the `EnvConfig` as a dict.
        num_units: its number of units, which follow those of the tasks before it.
    """

    name: str
    weight: float
    dataset_uuid: str
    env: dict[str, Any]
    num_units: int


@dataclass(frozen=True)
class Manifest:
    """The common description of all shards of a dataset.

    Attributes:
        dataset_uuid: permanent id of this dataset.
        env: the `EnvConfig` as a dict.
        columns: columns of a shard: observation, action, reward and further ones.
        action_low: lower bound of each action entry, None if unbounded.
        action_high: upper bound of each action entry, None if unbounded.
        collection: the `CollectionConfig` as a dict, None for other data.
        source: origin of data that were not collected: `kind` and metadata of its format.
        spaces: `observation` and `action` space in Minari's form, if known.
        env_spec: the Gymnasium spec of the environment as JSON text, if known.
        tasks: the original datasets of a merged dataset.
        features: names of format features that a reader must support; none so far.
    """

    dataset_uuid: str
    env: dict[str, Any]
    columns: tuple[Column, ...]
    action_low: list[float | None]
    action_high: list[float | None]
    collection: dict[str, Any] | None = None
    source: dict[str, Any] = field(default_factory=dict)
    spaces: dict[str, Any] = field(default_factory=dict)
    env_spec: str | None = None
    tasks: tuple[Task, ...] = ()
    features: tuple[str, ...] = ()

    @property
    def observation_dim(self) -> int:
        """Size of an observation."""
        return self.column("observation").size

    @property
    def action_dim(self) -> int:
        """Size of an action."""
        return self.column("action").size

    @property
    def extra_columns(self) -> tuple[Column, ...]:
        """Columns besides observation, action and reward."""
        return self.columns[3:]

    def column(self, name: str) -> Column:
        """The column of a name; raises `DataError` if there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise DataError(f"expected one of the columns {', '.join(c.name for c in self.columns)}, got {name!r}")

    @property
    def arrow_schema(self) -> pa.Schema:
        """Schema of every shard, without metadata."""
        observation, action, reward, *extra = self.columns
        return pa.schema(
            [pa.field("episode_index", pa.int64(), nullable=False), pa.field("t", pa.int32(), nullable=False)]
            + [pa.field(c.name, c.arrow_type, nullable=False) for c in (observation, action, reward)]
            + [pa.field(name, pa.bool_(), nullable=False) for name in ("termination", "truncation")]
            + [pa.field(c.name, c.arrow_type, nullable=False) for c in extra]
        )

    def to_json(self) -> bytes:
        """The bytes of the manifest in its file."""
        values = {"format": FORMAT_NAME, "format_version": FORMAT_VERSION, **asdict(self)}
        return encode_record(values)

    @classmethod
    def from_json(cls, text: bytes, path: object) -> Manifest:
        """Decode a manifest from the bytes of a file.

        Raises:
            DataError: not a manifest of a version that this reader supports.
        """
        try:
            values = decode_record(text)
            name, version = values.pop("format"), values.pop("format_version")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            raise DataError(
                f"{path}: expected a dataset manifest (JSON), got something else; is it damaged? Put "
                "it back from a copy"
            ) from None
        if name != FORMAT_NAME or version != FORMAT_VERSION:
            raise DataError(
                f"{path}: expected {FORMAT_NAME} version {FORMAT_VERSION}, got {name} version {version}; "
                "read it with a diffplan of that version"
            )
        if unknown := values.get("features"):
            raise DataError(f"{path}: the dataset needs features {unknown} that this diffplan lacks; upgrade diffplan")
        try:
            values["columns"] = tuple(Column(**{**c, "shape": tuple(c["shape"])}) for c in values["columns"])
            values["tasks"] = tuple(Task(**task) for task in values["tasks"])
            values["features"] = tuple(values["features"])
            manifest = cls(**values)
            _check_columns(manifest.columns)
            _check_fields(manifest)
            return manifest
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise DataError(
                f"{path}: the manifest lacks or misnames a field ({error}); is it damaged? Put it back from a copy"
            ) from None


def _check_fields(manifest: Manifest) -> None:
    """Raise `ValueError` unless the fields besides the columns have their types."""
    if not _is_name(manifest.dataset_uuid):  # it names a directory of the cache
        raise ValueError(f"dataset_uuid {show_value(manifest.dataset_uuid)}")
    for name in ("action_low", "action_high"):
        bounds = getattr(manifest, name)
        if not isinstance(bounds, list) or not all(bound is None or _is_number(bound) for bound in bounds):
            raise ValueError(f"{name} {show_value(bounds)}")
        if bounds and len(bounds) != manifest.action_dim:
            raise ValueError(f"{name} has {len(bounds)} bounds, an action {manifest.action_dim} numbers")
    for name in ("env", "source", "spaces"):
        if not isinstance(getattr(manifest, name), dict):
            raise ValueError(f"{name} {show_value(getattr(manifest, name))}")
    if not (manifest.env_spec is None or isinstance(manifest.env_spec, str)):
        raise ValueError(f"env_spec {show_value(manifest.env_spec)}")
    if not (manifest.collection is None or isinstance(manifest.collection, dict)):
        raise ValueError(f"collection {show_value(manifest.collection)}")
    for task in manifest.tasks:
        if not (isinstance(task.name, str) and isinstance(task.dataset_uuid, str) and isinstance(task.env, dict)):
            raise ValueError(f"task {show_value(task)}")
        if not (_is_number(task.weight) and type(task.num_units) is int and task.num_units >= 0):
            raise ValueError(f"task {show_value(task)}")


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w-]{1,100}", value) is not None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _check_columns(columns: tuple[Column, ...]) -> None:
    """Raise `ValueError` unless these are valid columns of a shard."""
    for column in columns:
        if not isinstance(column.name, str) or type(column.has_final) is not bool:
            raise ValueError(f"column {show_value(column)}")
        if not all(type(size) is int and size >= 0 for size in column.shape) or column.size > MAX_COLUMNS:
            raise ValueError(f"column {column.name!r} has the shape {show_value(column.shape)}")
    names = [column.name for column in columns]
    if names[:3] != ["observation", "action", "reward"]:
        raise ValueError(f"columns must begin with observation, action and reward, not {names[:3]}")
    reserved = {"episode_index", "t", "termination", "truncation"}
    if len(set(names)) != len(names) or reserved & set(names):
        raise ValueError("two columns have the same name")
    for column in columns:
        if not isinstance(column.dtype, str) or column.dtype not in ARROW_TYPES:
            raise ValueError(f"column {column.name!r} has the type {column.dtype!r}")


def make_columns(
    observation: int | tuple[int, ...],
    action: int | tuple[int, ...],
    extra: tuple[Column, ...] = (),
    *,
    observation_dtype: str = "float32",
    action_dtype: str = "float32",
    reward_dtype: str = "float32",
) -> tuple[Column, ...]:
    """The columns of a manifest from the sizes or shapes of observation and action; raises `DataError` if invalid."""
    columns = (
        Column("observation", (observation,) if isinstance(observation, int) else observation, observation_dtype, True),
        Column("action", (action,) if isinstance(action, int) else action, action_dtype),
        Column("reward", (), reward_dtype),
        *extra,
    )
    try:
        _check_columns(columns)
    except ValueError as error:
        raise DataError(f"columns: {error}") from None
    return columns


def new_dataset_uuid() -> str:
    """A new dataset uuid."""
    return str(uuid.uuid4())


def commit_name(unit: int) -> str:
    """Name of the commit of a unit in its store."""
    return f"{COMMITS}/{unit:08d}.json"


def snapshot_name(number: int) -> str:
    """Name of a snapshot in its store."""
    return f"{SNAPSHOTS}/{number}.parquet"

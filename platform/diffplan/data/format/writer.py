"""Write a unit of episodes as a shard, durably, and commit it."""

from __future__ import annotations

import contextlib
import functools
import json
import platform
import uuid
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from diffplan.data.format.checksums import compute_checksums
from diffplan.data.format.commit import commit_unit
from diffplan.data.format.commit_checks import check_episodes, check_unit
from diffplan.data.format.commit_record import CommitRecord, EpisodeRecord, ShardRecord
from diffplan.data.format.manifest import MANIFEST_NAME, SHARDS, Column, Manifest
from diffplan.data.format.statistics import compute_statistics, find_finite
from diffplan.errors import DataError, StoreError
from diffplan.storage.opening import open_store
from diffplan.storage.store import Store
from diffplan.types import Episode


def create_dataset(where: str | Path | Store, manifest: Manifest) -> Manifest:
    """Create an empty dataset, or return the manifest of an existing one.

    Returns:
        The manifest in the store; that of another writer if it was first.

    Raises:
        DataError: the existing manifest is damaged.
        StoreError: the store refuses to write.
    """
    store = open_store(where)
    try:
        created = store.put_if_absent(MANIFEST_NAME, manifest.to_json())
    except OSError as error:
        raise StoreError(
            f"{store.uri}: the dataset could not be created ({error.strerror or error}); make room, mend the "
            "permissions or take another directory"
        ) from error
    if created:
        return manifest
    return Manifest.from_json(store.read(MANIFEST_NAME), store.locate(MANIFEST_NAME))


def write_unit(where: str | Path | Store, manifest: Manifest, unit: int, episodes: Sequence[Episode]) -> CommitRecord:
    """Write and commit a unit; it can be repeated, and interrupted at any point.

    Returns:
        The valid commit: this one or an earlier one of the same unit.

    Raises:
        DataError: no episodes, an empty one, arrays that do not fit the manifest, observations, actions or rewards
            that are not finite (further columns may be), or the store refuses to write.
    """
    store = open_store(where)
    return commit_written(store, write_uncommitted(store, manifest, unit, episodes))


def write_uncommitted(
    where: str | Path | Store, manifest: Manifest, unit: int, episodes: Sequence[Episode]
) -> CommitRecord:
    """Write the shard of a unit without a commit, so that the unit does not exist yet; see `commit_written`.

    Raises:
        DataError: as `write_unit`.
    """
    store = open_store(where)
    unit = _plain(unit)
    if not episodes:
        raise DataError(f"unit {unit}: expected at least one episode, got none")
    numbers = [episode.episode_index for episode in episodes]
    if len(set(numbers)) != len(numbers):
        raise DataError(f"unit {unit}: expected episodes of different numbers, got {numbers}; number them anew")
    columns = _columns(manifest, unit, episodes)
    records = _episode_records(manifest, episodes)
    try:
        check_unit(unit)
        check_episodes(records)
        json.dumps([record.options for record in records], allow_nan=False)
    except (ValueError, TypeError) as error:
        raise DataError(f"unit {unit}: {error}; its commit could not be read: mend what made the episodes") from None
    batch = _to_record_batch(manifest, episodes, columns)
    with _explain_failure(store, unit):
        shard, attempt = write_shard(store, manifest, f"{unit:08d}", batch)
    return CommitRecord(
        unit=unit,
        dataset_uuid=manifest.dataset_uuid,
        attempt=attempt,
        shard=shard,
        episodes=records,
        statistics={name: compute_statistics(values) for name, values in columns.items()},
        provenance=_provenance(),
    )


def commit_written(store: Store, record: CommitRecord) -> CommitRecord:
    """Commit a unit that `write_uncommitted` wrote.

    Returns:
        The valid commit: this one or an earlier one of the same unit.

    Raises:
        DataError: the store refuses to write.
    """
    with _explain_failure(store, record.unit):
        return commit_unit(store, record)


@contextlib.contextmanager
def _explain_failure(store: Store, unit: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{store.uri}: unit {unit} could not be written ({error.strerror or error}); make room or mend the "
            "permissions, then go on with --resume: nothing that was committed is lost"
        ) from error


def write_shard(store: Store, manifest: Manifest, stem: str, batch: pa.RecordBatch) -> tuple[ShardRecord, str]:
    """Write rows as a shard with a unique name.

    Args:
        store: the store of the dataset.
        manifest: the manifest of the dataset.
        stem: prefix of the name of the shard.
        batch: rows with the columns of the manifest.

    Returns:
        The shard, and the random name of the attempt.
    """
    attempt = uuid.uuid4().hex[:12]
    metadata = {"diffplan.dataset_uuid": manifest.dataset_uuid, "diffplan.units": stem}
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema.with_metadata(metadata)) as writer:
        writer.write_batch(batch.replace_schema_metadata(metadata))
    content = sink.getvalue()
    shard = ShardRecord(
        name=f"{SHARDS}/{stem}-{attempt}.arrow",
        num_bytes=content.size,
        num_rows=batch.num_rows,
        offsets=locate_columns(content, manifest),
        checksums=compute_checksums(content),
    )
    store.write(shard.name, [content])
    return shard, attempt


def locate_columns(content: pa.Buffer, manifest: Manifest) -> dict[str, int]:
    """The offset of the values of each column in a shard, in bytes."""
    batch = pa.ipc.open_file(content).get_batch(0)
    located = {}
    for column in manifest.columns:
        array = batch.column(column.name)
        values = array.values if column.shape else array
        located[column.name] = values.buffers()[-1].address - content.address
    return located


def _columns(manifest: Manifest, unit: int, episodes: Sequence[Episode]) -> dict[str, np.ndarray]:
    """Concatenate each column of all episodes, [rows, size], and check the values."""
    columns = {}
    for column in manifest.columns:
        parts = []
        for episode in episodes:
            where = f"unit {unit}, episode {episode.episode_index}, column {column.name!r}"
            values, final = _column_of(episode, column)
            expected = (len(episode), *column.shape)
            if len(episode) == 0 or values is None or values.shape != expected:
                got = "nothing" if values is None else f"shape {values.shape}"
                raise DataError(f"{where}: expected shape {expected} with at least one row, got {got}")
            if column.has_final and (final is None or final.shape != column.shape):
                got = "nothing" if final is None else f"shape {final.shape}"
                raise DataError(f"{where}: expected a value of shape {column.shape} after the last action, got {got}")
            if not np.can_cast(values.dtype, column.numpy_dtype, "same_kind"):
                raise DataError(f"{where}: expected {column.dtype} numbers, got {values.dtype}")
            with np.errstate(over="ignore"):  # overflow to infinity is refused below
                parts.append(values.astype(column.numpy_dtype, copy=False))
            _require_kept(values, parts[-1], column, where)
            if column not in manifest.extra_columns:
                _require_finite(parts[-1], column, where)
                if column.has_final and final is not None:
                    _require_finite(final[None].astype(column.numpy_dtype), column, f"{where}, after the last action")
        columns[column.name] = np.concatenate(parts).reshape(-1, column.size)
    return columns


def _column_of(episode: Episode, column: Column) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Values of a column in the rows of an episode, and the value after the last action."""
    if column.name == "observation":
        return episode.observations[:-1], episode.observations[-1]
    if column.name == "action":
        return episode.actions, None
    if column.name == "reward":
        return episode.rewards, None
    values = episode.columns.get(column.name)
    if values is None or not column.has_final:
        return values, None
    return values[:-1], values[-1]


def _require_kept(values: np.ndarray, cast: np.ndarray, column: Column, where: str) -> None:
    """Raise for integers that overflow the type of a column."""
    if cast.dtype.kind in "iu" and cast.dtype != values.dtype and (wrapped := cast != values).any():
        row = int(np.argwhere(wrapped)[0, 0])
        raise DataError(f"{where}: expected {column.dtype} numbers, got {values[row]} in row {row}; take a wider type")


def _require_finite(values: np.ndarray, column: Column, where: str) -> None:
    finite = find_finite(values)
    if not finite.all():
        row = int(np.argwhere(~finite)[0, 0])
        raise DataError(
            f"{where}: expected finite {column.dtype} numbers, got {values[row]} in row {row}; "
            "mend the environment or the behavior"
        )


def _to_record_batch(manifest: Manifest, episodes: Sequence[Episode], columns: dict[str, np.ndarray]) -> pa.RecordBatch:
    lengths = np.array([len(episode) for episode in episodes])
    last = np.cumsum(lengths) - 1
    ends = {name: np.zeros(lengths.sum(), dtype=bool) for name in ("termination", "truncation")}
    ends["termination"][last] = [episode.terminated for episode in episodes]
    ends["truncation"][last] = [episode.truncated for episode in episodes]
    arrays: dict[str, Any] = {
        "episode_index": pa.array(np.repeat([e.episode_index for e in episodes], lengths), pa.int64()),
        "t": pa.array(np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])),
        **{name: pa.array(values) for name, values in ends.items()},
        **{column.name: to_arrow(column, columns[column.name]) for column in manifest.columns},
    }
    schema = manifest.arrow_schema
    return pa.RecordBatch.from_arrays([arrays[field.name] for field in schema], schema=schema)


def to_arrow(column: Column, values: np.ndarray) -> pa.Array:
    """Values of a column as an Arrow array for a shard."""
    flat = values.astype(column.numpy_dtype, copy=False).reshape(-1)
    array = pa.array(flat.view(np.uint8) if column.dtype == "bool" else flat)
    return pa.FixedSizeListArray.from_arrays(array, column.size) if column.shape else array


def _episode_records(manifest: Manifest, episodes: Sequence[Episode]) -> tuple[EpisodeRecord, ...]:
    first_rows = np.concatenate([[0], np.cumsum([len(e) for e in episodes])])
    observation = manifest.column("observation")
    finals = [column for column in manifest.extra_columns if column.has_final]
    return tuple(
        EpisodeRecord(
            episode_index=_plain(episode.episode_index),
            seed=_plain(episode.seed),
            behavior=episode.behavior,
            first_row=int(first_row),
            length=len(episode),
            undiscounted_return=float(np.sum(episode.rewards, dtype=np.float64)),
            terminated=bool(episode.terminated),
            truncated=bool(episode.truncated),
            final_observation=encode_numbers(episode.observations[-1], observation),
            task=_plain(episode.task),
            final_values={c.name: encode_numbers(episode.columns[c.name][-1], c) for c in finals},
            options=episode.options,
        )
        for episode, first_row in zip(episodes, first_rows, strict=False)
    )


def _plain(number: Any) -> Any:
    """A number as a JSON value, from any NumPy type."""
    return number.item() if isinstance(number, np.generic) else number


def encode_numbers(values: np.ndarray, column: Column) -> list[Any]:
    """Numbers as JSON values: booleans as 0 and 1, and non-finite numbers as text, which NumPy can parse."""
    cast = np.asarray(values).astype(column.numpy_dtype).reshape(-1)
    numbers = (cast.view(np.uint8) if column.dtype == "bool" else cast).tolist()
    return [n if np.isfinite(n) else str(n) for n in numbers]


@functools.cache
def _provenance() -> dict[str, str]:
    def version_of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "unknown"

    versions = {name: version_of(name) for name in ("diffplan", "gymnasium", "mujoco", "numpy", "pyarrow")}
    return {"host": platform.node(), "python": platform.python_version(), **versions}

"""Write a unit of episodes as a shard, durably, and commit it."""

from __future__ import annotations

import os
import platform
import uuid
import zlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pyarrow as pa

from diffplan.data.commit import (
    BufferRecord,
    CommitRecord,
    EpisodeRecord,
    commit_unit,
    put_if_absent,
    sync_directory,
)
from diffplan.data.format import COMMITS, MANIFEST_NAME, SHARDS, Manifest
from diffplan.data.statistics import compute_statistics
from diffplan.errors import DataError
from diffplan.types import Episode


def create_dataset(root: Path, manifest: Manifest) -> Manifest:
    """Create an empty dataset, or find the one that is there.

    Returns:
        The manifest on disk, which is another writer's if that came first.
    """
    for name in (SHARDS, COMMITS):
        (root / name).mkdir(parents=True, exist_ok=True)
    path = root / MANIFEST_NAME
    if put_if_absent(path, manifest.to_json()):
        return manifest
    return Manifest.from_json(path.read_bytes(), path)


def write_unit(root: Path, manifest: Manifest, unit: int, episodes: Sequence[Episode]) -> CommitRecord:
    """Write and commit a unit; safe to repeat and to interrupt anywhere.

    Returns:
        The commit that counts: this one or an earlier one of the same unit.

    Raises:
        DataError: no episodes, an empty one, arrays that do not fit the manifest, or observations, actions or rewards
            that are not finite (further columns may be).
    """
    if not episodes:
        raise DataError(f"unit {unit}: expected at least one episode, got none")
    columns = _float_columns(manifest, unit, episodes)
    table = _to_record_batch(manifest, unit, episodes, columns)
    attempt = uuid.uuid4().hex[:12]
    shard = f"{SHARDS}/{unit:08d}-{attempt}.arrow"
    path = root / shard
    with path.open("xb") as file:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_batch(table)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(path.parent)
    content = pa.memory_map(str(path)).read_buffer()
    record = CommitRecord(
        unit=unit,
        dataset_uuid=manifest.dataset_uuid,
        attempt=attempt,
        shard=shard,
        num_bytes=content.size,
        crc32=zlib.crc32(content),
        num_rows=table.num_rows,
        buffers=locate_buffers(content, manifest),
        episodes=_episode_records(episodes),
        statistics={name: compute_statistics(values) for name, values in columns.items()},
        provenance=_provenance(),
    )
    return commit_unit(root, record)


def locate_buffers(content: pa.Buffer, manifest: Manifest) -> dict[str, BufferRecord]:
    """Where the values of each float32 column lie in the bytes of a shard."""
    batch = pa.ipc.open_file(content).get_batch(0)
    located = {}
    for column in manifest.float_columns:
        array = batch.column(column.name)
        values = array.values if column.size else array
        located[column.name] = BufferRecord(
            offset=values.buffers()[-1].address - content.address,
            num_bytes=4 * batch.num_rows * max(column.size, 1),
        )
    return located


def _float_columns(manifest: Manifest, unit: int, episodes: Sequence[Episode]) -> dict[str, np.ndarray]:
    """Concatenate the float columns of all episodes as float32, checking them on the way."""
    columns = {}
    for column in manifest.float_columns:
        parts = []
        for episode in episodes:
            where = f"unit {unit}, episode {episode.episode_index}, column {column.name!r}"
            values = _column_of(episode, column.name)
            expected = (len(episode), column.size) if column.size else (len(episode),)
            if len(episode) == 0 or values is None or values.shape != expected:
                got = "nothing" if values is None else f"shape {values.shape}"
                raise DataError(f"{where}: expected shape {expected} with at least one row, got {got}")
            parts.append(values.astype(np.float32))
            if column not in manifest.extra_columns:
                _require_finite(parts[-1], where)
        columns[column.name] = np.concatenate(parts)
    for episode in episodes:
        where = f"unit {unit}, episode {episode.episode_index}, final observation"
        _require_finite(episode.observations[-1:].astype(np.float32), where)
    return columns


def _column_of(episode: Episode, name: str) -> np.ndarray | None:
    if name == "observation":
        return episode.observations[:-1]
    if name == "action":
        return episode.actions
    return episode.rewards if name == "reward" else episode.columns.get(name)


def _require_finite(values: np.ndarray, where: str) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        row = int(np.argwhere(~finite)[0, 0])
        raise DataError(
            f"{where}: expected finite float32 numbers, got {values[row]} in row {row}; "
            "mend the environment or the behavior"
        )


def _to_record_batch(
    manifest: Manifest, unit: int, episodes: Sequence[Episode], columns: dict[str, np.ndarray]
) -> pa.RecordBatch:
    lengths = np.array([len(episode) for episode in episodes])
    last = np.cumsum(lengths) - 1
    ends = {name: np.zeros(lengths.sum(), dtype=bool) for name in ("termination", "truncation")}
    ends["termination"][last] = [episode.terminated for episode in episodes]
    ends["truncation"][last] = [episode.truncated for episode in episodes]
    schema = manifest.arrow_schema.with_metadata(
        {"diffplan.dataset_uuid": manifest.dataset_uuid, "diffplan.unit": str(unit)}
    )
    arrays = []
    for field in schema:
        if field.name == "episode_index":
            arrays.append(pa.array(np.repeat([e.episode_index for e in episodes], lengths), pa.int64()))
        elif field.name == "t":
            arrays.append(pa.array(np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])))
        elif field.name in ends:
            arrays.append(pa.array(ends[field.name]))
        elif pa.types.is_fixed_size_list(field.type):
            flat = pa.array(columns[field.name].ravel())
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, field.type.list_size))
        else:
            arrays.append(pa.array(columns[field.name]))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _episode_records(episodes: Sequence[Episode]) -> tuple[EpisodeRecord, ...]:
    first_rows = np.concatenate([[0], np.cumsum([len(e) for e in episodes])])
    return tuple(
        EpisodeRecord(
            episode_index=episode.episode_index,
            seed=episode.seed,
            behavior=episode.behavior,
            first_row=int(first_row),
            length=len(episode),
            undiscounted_return=float(np.sum(episode.rewards, dtype=np.float64)),
            terminated=bool(episode.terminated),
            truncated=bool(episode.truncated),
            final_observation=episode.observations[-1].astype(np.float32).tolist(),
        )
        for episode, first_row in zip(episodes, first_rows, strict=False)
    )


def _provenance() -> dict[str, str]:
    def version_of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "unknown"

    versions = {name: version_of(name) for name in ("diffplan", "gymnasium", "mujoco", "numpy", "pyarrow")}
    return {"host": platform.node(), "python": platform.python_version(), **versions}

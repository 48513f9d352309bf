"""Write a dataset as Parquet, for SQL, archives and RLlib.

```
<out>/metadata.json             environment, spaces, columns with their shapes, and the origin of the data
      episodes.parquet          one row per episode
      steps/part-00000.parquet  one row per step; an episode never spans files
```

Layout `plain` has all columns of the shards. Layout `rllib` has the transitions that offline algorithms of RLlib's new
API stack read, with actions scaled to [-1, 1], the range of its modules' outputs. Arrays of more than one dimension are
flat lists in both layouts.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from diffplan.data.exchange.step_files import StepFiles, parquet_options
from diffplan.data.format.checksums import compute_checksums
from diffplan.data.format.commit_record import ShardRecord
from diffplan.data.format.dataset import TrajectoryDataset
from diffplan.data.format.manifest import Column, Manifest
from diffplan.data.format.writer import to_arrow
from diffplan.errors import DataError
from diffplan.storage.store import TEMPORARY_PREFIX

INTERNAL = ("unit", "shard", "first_row", "details")
"""Columns of the index of episodes without a meaning outside the shards."""


@dataclass(frozen=True)
class Layout:
    """The form of the steps in a file.

    Attributes:
        schema: columns of a file.
        convert: turns the rows of a shard, whole episodes, into rows of `schema`.
        notes: additional entries of `metadata.json`.
    """

    schema: pa.Schema
    convert: Callable[[pa.Table], pa.Table]
    notes: dict[str, Any]


def export_parquet(
    dataset: TrajectoryDataset,
    out: str | Path,
    *,
    layout: Literal["plain", "rllib"] = "plain",
    rows_per_file: int = 1_000_000,
    on_progress: Callable[[int], None] | None = None,
) -> Path:
    """Write a dataset as Parquet files, compressed and with a checksum for each page.

    `out` appears only when it is complete. Memory has one shard and one row group at a time.

    Args:
        dataset: the dataset.
        out: new local directory.
        layout: `plain` for all columns, `rllib` for transitions.
        rows_per_file: maximum number of steps in a file; only a longer episode makes a longer file.
        on_progress: called with the number of newly written steps.

    Returns:
        The directory.

    Raises:
        DataError: `out` exists or cannot be written, a shard is damaged, or actions have no bounds to scale by.
    """
    if layout not in LAYOUTS:
        raise DataError(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}")
    if rows_per_file < 1:
        raise DataError(f"rows_per_file: expected at least 1, got {rows_per_file}")
    if "://" in str(out):
        raise DataError(f"{out}: expected a local directory, got a URL; export to a disk and copy from there")
    out = Path(out).absolute()
    if os.path.lexists(out):
        raise DataError(f"{out}: expected a new directory, but there is something already; remove it or take another")
    made = LAYOUTS[layout](dataset)
    temporary = out.parent / f"{TEMPORARY_PREFIX}{out.name}-{uuid.uuid4().hex[:12]}"
    try:
        (temporary / "steps").mkdir(parents=True)
        with StepFiles(temporary / "steps", made.schema, rows_per_file) as files:
            for shard, table in zip(dataset.shards, dataset.iterate_tables(), strict=True):
                _require_sound(dataset, shard)
                starts = _starts(table)
                files.write(made.convert(table), starts)
                if on_progress is not None:
                    on_progress(table.num_rows)
        episodes = _episodes(dataset)
        pq.write_table(episodes, temporary / "episodes.parquet", **parquet_options(episodes.schema))
        text = json.dumps(_describe(dataset, layout, made.notes), indent=2)
        (temporary / "metadata.json").write_text(text + "\n")
        temporary.rename(out)
    except OSError as error:
        raise DataError(
            f"{out}: the export could not be written ({error.strerror or error}); make room or mend the permissions "
            "and export again: nothing was left behind"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _plain(dataset: TrajectoryDataset) -> Layout:
    schema = dataset.manifest.arrow_schema
    for column in dataset.manifest.columns:
        index = schema.get_field_index(column.name)
        schema = schema.set(index, pa.field(column.name, _public_type(column), nullable=False))
    return Layout(schema, lambda table: table.cast(schema), {})


def _rllib(dataset: TrajectoryDataset) -> Layout:
    manifest, episodes = dataset.manifest, dataset.episodes
    observation, action, reward = manifest.columns[:3]
    discrete = action.numpy_dtype.kind not in "f"
    low, high = (np.zeros(1), np.ones(1)) if discrete else _bounds(dataset.uri, manifest)
    order = np.argsort(episodes.column("episode_index"))
    indices, finals = episodes.column("episode_index")[order], episodes.final_observations[order]
    # Further columns are left out, because RLlib would treat them as outputs of the acting module.
    schema = pa.schema(
        [
            pa.field("eps_id", pa.string(), nullable=False),
            pa.field("t", pa.int32(), nullable=False),
            pa.field("obs", _public_type(observation), nullable=False),
            pa.field("actions", _public_type(action), nullable=False),
            pa.field("rewards", _public_type(reward), nullable=False),
            pa.field("new_obs", _public_type(observation), nullable=False),
            pa.field("terminateds", pa.bool_(), nullable=False),
            pa.field("truncateds", pa.bool_(), nullable=False),
        ]
    )

    def convert(table: pa.Table) -> pa.Table:
        starts = _starts(table)
        ends = np.append(starts[1:], table.num_rows) - 1
        following = np.roll(_rows(table, observation), -1, axis=0)
        first_indices = table.column("episode_index").take(pa.array(starts)).to_numpy()
        following[ends] = finals[np.searchsorted(indices, first_indices)]
        actions = _rows(table, action)
        if not discrete:
            actions = ((actions.astype(np.float64) - low) / (high - low) * 2 - 1).astype(action.numpy_dtype)
        columns = [
            pc.cast(table.column("episode_index"), pa.string()),
            table.column("t"),
            table.column("observation"),
            to_arrow(action, actions),
            table.column("reward"),
            to_arrow(observation, following),
            table.column("termination"),
            table.column("truncation"),
        ]
        return pa.Table.from_arrays(
            [column.cast(field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
        )

    if discrete:
        return Layout(schema, convert, {"actions": "as they were taken"})
    scaling = {"low": low.tolist(), "high": high.tolist(), "original": "low + (actions + 1) * (high - low) / 2"}
    return Layout(schema, convert, {"actions": scaling})


LAYOUTS: dict[str, Callable[[TrajectoryDataset], Layout]] = {"plain": _plain, "rllib": _rllib}


def _bounds(where: str, manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the action, float64[action_dim]; raises `DataError` if actions cannot be scaled by them."""
    low, high = manifest.action_low, manifest.action_high
    if not len(low) == len(high) == manifest.action_dim:
        raise DataError(
            f"{where}: expected bounds of {manifest.action_dim} action dimensions, got {len(low)} lower and "
            f"{len(high)} upper ones; the layout 'rllib' needs them, 'plain' does not"
        )
    for d, (least, most) in enumerate(zip(low, high, strict=True)):
        if least is None or most is None or not least < most:
            raise DataError(
                f"{where}: expected bounds of action dimension {d} to scale it to [-1, 1], got {least} to {most}; "
                "export with the layout 'plain'"
            )
    return np.array(low, np.float64), np.array(high, np.float64)


def _starts(table: pa.Table) -> np.ndarray:
    """First row of each episode of a shard, int64[episodes]."""
    indices = table.column("episode_index").to_numpy()
    return np.concatenate([[0], np.flatnonzero(np.diff(indices)) + 1])


def _rows(table: pa.Table, column: Column) -> np.ndarray:
    """A column of a shard in its stored type, [rows, size]."""
    array = table.column(column.name).combine_chunks()
    values = array.flatten() if column.shape else array
    return values.to_numpy(zero_copy_only=False).reshape(table.num_rows, column.size)


def _public_type(column: Column) -> pa.DataType:
    """Type of a column in a file; unlike in a shard, booleans have a boolean type."""
    if column.dtype != "bool":
        return column.arrow_type
    return pa.list_(pa.bool_(), column.size) if column.shape else pa.bool_()


def _episodes(dataset: TrajectoryDataset) -> pa.Table:
    """The table of episodes, with the values after the last action as `final_<column>`."""
    table = dataset.episodes.to_arrow()
    details = [json.loads(text) if text else {} for text in table.column("details").to_pylist()]
    observation, *others = [column for column in dataset.manifest.columns if column.has_final]
    if observation.dtype == "bool":
        index = table.schema.get_field_index("final_observation")
        finals = table.column(index)
        table = table.set_column(index, "final_observation", finals.cast(pa.list_(pa.bool_(), observation.size)))
    for column in others:
        values = np.array([known["final_values"][column.name] for known in details], column.numpy_dtype)
        table = table.append_column(f"final_{column.name}", to_arrow(column, values).cast(_public_type(column)))
    options = [None if known.get("options") is None else json.dumps(known["options"]) for known in details]
    return table.append_column("options", pa.array(options, pa.string())).drop_columns(list(INTERNAL))


def _describe(dataset: TrajectoryDataset, layout: str, notes: dict[str, Any]) -> dict[str, Any]:
    manifest = asdict(dataset.manifest)
    del manifest["features"]
    return {
        "content": "trajectories as Parquet, exported by diffplan",
        "layout": layout,
        "exported_from": {"uri": dataset.uri, "snapshot": dataset.snapshot},
        "num_steps": dataset.num_steps,
        "num_episodes": len(dataset.episodes),
        **notes,
        **manifest,
    }


def _require_sound(dataset: TrajectoryDataset, shard: ShardRecord) -> None:
    """Raise `DataError` for a damaged shard; its export would have valid checksums."""
    if compute_checksums(dataset.map_shard(shard)) != shard.checksums:
        raise DataError(
            f"{dataset.store.locate(shard.name)}: expected bytes that match their checksums, got others; the shard is "
            "damaged: run `diffplan data verify --drop_damaged`, then make its units again"
        )

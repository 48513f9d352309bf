"""Merge datasets into one of several tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from diffplan.data.format.commit import list_committed_units
from diffplan.data.format.commit_record import EpisodeRecord
from diffplan.data.format.dataset import TrajectoryDataset, open_dataset, read_manifest, write_snapshot
from diffplan.data.format.manifest import MANIFEST_NAME, Column, Manifest, Task, new_dataset_uuid
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.errors import DataError
from diffplan.storage.opening import open_store
from diffplan.storage.store import Store
from diffplan.types import Episode

TASK_COLUMN = "task"


@dataclass(frozen=True)
class Source:
    """A dataset to merge.

    Attributes:
        dataset: the dataset; it becomes one task.
        name: name of the task.
        weight: its share of the windows, relative to the other tasks.
    """

    dataset: TrajectoryDataset
    name: str
    weight: float = 1.0


def merge(
    sources: Sequence[Source], out: str | Path | Store, *, on_progress: Callable[[int, int], None] | None = None
) -> TrajectoryDataset:
    """Write a dataset with all episodes of several datasets, one task for each.

    Units are kept, so an interrupted merge continues when it is called again. Episodes get new numbers;
    `EpisodeRecord.task` and the column `task` of each row are their source. A column that is missing in a source, or
    has different shapes or types, is left out.

    Args:
        sources: two or more datasets with the same observation and action columns.
        out: directory or URL of the merged dataset.
        on_progress: called with the number of units done and their total.

    Raises:
        DataError: the sources do not match, have a name twice or invalid weights, or `out` is another dataset.
    """
    _check(sources)
    store = open_store(out)
    manifest = _open(store, _make_manifest(sources), sources)
    done = set(list_committed_units(store))
    total = sum(task.num_units for task in manifest.tasks)
    unit, first_episode = 0, 0
    for task, source in enumerate(sources):
        episodes = source.dataset.episodes
        for source_unit in np.unique(episodes.unit).tolist():
            chosen = np.flatnonzero(episodes.unit == source_unit)
            if unit not in done:
                write_unit(store, manifest, unit, [
                    _renumber(source.dataset, int(i), manifest, task, first_episode + k) for k, i in enumerate(chosen)
                ])  # fmt: skip
            unit += 1
            first_episode += len(chosen)
            if on_progress is not None:
                on_progress(unit, total)
    dataset = open_dataset(store)
    return open_dataset(store, snapshot=write_snapshot(dataset))


def read_episode(dataset: TrajectoryDataset, number: int, record: EpisodeRecord | None = None) -> Episode:
    """An episode with all its columns, numbered as in `dataset.episodes`, in the form for `write_unit`."""
    record = record or dataset.episodes[number]
    values = {column.name: np.array(dataset.episode_column(number, column.name)) for column in dataset.manifest.columns}
    observation = dataset.manifest.column("observation")
    final = np.asarray(record.final_observation, observation.numpy_dtype).reshape(1, *observation.shape)
    extra = {}
    for column in dataset.manifest.extra_columns:
        rows = values[column.name]
        if column.has_final:
            last = np.asarray(record.final_values[column.name], column.numpy_dtype).reshape(1, *column.shape)
            rows = np.concatenate([rows, last])
        extra[column.name] = rows
    return Episode(
        episode_index=record.episode_index,
        seed=record.seed,
        behavior=record.behavior,
        observations=np.concatenate([values["observation"], final]),
        actions=values["action"],
        rewards=values["reward"],
        terminated=record.terminated,
        truncated=record.truncated,
        columns=extra,
        task=record.task,
        options=record.options,
    )


def _renumber(dataset: TrajectoryDataset, number: int, manifest: Manifest, task: int, episode_index: int) -> Episode:
    episode = read_episode(dataset, number)
    columns = {c.name: episode.columns[c.name] for c in manifest.extra_columns if c.name != TASK_COLUMN}
    columns[TASK_COLUMN] = np.full(len(episode), task, np.int64)
    return replace(episode, episode_index=episode_index, task=task, columns=columns)


def _check(sources: Sequence[Source]) -> None:
    if len(sources) < 2:
        raise DataError(f"merge: expected two or more datasets, got {len(sources)}")
    names = [source.name for source in sources]
    if len(set(names)) != len(names):
        raise DataError(f"merge: expected a name of its own for each dataset, got {', '.join(names)}; give them names")
    weights = [source.weight for source in sources]
    if not all(np.isfinite(weight) and weight >= 0 for weight in weights) or sum(weights) <= 0:
        raise DataError(f"merge: expected weights >= 0 that are not all 0, got {weights}")
    first = sources[0].dataset
    for source in sources[1:]:
        for name in ("observation", "action", "reward"):
            expected, got = first.describe_column(name), source.dataset.describe_column(name)
            if expected != got:
                raise DataError(
                    f"{source.dataset.uri}: expected {name}s of shape {expected.shape} and type {expected.dtype} as in "
                    f"{first.uri}, got {got.shape} and {got.dtype}; only datasets with the same spaces can be merged"
                )
        bounds = [(d.manifest.action_low, d.manifest.action_high) for d in (first, source.dataset)]
        if bounds[0] != bounds[1]:
            raise DataError(
                f"{source.dataset.uri}: expected the action bounds {bounds[0]} as in {first.uri}, got {bounds[1]}; "
                "only datasets with the same spaces can be merged"
            )
        if first.env.step_seconds != source.dataset.env.step_seconds:
            raise DataError(
                f"{source.dataset.uri}: expected steps of {_describe_seconds(first)} as in {first.uri}, got "
                f"{_describe_seconds(source.dataset)}; plans could not be followed in both"
            )
    for source in sources:
        if source.dataset.manifest.tasks:
            raise DataError(f"{source.dataset.uri}: it is a merged dataset already; merge what it was made of")
    by_uuid: dict[str, str] = {}
    for source in sources:
        if (other := by_uuid.setdefault(source.dataset.manifest.dataset_uuid, source.name)) != source.name:
            raise DataError(
                f"{source.dataset.uri}: expected different datasets, got the same one as {other} and {source.name}; "
                "give it once, with the sum of the weights"
            )


def _describe_seconds(dataset: TrajectoryDataset) -> str:
    seconds = dataset.env.step_seconds
    return "unknown length" if seconds is None else f"{seconds} s"


def _make_manifest(sources: Sequence[Source]) -> Manifest:
    first = sources[0].dataset.manifest
    common = [set(source.dataset.manifest.extra_columns) for source in sources]
    extra = tuple(c for c in first.extra_columns if c.name != TASK_COLUMN and all(c in columns for columns in common))
    tasks = tuple(
        Task(
            name=source.name,
            weight=source.weight,
            dataset_uuid=source.dataset.manifest.dataset_uuid,
            env=source.dataset.manifest.env,
            num_units=len(np.unique(source.dataset.episodes.unit)),
        )
        for source in sources
    )
    same_env = all(task.env == first.env for task in tasks)
    return replace(
        first,
        dataset_uuid=new_dataset_uuid(),
        columns=(*first.columns[:3], *extra, Column(TASK_COLUMN, (), "int64")),
        collection=None,
        source={"kind": "merged"},
        env_spec=first.env_spec if same_env else None,
        tasks=tasks,
    )


def _open(store: Store, manifest: Manifest, sources: Sequence[Source]) -> Manifest:
    """The manifest of the merged dataset, new or from an earlier merge of the same sources."""
    if not any(stored.name == MANIFEST_NAME for stored in store.list("")):
        return create_dataset(store, manifest)
    found = read_manifest(store)
    if replace(found, dataset_uuid=manifest.dataset_uuid) != manifest:
        names = ", ".join(source.name for source in sources)
        raise DataError(
            f"{store.uri}: expected a new directory or an interrupted merge of {names} as they are now, got another "
            "dataset; take another --out"
        )
    return found

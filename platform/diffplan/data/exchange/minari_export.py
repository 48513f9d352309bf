"""Export datasets to Minari's HDF5 format, so that an import of the result has the same content.

Content without a place in Minari's format is stored in additional entries, which Minari ignores: in the metadata of the
dataset under `RECORD` (columns, environment, behavior) and, if needed, in the metadata of episodes under
`EPISODE_RECORD`.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from diffplan.config import config_to_dict
from diffplan.data.exchange.minari_layout import Layout, default_layout
from diffplan.data.exchange.unit_import import OnProgress
from diffplan.data.format.commit_record import EpisodeRecord
from diffplan.data.format.dataset import TrajectoryDataset
from diffplan.data.format.manifest import Column
from diffplan.errors import ConfigError, DataError
from diffplan.storage.store import TEMPORARY_PREFIX, sync_directory

RECORD = "diffplan"
EPISODE_RECORD = "diffplan"


def export_minari(
    dataset: TrajectoryDataset,
    dataset_id: str,
    *,
    root: str | Path | None = None,
    on_progress: OnProgress | None = None,
) -> Path:
    """Export a dataset as a Minari dataset in HDF5.

    Columns from Minari are written to their original places; those of a collected dataset become observations,
    actions, rewards and, for further columns, infos of the same name. The dataset is written to a temporary directory
    and renamed, so an interrupted export leaves nothing that Minari lists or loads.

    Args:
        dataset: the dataset.
        dataset_id: id for Minari, such as `my_namespace/name-v0`.
        root: directory of all Minari datasets; None for Minari's own (`MINARI_DATASETS_PATH`).
        on_progress: called with the number of episodes done and their total.

    Returns:
        The directory of the Minari dataset.

    Raises:
        DataError: the id is invalid, a dataset of this id exists, or it cannot be written.
    """
    target = _target(dataset_id, root)
    temporary = target.parent / f"{TEMPORARY_PREFIX}{target.name}-{uuid.uuid4().hex[:12]}"
    try:
        temporary.mkdir(parents=True)
        _write(dataset, dataset_id, temporary / "data", on_progress)
        for path in (temporary / "data").iterdir():
            _sync(path)
        if target.exists():
            raise DataError(f"{target}: another export was faster; take another id or version")
        temporary.rename(target)
        sync_directory(target.parent)
    except (OSError, RuntimeError) as error:  # h5py reports a full disk as either
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{target}: the export cannot be written ({first}); make room or mend permissions") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _target(dataset_id: str, root: str | Path | None) -> Path:
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.storage.datasets_root_dir import get_dataset_path

    try:
        parse_dataset_id(dataset_id)
    except (ValueError, TypeError):
        raise DataError(
            f"dataset_id: expected namespace/name-vN, such as my_namespace/name-v0, got {dataset_id!r}"
        ) from None
    target = get_dataset_path(dataset_id) if root is None else Path(root) / dataset_id
    if target.exists():
        raise DataError(f"{target}: there is a Minari dataset of this id already; take another id or version")
    return target


def _write(dataset: TrajectoryDataset, dataset_id: str, data: Path, on_progress: OnProgress | None) -> None:
    try:
        import h5py  # noqa: F401  (Minari's own message comes late)
        from minari.data_collector import EpisodeBuffer
        from minari.dataset.minari_storage import METADATA_FILE_NAME, MinariStorage
    except ImportError as error:
        raise DataError(f"{dataset_id}: {error}; install what Minari needs: pip install 'minari[hdf5]'") from None
    layout = _layout(dataset)
    # Images stay raw, because JPEG would change them.
    storage = MinariStorage.new(data, *_spaces(dataset), data_format="hdf5", jpeg_encoding=False)
    behavior = dataset.episodes[0].behavior
    records: dict[int, str] = {}

    def buffers() -> Iterator[Any]:
        for i, episode in enumerate(dataset.episodes):
            tree = layout.to_tree(read_columns(dataset, i, episode))
            ends = {"terminations": episode.terminated, "truncations": episode.truncated}
            plain = episode.options is None or _survives(episode.options)
            if record := _episode_record(i, episode, behavior, plain):
                records[i] = json.dumps(record)
            yield EpisodeBuffer(
                id=i,
                seed=episode.seed,
                options=episode.options if plain else None,
                observations=tree["observations"],
                actions=tree["actions"],
                rewards=tree["rewards"],
                infos=tree.get("infos", {}),
                **{name: [False] * (episode.length - 1) + [ended] for name, ended in ends.items()},
            )
            if on_progress is not None:
                on_progress(i + 1, len(dataset.episodes))

    storage.update_episodes(buffers())
    if records:
        storage.update_episode_metadata([{EPISODE_RECORD: text} for text in records.values()], records)
    path = data / METADATA_FILE_NAME
    written = json.loads(path.read_text())
    metadata = _metadata(dataset, layout, behavior)
    path.write_text(
        json.dumps({**metadata, **written, "dataset_id": dataset_id, "minari_version": version("minari")}, indent=2)
    )


def read_columns(dataset: TrajectoryDataset, index: int, episode: EpisodeRecord) -> dict[str, np.ndarray]:
    """All columns of an episode, with the value after the last action if there is one."""
    columns = {}
    for column in dataset.manifest.columns:
        values = dataset.episode_column(index, column.name)
        if column.has_final:
            main = column.name == "observation"
            final = _decode_numbers(episode.final_observation if main else episode.final_values[column.name], column)
            values = np.concatenate([values, final[None]])
        columns[column.name] = values
    return columns


def _decode_numbers(values: list[Any], column: Column) -> np.ndarray:
    plain = [float(v) for v in values] if column.numpy_dtype.kind == "f" else values
    return np.array(plain, dtype=column.numpy_dtype).reshape(column.shape)


def _layout(dataset: TrajectoryDataset) -> Layout:
    columns = dataset.manifest.columns
    leaves = dataset.manifest.source.get("leaves")
    if leaves is None:
        return default_layout(columns)
    try:
        return Layout.from_dict({"columns": [vars(column) for column in columns], "leaves": leaves})
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{dataset.uri}: the manifest does not say where columns were in Minari ({error})") from None


def _spaces(dataset: TrajectoryDataset) -> tuple[Any, Any]:
    """Observation and action space: those of the manifest, or boxes."""
    from gymnasium import spaces
    from minari.serialization import deserialize_space

    manifest = dataset.manifest
    if {"observation", "action"} <= set(manifest.spaces):
        return deserialize_space(manifest.spaces["observation"]), deserialize_space(manifest.spaces["action"])

    def box(column: Column, low: list[float | None], high: list[float | None]) -> Any:
        kind = column.numpy_dtype
        limits = np.iinfo(kind) if kind.kind in "iu" else None
        least, most = (-np.inf, np.inf) if limits is None else (limits.min, limits.max)
        lows = np.array([least if v is None else v for v in low]).astype(kind).reshape(column.shape)
        highs = np.array([most if v is None else v for v in high]).astype(kind).reshape(column.shape)
        return spaces.Box(lows, highs, column.shape, kind.type)

    observation, action = manifest.column("observation"), manifest.column("action")
    unbounded: list[float | None] = [None] * observation.size
    return box(observation, unbounded, unbounded), box(action, manifest.action_low, manifest.action_high)


def _metadata(dataset: TrajectoryDataset, layout: Layout, behavior: str) -> dict[str, Any]:
    """Entries of the dataset's metadata besides those that Minari's storage writes itself."""
    manifest = dataset.manifest
    origin = {"dataset_uuid": manifest.dataset_uuid, "collection": manifest.collection}
    metadata: dict[str, Any] = {
        RECORD: {
            "layout": layout.to_dict(),
            "env": config_to_dict(dataset.env),
            "behavior": behavior,
            "origin": manifest.source.get("origin") or origin,
        }
    }
    if manifest.source.get("kind") == "minari":
        metadata = {**manifest.source["metadata"], **metadata}
    else:
        metadata["algorithm_name"] = behavior
    if manifest.env_spec is not None:
        return {**metadata, "env_spec": manifest.env_spec}
    return {**metadata, **_derive_specs(dataset)}


def _derive_specs(dataset: TrajectoryDataset) -> dict[str, str]:
    """The spec of the environment with the episode limit of the collection, and the registered one for evaluation."""
    from diffplan.environments import find_spec

    try:
        spec = find_spec(dataset.env)
        spec.kwargs = {**spec.kwargs, **dataset.env.env_kwargs}
        registered = spec.to_json()
        if dataset.collection is None:
            return {"env_spec": registered}
        spec.max_episode_steps = dataset.collection.episode_steps
        return {"env_spec": spec.to_json(), "eval_env_spec": registered}
    except (ConfigError, TypeError, ValueError, ImportError):
        return {}  # not registered here, or not representable as JSON; Minari needs no spec


def _episode_record(index: int, episode: EpisodeRecord, behavior: str, plain_options: bool) -> dict[str, Any]:
    """The content of an episode that has no place in Minari's own entries."""
    record: dict[str, Any] = {}
    if episode.episode_index != index:
        record["episode_index"] = episode.episode_index
    if episode.behavior != behavior:
        record["behavior"] = episode.behavior
    if episode.task:
        record["task"] = episode.task
    if not plain_options:
        record["options"] = episode.options
    return record


def _survives(value: Any) -> bool:
    """Whether options survive a round trip through HDF5 attributes."""
    if isinstance(value, dict):
        known = all(name and "/" not in name and _survives(inner) for name, inner in value.items())
        return bool(value) and known and list(value) == sorted(value)
    if isinstance(value, list):
        try:
            array = np.asarray(value)
        except ValueError:
            return False
        return array.dtype.kind in "bif" and array.size > 0 and repr(array.tolist()) == repr(value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return isinstance(value, float) or (isinstance(value, str) and "\0" not in value)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

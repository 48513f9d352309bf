"""Import of episodes into a dataset, unit by unit; the common part of all imports.

Units are ranges of episodes, so an interrupted import continues when it is run again: committed units are skipped, and
two simultaneous imports of the same source share the work.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffplan.data.format.dataset import TrajectoryDataset, open_dataset, write_snapshot
from diffplan.data.format.manifest import COMMITS, MANIFEST_NAME, SHARDS, SNAPSHOTS, Manifest
from diffplan.data.format.snapshot import read_state
from diffplan.data.format.statistics import find_finite
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.errors import DataError
from diffplan.storage.opening import open_store
from diffplan.storage.store import LocalStore, Store
from diffplan.types import Episode

OnProgress = Callable[[int, int], None]
"""Called after each unit with the number of episodes done and their total."""


def import_units(
    out: str | Path,
    manifest: Manifest,
    num_episodes: int,
    episodes_per_unit: int,
    read_unit: Callable[[range], Sequence[Episode]],
    on_progress: OnProgress | None = None,
) -> TrajectoryDataset:
    """Write every missing unit, and open the result at a snapshot.

    Args:
        out: directory or URL of the dataset.
        manifest: manifest of a new dataset; that of an existing one must equal it except for the uuid.
        num_episodes: episodes of the source.
        episodes_per_unit: episodes in a unit.
        read_unit: reads a range of the source's episodes.
        on_progress: see `OnProgress`.

    Raises:
        DataError: there is another dataset or other files at `out`, or the source cannot be read.
    """
    if episodes_per_unit < 1:
        raise DataError(f"episodes_per_unit: expected at least 1, got {episodes_per_unit}")
    store = open_store(out)
    manifest = _begin(store, manifest)
    state = read_state(store, manifest)
    present = set() if state is None else set(np.unique(state.episodes.unit).tolist())
    num_units = -(-num_episodes // episodes_per_unit)
    for unit in range(num_units):
        end = min((unit + 1) * episodes_per_unit, num_episodes)
        if unit not in present:
            episodes = read_unit(range(unit * episodes_per_unit, end))
            for episode in episodes:
                _require_finite(episode)
            write_unit(store, manifest, unit, episodes)
        if on_progress is not None:
            on_progress(end, num_episodes)
    dataset = open_dataset(store)
    dataset = open_dataset(store, snapshot=write_snapshot(dataset))
    if len(present) < num_units:
        _warn_of_actions(dataset)
    return dataset


def _begin(store: Store, manifest: Manifest) -> Manifest:
    """The manifest of the dataset: a new one, or that of an earlier run of the same import."""
    expected = Manifest.from_json(manifest.to_json(), store.locate(MANIFEST_NAME))  # after a JSON round trip
    if not any(stored.name == MANIFEST_NAME for stored in store.list("")):
        _require_room(store)
        try:
            found = create_dataset(store, expected)
        except OSError as error:
            raise DataError(f"{store.uri}: the dataset cannot be begun ({error.strerror or error})") from None
    else:
        found = Manifest.from_json(store.read(MANIFEST_NAME), store.locate(MANIFEST_NAME))
    if found.source.get("kind") != expected.source["kind"]:
        kind = found.source.get("kind", "collected here")
        raise DataError(f"{store.uri}: expected a new directory, got a dataset ({kind}); take another out directory")
    for key in {**expected.source, **found.source}:
        if found.source.get(key) != expected.source.get(key):
            raise DataError(
                f"{store.uri}: the dataset there was imported from another source or with other settings ({key} is "
                f"{_shorten(found.source.get(key))}, now {_shorten(expected.source.get(key))}); take another out "
                "directory, or go on with the same"
            )
    for name in ("env", "columns", "action_low", "action_high", "spaces", "env_spec"):
        if getattr(found, name) != getattr(expected, name):
            raise DataError(
                f"{store.uri}: the dataset there was begun with another {name} ({_shorten(getattr(found, name))}, now "
                f"{_shorten(getattr(expected, name))}); import with the same settings, or take another out directory"
            )
    return found


def _require_room(store: Store) -> None:
    if not isinstance(store, LocalStore) or not store.root.exists():
        return
    known = {SHARDS, COMMITS, SNAPSHOTS}
    if not store.root.is_dir() or any(path.name not in known for path in store.root.iterdir()):
        raise DataError(f"{store.uri}: expected a new or empty directory or a dataset, got other files; take another")


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _require_finite(episode: Episode) -> None:
    for name in ("observations", "actions", "rewards"):
        finite = find_finite(getattr(episode, name))
        if not finite.all():
            step = int(np.argwhere(~finite)[0, 0])
            raise DataError(
                f"episode {episode.episode_index}: {name}: expected finite numbers, got NaN, infinity or more than "
                f"1e150 at step {step}; mend or remove the episode in the source"
            )


def _warn_of_actions(dataset: TrajectoryDataset) -> None:
    """Warn once of actions beyond the bounds; they are kept unchanged."""
    manifest, column = dataset.manifest, dataset.manifest.column("action")
    low = np.array([-np.inf if v is None else v for v in manifest.action_low])
    high = np.array([np.inf if v is None else v for v in manifest.action_high])
    statistics = dataset.statistics["action"]
    if (statistics.minimum >= low).all() and (statistics.maximum <= high).all():
        return
    num_outside, furthest = 0, 0.0
    for i in range(len(dataset.episodes)):
        actions = dataset.episode_column(i, "action").reshape(-1, column.size)
        beyond = np.maximum(low - actions, actions - high).max(axis=1)
        num_outside += int((beyond > 0).sum())
        furthest = max(furthest, float(beyond.max()))
    warnings.warn(
        f"{dataset.uri}: {num_outside:,} of {dataset.num_steps:,} actions lie outside the action space, by up to "
        f"{furthest:.3g}; they are kept as they are",
        stacklevel=3,
    )

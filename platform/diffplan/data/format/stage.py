"""The progress of a dataset."""

from __future__ import annotations

from diffplan.config import CollectionConfig, config_from_dict
from diffplan.data.format.commit import list_committed_units
from diffplan.data.format.dataset import list_snapshots, read_manifest
from diffplan.data.format.manifest import MANIFEST_NAME
from diffplan.runs.stages import StageOutput, StageReader, has_file
from diffplan.storage.store import Store


def read_collection(store: Store) -> StageOutput:
    """The progress of a collection, import or merge, from the directory of its dataset."""
    if not has_file(store, MANIFEST_NAME):
        return StageOutput("collect", "steps", is_begun=True)
    manifest = read_manifest(store)
    has_snapshot = bool(list_snapshots(store))
    units = list_committed_units(store)
    if manifest.collection is None:  # imported or merged: the final number of units is unknown here
        kind = str(manifest.source.get("kind", "import"))
        return StageOutput(kind, "units", True, has_snapshot, len(units), len(units) if has_snapshot else None)
    collection = config_from_dict(CollectionConfig, manifest.collection)
    unit_steps = collection.episodes_per_unit * collection.max_episode_steps
    done, total = len(units) * unit_steps, count_collected_steps(collection)
    return StageOutput("collect", "steps", True, has_snapshot and done >= total, done, max(done, total))


def count_collected_steps(collection: CollectionConfig) -> int:
    """Steps of all units of a collection."""
    return collection.num_episodes * collection.max_episode_steps


COLLECTION = StageReader("collect", lambda files, directories: MANIFEST_NAME in files, read_collection)

"""The progress of a dataset."""

from __future__ import annotations

from diffplan.config import CollectionConfig, config_from_dict
from diffplan.data.format.commit import list_committed_units
from diffplan.data.format.dataset import list_snapshots, read_manifest
from diffplan.data.format.manifest import MANIFEST_NAME, SHARDS, Manifest
from diffplan.data.format.snapshot import read_snapshot
from diffplan.runs.stages import StageOutput, StageReader, has_file
from diffplan.storage.store import Store


def read_collection(store: Store) -> StageOutput:
    """The progress of a collection, import or merge, from the directory of its dataset."""
    if not has_file(store, MANIFEST_NAME):
        return StageOutput("collect", "steps", is_begun=True)
    manifest = read_manifest(store)
    snapshots = list_snapshots(store)
    units = list_committed_units(store)
    if manifest.collection is None:  # imported or merged: the final number of units is unknown here
        kind = str(manifest.source.get("kind", "import"))
        return StageOutput(kind, "units", True, bool(snapshots), len(units), len(units) if snapshots else None)
    collection = config_from_dict(CollectionConfig, manifest.collection)
    done = int(read_snapshot(store, manifest, snapshots[-1]).episodes.length.sum()) if snapshots else 0
    if is_whole := done >= collection.num_steps:
        return StageOutput("collect", "steps", True, is_whole, done, done)
    done = max(done, _estimate_steps(store, manifest, set(units)))
    return StageOutput("collect", "steps", True, is_whole, done, max(done, collection.num_steps))


def _estimate_steps(store: Store, manifest: Manifest, units: set[int]) -> int:
    """Steps of committed units from the sizes of their shards, without reading a commit."""
    row_bytes = 13 + sum(column.size * column.numpy_dtype.itemsize for column in manifest.columns)
    sizes: dict[int, int] = {}
    for stored in store.list(SHARDS):
        name = stored.name.rpartition("/")[2].partition("-")[0]
        if name.isdigit() and int(name) in units:  # an orphan beside the shard of its unit has the same size
            sizes[int(name)] = stored.num_bytes
    return sum(size // row_bytes for size in sizes.values())


COLLECTION = StageReader("collect", lambda files, directories: MANIFEST_NAME in files, read_collection)

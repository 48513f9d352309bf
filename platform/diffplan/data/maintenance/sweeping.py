"""Sweep unreferenced objects: shards of killed writers, temporary files, shards that compaction replaced.

Only its age distinguishes an orphan from a shard whose writer is about to commit it. Ages are measured by the clock of
the store. The age of a replaced shard starts with the first snapshot that does not name it, so runs that opened the
dataset before have this time to end or to be resumed.
"""

from __future__ import annotations

from diffplan.data.format.commit import read_commit
from diffplan.data.format.dataset import read_manifest
from diffplan.data.format.manifest import COMMITS, SHARDS, SNAPSHOTS, Manifest, snapshot_name
from diffplan.data.format.snapshot import list_snapshots, read_snapshot, read_state, relocate
from diffplan.errors import DataError
from diffplan.storage.store import TEMPORARY_PREFIX, LocalStore, Store, StoredObject, find_own_path

MIN_AGE_SECONDS = 3600.0
"""If a writer pauses between shard and commit for longer than this, its shard may be swept."""


def find_sweepable(store: Store, older_than_seconds: float) -> list[StoredObject]:
    """Unreferenced objects that are older than this.

    Raises:
        DataError: no dataset, a damaged one (its references are unknown), or an age below `MIN_AGE_SECONDS`.
        StoreError: one of its directories is a symbolic link, which may lead to files of another dataset.
    """
    if older_than_seconds < MIN_AGE_SECONDS:
        raise DataError(
            f"sweep: expected an age of at least {MIN_AGE_SECONDS / 3600:g} h, got {older_than_seconds / 3600:g} h; "
            "a younger shard may be about to be committed"
        )
    manifest = read_manifest(store)
    if isinstance(store, LocalStore):  # said before anything is deleted
        for directory in (SHARDS, COMMITS, SNAPSHOTS):
            find_own_path(store.root, f"{directory}/")
    state = read_state(store, manifest)
    named = set()
    if state is not None:  # includes the shards from which the units of missing shards are read
        named = {shard.name for part in (state, relocate(store, manifest, state)) for shard in part.shards}
    replaced_at = _replacement_times(store, manifest)
    now = store.now_seconds()
    found = []
    for directory in ("", SHARDS, COMMITS, SNAPSHOTS):
        for stored in store.list(directory):
            stem = stored.name.rsplit("/", 1)[-1]
            orphan = directory == SHARDS and stem.endswith(".arrow") and stored.name not in named
            since = max(stored.modified_seconds, replaced_at.get(stored.name, 0.0))
            if (orphan or stem.startswith(TEMPORARY_PREFIX)) and now - since > older_than_seconds:
                found.append(stored)
    return found


def _replacement_times(store: Store, manifest: Manifest) -> dict[str, float]:
    """For each shard in a snapshot, the time when a later snapshot last dropped it, on the store's clock."""
    written = {stored.name: stored.modified_seconds for stored in store.list(SNAPSHOTS)}
    times: dict[str, float] = {}
    before: set[str] = set()
    for number in list_snapshots(store):
        names = {shard.name for shard in read_snapshot(store, manifest, number).shards}
        for name in before - names:
            times[name] = written.get(snapshot_name(number), store.now_seconds())
        before = names
    # Shards that were joined before they were in any snapshot count from the newest snapshot, which is no older than
    # their replacement.
    newest = max(written.values(), default=0.0)
    for stored in store.list(SHARDS):
        if stored.name not in times and stored.name not in before:
            times.setdefault(stored.name, newest if _is_committed(store, stored.name) else 0.0)
    return times


def _is_committed(store: Store, name: str) -> bool:
    """Whether the commit of a shard's unit (from its name) names this shard."""
    stem = name.rsplit("/", 1)[-1].split("-")[0]
    try:
        return stem.isdigit() and read_commit(store, int(stem)).shard.name == name
    except FileNotFoundError:
        return False


def sweep(store: Store, older_than_seconds: float) -> list[StoredObject]:
    """Delete the objects of `find_sweepable`, and return them."""
    found = find_sweepable(store, older_than_seconds)
    for stored in found:
        store.delete(stored.name)
    return found

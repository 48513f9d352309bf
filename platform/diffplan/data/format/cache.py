"""Cache of the shards of an object store on the local disk, where they can be mapped; copies are verified.

The cache is `$DIFFPLAN_CACHE` or `~/.cache/diffplan`, one directory per dataset uuid. Shards never change, so a copy
stays valid; delete the directory to free the space.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

from diffplan.data.format.checksums import read_checked
from diffplan.data.format.commit_record import ShardRecord
from diffplan.errors import StoreError
from diffplan.storage.store import TEMPORARY_PREFIX, LocalStore, Store


def fetch_shard(store: Store, shard: ShardRecord, dataset_uuid: str) -> Path:
    """The local file of a shard, copied from its store on first use.

    Raises:
        DataError: the shard is missing, has another size or does not match its checksums.
        StoreError: the copy cannot be written.
    """
    if isinstance(store, LocalStore):
        return store.root / shard.name
    path = cache_directory() / dataset_uuid / Path(shard.name).name
    if path.exists() and path.stat().st_size == shard.num_bytes:
        return path
    temporary = path.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            for piece in read_checked(store, shard):
                file.write(piece)
        temporary.replace(path)  # processes that fetch the same shard write the same bytes
    except OSError as error:
        raise StoreError(
            f"{path}: the copy of {store.locate(shard.name)} could not be written ({error.strerror or error}); make "
            "room, or set DIFFPLAN_CACHE to another directory"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def cache_directory() -> Path:
    """The directory of the cache."""
    return Path(os.environ.get("DIFFPLAN_CACHE") or Path.home() / ".cache" / "diffplan")

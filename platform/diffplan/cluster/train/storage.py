"""Storage of a training run: a directory that all its workers see, or a prefix of an object store.

```
<out>/pinned.json                 the snapshot of the dataset that the run trains on
      run/step_00001000/ ...      the newest two checkpoints to resume from, and Ray Train's record of them
      tensorboard/                curves
      config.json ...             the finished checkpoint, published when the run is complete
```

A run resumes from the newest *complete* checkpoint under `run/`, whatever Ray has recorded: an interrupted upload has
no `config.json`, and an upload that was complete when its worker died counts although Ray has no record of it. Ray's
own record is deleted when a run is resumed, because it is rewritten in place, cannot be read by another version of Ray,
and is refused as a whole if one checkpoint that it names is missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import fsspec.core
import pyarrow.fs

from diffplan import checkpoint as checkpoints
from diffplan.cluster.store_variables import adopt_variables, find_variables
from diffplan.errors import CheckpointError
from diffplan.runs.checkpoint_record import is_file_name
from diffplan.runs.layout import RUN_NAME, STEP_PREFIX
from diffplan.storage.object_store import ObjectStore
from diffplan.storage.opening import open_store
from diffplan.storage.store import LocalStore, find_own_path

NUM_CHECKPOINTS = 2
"""Checkpoints that are kept to resume from."""
RAY_NOTE = "checkpoint_manager_snapshot.json"
OBJECT_STORES = {"s3", "s3a", "gs", "gcs"}
"""Protocols of stores that have no directories."""


class RunStorage(Protocol):
    """Storage of a run. It can be pickled."""

    @property
    def uri(self) -> str:
        """Absolute path or URL."""
        ...

    def read(self, name: str) -> bytes:
        """A file; raises `FileNotFoundError` if there is none."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Create or replace a file, whole or not at all."""
        ...

    def list_directories(self, name: str) -> list[str]:
        """Paths of the directories directly in a directory."""
        ...

    def delete(self, name: str) -> None:
        """Delete a file or a directory with the files in it, if there is one."""
        ...

    def is_whole(self, name: str) -> bool:
        """Whether a directory holds a whole checkpoint."""
        ...

    def put_checkpoint(self, source: Path, name: str) -> None:
        """Copy a checkpoint of this machine into a directory ("" for the root), `config.json` last."""
        ...

    def fetch(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """A checkpoint as a directory of this machine, for as long as the context lasts."""
        ...

    def ray_storage(self) -> dict[str, Any]:
        """Arguments of `ray.train.RunConfig`."""
        ...


class LocalRun:
    """A directory, on a disk or a network file system that all workers see."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    @property
    def uri(self) -> str:
        """Absolute path."""
        return str(self.root)

    def read(self, name: str) -> bytes:
        """A file; raises `FileNotFoundError` if there is none."""
        return LocalStore(self.root).read(name)

    def write(self, name: str, content: bytes) -> None:
        """Create or replace a file, whole or not at all."""
        LocalStore(self.root).replace(name, content)

    def list_directories(self, name: str) -> list[str]:
        """Paths of the directories directly in a directory."""
        return LocalStore(self.root).list_directories(name)

    def delete(self, name: str) -> None:
        """Delete a file or a directory, if there is one."""
        path = find_own_path(self.root, name)
        if path.is_symlink():  # the link, not what it leads to
            path.unlink()
        elif path.is_dir():
            (path / checkpoints.CONFIG).unlink(missing_ok=True)  # first, so that the rest is no complete checkpoint
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def is_whole(self, name: str) -> bool:
        """Whether a directory holds a whole checkpoint, by its checksums; one behind a link is none of this run."""
        path = find_own_path(self.root, name)
        return not path.is_symlink() and checkpoints.is_checkpoint(path)

    def put_checkpoint(self, source: Path, name: str) -> None:
        """Copy a checkpoint into a directory, `config.json` last."""
        checkpoints.publish_checkpoint(source, find_own_path(self.root, f"{name}/") if name else self.root)

    @contextlib.contextmanager
    def fetch(self, name: str) -> Iterator[Path]:
        """The directory itself."""
        yield self.root / name

    def ray_storage(self) -> dict[str, Any]:
        """Arguments of `ray.train.RunConfig`."""
        return {"storage_path": str(self.root)}


class StoreRun:
    """A prefix of an object store.

    Args:
        store: the object store.
        variables: endpoint and credentials, for Ray's processes on other machines.
    """

    def __init__(self, store: ObjectStore, variables: dict[str, str]) -> None:
        self._store = store
        self._variables = variables

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_store_run, (self._store.uri, self._variables)

    @property
    def uri(self) -> str:
        """URL."""
        return self._store.uri

    def read(self, name: str) -> bytes:
        """An object; raises `FileNotFoundError` if there is none."""
        return self._store.read(name)

    def write(self, name: str, content: bytes) -> None:
        """Create or replace an object."""
        self._store.replace(name, content)

    def list_directories(self, name: str) -> list[str]:
        """Prefixes directly under a prefix."""
        return self._store.list_directories(name)

    def delete(self, name: str) -> None:
        """Delete an object, or those directly under a prefix."""
        self._store.delete(f"{name}/{checkpoints.CONFIG}")  # first, so that the rest is no complete checkpoint
        for stored in self._store.list(name):
            self._store.delete(stored.name)
        self._store.delete(name)

    def is_whole(self, name: str) -> bool:
        """Whether a prefix holds a whole checkpoint, by the sizes of its objects."""
        return checkpoints.is_uploaded(self._store, name)

    def put_checkpoint(self, source: Path, name: str) -> None:
        """Upload a checkpoint, `config.json` last."""
        checkpoints.upload_checkpoint(source, self._store, name)

    @contextlib.contextmanager
    def fetch(self, name: str) -> Iterator[Path]:
        """A copy in a temporary directory."""
        with tempfile.TemporaryDirectory(prefix="diffplan-") as directory:
            for stored in self._store.list(name):
                file_name = stored.name.rpartition("/")[2]
                if is_file_name(file_name):
                    (Path(directory) / file_name).write_bytes(self._store.read(stored.name))
            yield Path(directory)

    def ray_storage(self) -> dict[str, Any]:
        """Arguments of `ray.train.RunConfig`."""
        handler = _StoreHandler(self._store.uri, self._variables)
        return {
            "storage_path": handler.root,
            "storage_filesystem": pyarrow.fs.PyFileSystem(handler),
        }


def _open_store_run(url: str, variables: dict[str, str]) -> StoreRun:
    adopt_variables(variables)
    return StoreRun(ObjectStore(url), variables)


class _StoreHandler(pyarrow.fs.FSSpecHandler):
    """An fsspec file system for Ray's own files; its pickle includes endpoint and credentials."""

    def __init__(self, url: str, variables: dict[str, str]) -> None:
        adopt_variables(variables)
        file_system, self.root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
        super().__init__(file_system)
        self._arguments = (url, variables)

    def __reduce__(self) -> tuple[Any, ...]:
        return _StoreHandler, self._arguments

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _StoreHandler) and self.root == other.root

    def __ne__(self, other: object) -> bool:
        return not self == other

    def create_dir(self, path: str, recursive: bool) -> None:
        """Object stores have no directories, and s3fs would make a bucket if it found none."""
        protocols = {self.fs.protocol} if isinstance(self.fs.protocol, str) else set(self.fs.protocol)
        if protocols.isdisjoint(OBJECT_STORES):
            super().create_dir(path, recursive)


def open_run(where: str | Path) -> RunStorage:
    """The storage of a run at a path or URL.

    Raises:
        DataError: no file system for this URL.
    """
    store = open_store(where)
    if isinstance(store, LocalStore):
        return LocalRun(store.root)
    assert isinstance(store, ObjectStore)
    return StoreRun(store, find_variables())


def has_run(storage: RunStorage) -> bool:
    """Whether a run was begun there."""
    return RUN_NAME in storage.list_directories("")


def list_checkpoints(storage: RunStorage) -> list[str]:
    """The directories of checkpoints to resume from, whole or not, by step."""
    names = storage.list_directories(RUN_NAME)
    return sorted(name for name in names if re.fullmatch(rf"{STEP_PREFIX}[0-9]+", name.rpartition("/")[2]))


def find_newest_checkpoint(storage: RunStorage) -> str | None:
    """The newest whole checkpoint of a run; None if there is none."""
    return next((name for name in reversed(list_checkpoints(storage)) if storage.is_whole(name)), None)


def find_newest_step(storage: RunStorage) -> int:
    """The step from which a run resumes; 0 for a new run."""
    newest = find_newest_checkpoint(storage)
    return 0 if newest is None else int(newest.rpartition(STEP_PREFIX)[2])


def sweep(storage: RunStorage) -> None:
    """Delete all checkpoints but the newest complete ones, and Ray's record of them. Nothing may train meanwhile."""
    storage.delete(f"{RUN_NAME}/{RAY_NOTE}")
    num_kept = 0
    for name in reversed(list_checkpoints(storage)):
        if num_kept < NUM_CHECKPOINTS and storage.is_whole(name):
            num_kept += 1
        else:
            storage.delete(name)


def publish(storage: RunStorage) -> None:
    """Copy the newest checkpoint to the root of the run, where users load it from.

    Raises:
        CheckpointError: there is none.
    """
    newest = find_newest_checkpoint(storage)
    if newest is None:
        raise CheckpointError(f"{storage.uri}: training ended without a checkpoint; go on with it by --resume")
    with storage.fetch(newest) as directory:
        storage.put_checkpoint(directory, "")


def make_scratch_directory(storage: RunStorage) -> Path:
    """A directory of this machine to write a checkpoint into before it is copied to the run."""
    return Path(tempfile.mkdtemp(prefix=_scratch_prefix(storage)))


def sweep_scratch_directories(storage: RunStorage) -> None:
    """Delete files that killed workers of this run have left on this machine."""
    for path in Path(tempfile.gettempdir()).glob(f"{_scratch_prefix(storage)}*"):
        shutil.rmtree(path, ignore_errors=True)


def _scratch_prefix(storage: RunStorage) -> str:
    owner = f"{os.getuid()}:{storage.uri}"
    return f"diffplan-{hashlib.sha256(owner.encode()).hexdigest()[:12]}-"

"""TensorBoard files in a directory or an object store."""

from __future__ import annotations

import tempfile
from pathlib import Path

from diffplan.storage.object_store import ObjectStore
from diffplan.storage.opening import open_store


class EventFiles:
    """The directory that a process writes TensorBoard files to, and their upload to an object store.

    A directory is written to directly, so that curves are live. Files for an object store are written to the local disk
    and uploaded by `upload`.

    Args:
        where: directory or URL.
    """

    def __init__(self, where: str) -> None:
        store = open_store(where)
        self._store = store if isinstance(store, ObjectStore) else None
        self._temporary = tempfile.TemporaryDirectory(prefix="diffplan-") if self._store else None
        self.directory = self._temporary.name if self._temporary else str(Path(store.uri))

    def measure(self) -> dict[str, int]:
        """Sizes of the files now, by name; to be called when they have just been flushed. Empty for a directory."""
        if self._store is None:
            return {}
        return {path.name: path.stat().st_size for path in Path(self.directory).iterdir()}

    def upload(self, sizes: dict[str, int]) -> None:
        """Upload the files up to these sizes: the bytes after them may be a partial record."""
        for name, num_bytes in sizes.items():
            assert self._store is not None
            with (Path(self.directory) / name).open("rb") as file:
                self._store.write(name, [file.read(num_bytes)])

"""Storage of a search: a directory, or a prefix of an object store.

The file of a search grows line by line, which objects cannot. So a search in an object store works in a directory of
the driver's machine. Its file is uploaded whenever a trial is over, so that no finished trial is lost with the machine;
the results are uploaded at the end. Tune's own files are not.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffplan.errors import ConfigError
from diffplan.runs.layout import BEST
from diffplan.runs.usage import STALE_SECONDS, read_usage
from diffplan.storage.opening import open_store
from diffplan.storage.store import LocalStore, Store
from diffplan.tuning.journal import FILE_NAME, hold_search, read_begun


@dataclass(frozen=True)
class SearchStorage:
    """A search that is held by this process.

    Attributes:
        store: its store.
        directory: its working directory on this machine.
    """

    store: Store
    directory: Path

    def save(self) -> None:
        """Make the file of the search durable as it is now."""
        if not self.store.is_local:
            self.store.replace(FILE_NAME, (self.directory / FILE_NAME).read_bytes())

    def publish(self) -> None:
        """Make the results of the search durable, `best.json` last."""
        if self.store.is_local:
            return
        self.save()
        files = [path for pattern in ("*.json", "*.png", "*/trial_*.json") for path in self.directory.glob(pattern)]
        for path in sorted(files, key=lambda path: path.name == BEST):
            self.store.replace(path.relative_to(self.directory).as_posix(), path.read_bytes())


@contextlib.contextmanager
def open_search(out: str | Path, *, resume: bool) -> Iterator[SearchStorage]:
    """Hold a search for as long as the context lasts.

    Args:
        out: directory or URL of the search.
        resume: go on with a search that is there.

    Raises:
        ConfigError: there is a search already and `resume` is not set, or another process searches there.
        StoreError: the store cannot be reached.
    """
    store = open_store(out)
    if not resume and {stored.name for stored in store.list("")} & {FILE_NAME, BEST}:
        raise ConfigError(f"{store.uri}: there is a search already; go on with it by --resume, or take another --out")
    if isinstance(store, LocalStore):
        with hold_search(store.root):
            yield SearchStorage(store, store.root)
        return
    # Stores have no locks that are released when a process dies; a search is running if it gives signs of life.
    if any(usage.is_running(time.time()) for usage in read_usage(store)):
        raise ConfigError(
            f"{store.uri}: another search is at work there; wait until it is done, or {STALE_SECONDS:.0f} s if it was "
            "killed, or take another --out"
        )
    with _fetch(store) as directory:
        yield SearchStorage(store, directory)


def read_begun_at(out: str | Path) -> dict[str, Any]:
    """The inputs of the search at a path or URL; empty if there is no search."""
    store = open_store(out)
    if isinstance(store, LocalStore):
        return read_begun(store.root)
    with _fetch(store) as directory:
        return read_begun(directory)


@contextlib.contextmanager
def _fetch(store: Store) -> Iterator[Path]:
    """The file of a search, if there is one, in a directory of this machine."""
    with tempfile.TemporaryDirectory(prefix="diffplan-") as directory:
        with contextlib.suppress(FileNotFoundError):
            (Path(directory) / FILE_NAME).write_bytes(store.read(FILE_NAME))
        yield Path(directory)

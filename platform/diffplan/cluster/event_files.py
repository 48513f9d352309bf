"""TensorBoard files in a directory or an object store."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffplan.errors import CheckpointError
from diffplan.storage.object_store import ObjectStore
from diffplan.storage.opening import open_store


class CurveWriter:
    """Writes TensorBoard files; what a full or missing disk refuses is one kind of error.

    Args:
        directory: of the files.
        purge_step: points from this step on, of an attempt before, are not shown.

    Raises:
        CheckpointError: a file cannot be written; raised by every method.
    """

    def __init__(self, directory: str, purge_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # late: it costs half a second

        _quiet_threads()
        self._directory = directory
        with self._explain():
            self._writer = SummaryWriter(directory, purge_step=purge_step)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Add a point to a curve."""
        with self._explain():
            self._writer.add_scalar(name, value, step)

    def add_image(self, name: str, image: Any, step: int) -> None:
        """Add a picture, uint8[height, width, 3]."""
        with self._explain():
            self._writer.add_image(name, image, step, dataformats="HWC")

    def flush(self) -> None:
        """Write everything that was added."""
        with self._explain():
            self._writer.flush()

    def close(self) -> None:
        """Write everything and close the file."""
        with self._explain():
            self._writer.close()

    @contextlib.contextmanager
    def _explain(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"{self._directory}: curves could not be written ({(error.strerror or str(error)).lower()}); make room "
                "or mend the permissions, then go on with --resume"
            ) from None


def _quiet_threads() -> None:
    """Print no traceback where a thread of TensorBoard fails to write: the next call of the writer raises its error."""
    before = threading.excepthook
    if getattr(before, "is_quiet", False):
        return

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not (isinstance(failed.exc_value, OSError) and type(failed.thread).__module__.startswith("tensorboard")):
            before(failed)

    hook.is_quiet = True  # type: ignore[attr-defined]
    threading.excepthook = hook


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

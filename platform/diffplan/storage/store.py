"""Stores: a directory, or a prefix of an object store.

A dataset needs only few operations: read an object, read a range of one, list a directory, and create an object *if
there is none of that name*, atomically among any number of writers. Names are relative, with `/` between their parts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from diffplan.errors import StoreError
from diffplan.files import open_file, read_file

TEMPORARY_PREFIX = ".tmp-"
"""Prefix of the names of files that are being written; those left by a crash are swept by age."""


@dataclass(frozen=True)
class StoredObject:
    """An entry of a listing.

    Attributes:
        name: its name, relative to the store.
        num_bytes: its size.
        modified_seconds: when it was written, seconds since 1970 on the store's own clock.
    """

    name: str
    num_bytes: int
    modified_seconds: float


class Store(Protocol):
    """A directory or prefix that holds a dataset. A missing object raises `FileNotFoundError`."""

    @property
    def is_local(self) -> bool:
        """Whether objects are files that can be mapped."""
        ...

    @property
    def uri(self) -> str:
        """Where it is, as `open_store` takes it."""
        ...

    def locate(self, name: str) -> str:
        """Path or URL of an object, for messages."""
        ...

    def read(self, name: str) -> bytes:
        """A whole object."""
        ...

    def read_range(self, name: str, start: int, num_bytes: int) -> bytes:
        """A piece of an object; shorter than asked for where the object ends before it."""
        ...

    def open(self, name: str) -> Any:
        """An object as a file to read and seek in."""
        ...

    def size(self, name: str) -> int:
        """Bytes of an object."""
        ...

    def list(self, directory: str) -> list[StoredObject]:
        """The objects directly in a directory ("" for the root), by name; none where there is no such directory."""
        ...

    def list_directories(self, directory: str) -> list[str]:
        """Names of the directories directly in a directory ("" for the root); none where there is none."""
        ...

    def put_if_absent(self, name: str, content: bytes) -> bool:
        """Create an object with its whole content, durably, unless there is one; returns whether this call did."""
        ...

    def write(self, name: str, pieces: Iterable[Any]) -> None:
        """Create an object of a name that nobody else uses, durably, from buffers that follow one another."""
        ...

    def replace(self, name: str, content: bytes) -> None:
        """Create or replace an object, whole or not at all, durably."""
        ...

    def delete(self, name: str) -> None:
        """Delete an object if there is one."""
        ...

    def now_seconds(self) -> float:
        """The store's own clock, which ages are measured by."""
        ...


class LocalStore:
    """A directory of a local disk or a network file system.

    The directory itself may be a symbolic link. Nothing is written or deleted through a link inside it, because whoever
    made the directory may have led it to files of somebody else.
    """

    is_local = True

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()

    @property
    def uri(self) -> str:
        """The directory."""
        return str(self.root)

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalStore, (str(self.root),)

    def locate(self, name: str) -> str:
        """Path of an object."""
        return str(self.root / name)

    def read(self, name: str) -> bytes:
        """A whole object."""
        with _reading(self.root / name):
            return read_file(self.root / name)

    def read_range(self, name: str, start: int, num_bytes: int) -> bytes:
        """A piece of an object; shorter than asked for where the object ends before it."""
        with self.open(name) as file, _reading(self.root / name):
            return os.pread(file.fileno(), num_bytes, start)

    def open(self, name: str) -> BinaryIO:
        """An object as a file to read and seek in."""
        with _reading(self.root / name):
            return open_file(self.root / name)

    def size(self, name: str) -> int:
        """Bytes of an object."""
        return (self.root / name).stat().st_size

    def list(self, directory: str) -> list[StoredObject]:
        """The files directly in a directory ("" for the root), by name; none where there is no such directory."""
        files = []
        try:
            with _reading(self.root / directory), os.scandir(self.root / directory) as entries:
                for entry in entries:
                    try:
                        if entry.is_file():
                            files.append((entry.name, entry.stat()))
                    except OSError as error:  # a temporary file was deleted meanwhile, or a link leads to itself
                        if error.errno not in (errno.ENOENT, errno.ELOOP):
                            raise
        except (FileNotFoundError, NotADirectoryError):
            return []
        prefix = f"{directory}/" if directory else ""
        return [StoredObject(prefix + name, s.st_size, s.st_mtime) for name, s in sorted(files)]

    def list_directories(self, directory: str) -> list[str]:
        """Names of the directories directly in a directory ("" for the root); none where there is none."""
        path = self.root / directory
        with _reading(path):
            found = path.iterdir() if path.is_dir() else ()
            return sorted(str(child.relative_to(self.root)) for child in found if child.is_dir())

    def put_if_absent(self, name: str, content: bytes) -> bool:
        """Create a file with its whole content, durably, unless there is one; returns whether this call did."""
        path = find_own_path(self.root, name)
        temporary = path.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            self._write_durably(temporary, [content])
            try:
                os.link(temporary, path)
            except OSError as error:
                # A network file system may report a failure after making the link; the count of links is reliable.
                if temporary.stat().st_nlink != 2:
                    if isinstance(error, FileExistsError):
                        return False
                    raise
            sync_directory(path.parent)
            return True
        finally:
            temporary.unlink(missing_ok=True)

    def write(self, name: str, pieces: Iterable[Any]) -> None:
        """Create a read-only file of a name that nobody else uses, durably, from buffers that follow one another."""
        path = find_own_path(self.root, name)
        try:
            self._write_durably(path, pieces)
        except FileExistsError:
            raise  # another writer's file; not to be deleted
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)  # the disk may be full
            raise
        path.chmod(0o444)  # shards never change
        sync_directory(path.parent)

    def replace(self, name: str, content: bytes) -> None:
        """Create or replace a file, whole or not at all, durably."""
        path = find_own_path(self.root, name)
        temporary = path.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            self._write_durably(temporary, [content])
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(path.parent)

    def _write_durably(self, path: Path, pieces: Iterable[Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("xb", buffering=0) as file:
                for piece in pieces:
                    view = memoryview(piece).cast("B")
                    while view:
                        view = view[file.write(view) :]
                os.fsync(file.fileno())
        except OSError as error:
            if error.filename is None and error.errno is not None:  # a full disk does not say which
                error.filename = str(path.parent)
            raise

    def delete(self, name: str) -> None:
        """Delete a file if there is one."""
        path = find_own_path(self.root, name)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(
                f"{path}: cannot be deleted ({_reason(error)}); mend the permissions or delete it by hand"
            ) from None

    def now_seconds(self) -> float:
        """The clock of the file system, which ages are measured by."""
        # The clock of a file server may differ from ours, and ages are measured against its times.
        probe = self.root / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            probe.touch(exist_ok=False)
            return probe.stat().st_mtime
        except OSError as error:
            raise StoreError(
                f"{self.root}: expected to write a file to read the clock by, got {error.strerror or error}; mend the "
                "permissions"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)


def find_own_path(root: Path, name: str) -> Path:
    """The path of an object to write or delete, after a look at the directories between it and the root.

    Raises:
        StoreError: one of them is a symbolic link, or the name leads out of the root.
    """
    path = root
    *directories, last = name.split("/")
    if name.startswith("/") or ".." in (*directories, last):
        raise StoreError(f"{root}: expected a name inside this directory, got {name!r}; delete what names it")
    for directory in directories:
        path = path / directory
        if path.is_symlink():
            raise StoreError(
                f"{path}: expected a directory, got a symbolic link; nothing is written or deleted through links "
                "inside a store: put the directory itself there, or name the place that it leads to"
            )
    return path / last


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise different errors for a file that cannot be read, which may be fine, and for one that does not exist."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link that leads to itself leads to no file
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
        if error.errno == errno.EINVAL:
            raise StoreError(f"{path}: {_reason(error)}; put the file itself there") from None
        raise StoreError(
            f"{path}: cannot be read ({_reason(error)}); check the permissions and the disk, then try again"
        ) from None


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

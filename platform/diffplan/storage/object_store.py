"""Datasets in object stores, or on any other file system that fsspec knows.

Credentials, endpoint and region come from the usual places of s3fs and botocore (or gcsfs): the environment, `~/.aws`,
the role of the machine. Nothing is cached: a listing shows every commit that existed when it was made.

Exactly-once commits need puts that fail if the object exists. S3 (`If-None-Match: *`) and Google Cloud Storage
(`ifGenerationMatch=0`) have them; some S3-compatible servers ignore the condition and overwrite, which a probe detects.
Stores without conditional puts can be read, and written by a single process, but cannot hold datasets that are written.

An interrupted multipart upload leaves its parts in the bucket, invisible but billed: give the bucket a lifecycle rule
that aborts incomplete multipart uploads.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import random
import time
import uuid
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, TypeVar

import fsspec.core

from diffplan.errors import DataError, StoreError
from diffplan.storage.store import TEMPORARY_PREFIX, StoredObject

PART_BYTES = 32 * 2**20
"""Part size of multipart uploads; objects smaller than two parts are put in one piece."""
RECORD_PART_BYTES = 2**30
"""The same for conditional puts: after a lost answer only a put in one piece can be repeated safely."""
READ_AHEAD_BYTES = 2**20
MAX_ATTEMPTS = 6
"""Attempts for a request that the server could not serve, beyond the retries of s3fs and botocore."""
RETRY_SECONDS = 0.1
"""Pause after the first attempt; it doubles each time."""

_BUSY = {408, 409, 429, 500, 502, 503, 504}  # 409: another conditional put of the same name was under way
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
T = TypeVar("T")


class ObjectStore:
    """A prefix of an object store; a `diffplan.storage.store.Store`.

    It may be pickled and used after a fork: every process opens its own connections.

    Args:
        url: URL that fsspec knows, such as `s3://bucket/prefix`.

    Raises:
        DataError: no file system for this URL, or the package that has it is missing.
    """

    is_local = False

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._conditional: bool | None = None
        self._connection = self._connect()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_connection": None}

    def _connect(self) -> tuple[int, Any, str]:
        """Process, file system and path of the root."""
        protocol = self._url.split("://", 1)[0]
        # Not one of fsspec's shared file systems: they keep their first endpoint, and listings.
        options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
        is_s3 = _EXTRAS.get(protocol) == "s3"
        if is_s3:
            options["max_concurrency"] = 1  # otherwise a read requests the size before the bytes
        try:
            file_system, root = fsspec.core.url_to_fs(self._url, **options)
        except ImportError as error:
            cure = f"pip install 'diffplan[{_EXTRAS[protocol]}]'" if protocol in _EXTRAS else _one_line(error)
            raise DataError(f"{self._url}: no package is installed that opens {protocol}:// ({cure})") from error
        except ValueError as error:
            raise DataError(
                f"{self._url}: expected a path or a URL such as s3://bucket/prefix, got {_one_line(error)}"
            ) from error
        except Exception as error:
            raise self._to_store_error("", error) from error
        if is_s3:
            file_system.retries = 2  # botocore retries five times below this: a silent server costs minutes
        return os.getpid(), file_system, root

    @property
    def _file_system(self) -> Any:
        if self._connection is None or self._connection[0] != os.getpid():
            self._connection = self._connect()
        return self._connection[1]

    def _path(self, name: str) -> str:
        file_system = self._file_system
        assert self._connection is not None
        return file_system._strip_protocol(f"{self._connection[2]}/{name}")

    @property
    def _protocols(self) -> set[str]:
        protocol = self._file_system.protocol
        return {protocol} if isinstance(protocol, str) else set(protocol)

    @property
    def uri(self) -> str:
        """The URL."""
        return self._url

    def locate(self, name: str) -> str:
        """URL of an object."""
        return f"{self._url}/{name}"

    def read(self, name: str) -> bytes:
        """A whole object."""
        return self._call(name, self._file_system.cat_file, self._path(name))

    def read_range(self, name: str, start: int, num_bytes: int) -> bytes:
        """A piece of an object; shorter than asked for where the object ends before it."""
        if num_bytes <= 0:
            return b""
        path = self._path(name)
        try:
            return self._call(name, self._file_system.cat_file, path, start=start, end=start + num_bytes)
        except StoreError as error:
            if _answer(error)[1] == 416:  # the range begins after the end
                return b""
            raise

    def open(self, name: str) -> io.BufferedReader:
        """An object as a file to read and seek in."""
        return io.BufferedReader(_ObjectFile(self, name, self.size(name)), READ_AHEAD_BYTES)

    def size(self, name: str) -> int:
        """Bytes of an object."""
        return self._info(name)["size"]

    def _info(self, name: str) -> dict[str, Any]:
        info = self._call(name, self._file_system.info, self._path(name))
        if info["type"] != "file":
            raise FileNotFoundError(self.locate(name))
        return info

    def list(self, directory: str) -> list[StoredObject]:
        """The objects directly in a directory ("" for the root), by name; empty if there is no such directory."""
        path = self._path(directory)
        try:
            infos = self._call(directory, self._file_system.ls, path, detail=True)
        except FileNotFoundError:
            return []
        found = []
        for info in infos:
            # The listing includes an object with the name of the directory itself, and markers `directory/`.
            child = info["name"].removeprefix(path).lstrip("/")
            if info["type"] == "file" and info["name"].startswith(f"{path}/") and child and "/" not in child:
                name = f"{directory}/{child}" if directory else child
                found.append(StoredObject(name, info["size"], _modified_seconds(info)))
        return sorted(found, key=lambda stored: stored.name)

    def list_directories(self, directory: str) -> list[str]:
        """Names of the directories directly in a directory ("" for the root); empty if there is none."""
        path = self._path(directory)
        try:
            infos = self._call(directory, self._file_system.ls, path, detail=True)
        except FileNotFoundError:
            return []
        names = (info["name"].rstrip("/").rpartition("/")[2] for info in infos if info["type"] == "directory")
        return sorted(f"{directory}/{name}" if directory else name for name in names)

    def has_conditional_put(self) -> bool:
        """Whether the store refuses to put an object that exists; tested once.

        A server that first checks and then puts would pass this test, although it is not safe for concurrent writers.
        S3, Google Cloud Storage and current MinIO, Ceph and R2 do both in one step.
        """
        if self._conditional is None:
            self._conditional = not self._protocols.isdisjoint(_EXTRAS) and self._probe_conditional_put()
        return self._conditional

    def _probe_conditional_put(self) -> bool:
        name = f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            for content in (b"first", b"second"):
                self._put(name, content, RECORD_PART_BYTES, mode="create")
        except FileExistsError:
            return True
        except StoreError as error:
            if _answer(error)[1] == 501:
                return False
            raise
        finally:
            with contextlib.suppress(StoreError):  # some writers may not delete
                self.delete(name)
        return False

    def put_if_absent(self, name: str, content: bytes) -> bool:
        """Create an object with its whole content unless there is one; returns whether this call did.

        If the server's answer was lost, the put is repeated and finds the object: the result is False although this
        call created it. A caller that needs to know reads the object.

        Raises:
            DataError: the store has no conditional put.
        """
        if not self.has_conditional_put():
            raise DataError(
                f"{self._url}: expected a store that puts objects only if absent (S3, Google Cloud Storage, current "
                "MinIO, Ceph and R2), got one that cannot; write to a local path or to another store"
            )
        try:
            self._put(name, content, RECORD_PART_BYTES, mode="create")
        except FileExistsError:
            return False
        return True

    def replace(self, name: str, content: bytes) -> None:
        """Create or replace an object, whole or not at all."""
        if not self._protocols.isdisjoint(_EXTRAS):
            self._put(name, content, RECORD_PART_BYTES)
            return
        temporary = f"{name.rpartition('/')[0]}/{TEMPORARY_PREFIX}{uuid.uuid4().hex}".lstrip("/")
        self._put(temporary, content, RECORD_PART_BYTES)  # other file systems show partially written files
        self._call(name, self._file_system.mv, self._path(temporary), self._path(name))

    def write(self, name: str, pieces: Iterable[Any]) -> None:
        """Create an object with a unique name from consecutive buffers."""
        self._put(name, b"".join(memoryview(piece).cast("B") for piece in pieces), PART_BYTES)

    def _put(self, name: str, content: bytes, part_bytes: int, **options: Any) -> None:
        path, file_system = self._path(name), self._file_system
        if "s3" in self._protocols:
            options["chunksize"] = part_bytes
        elif self._protocols.isdisjoint(_EXTRAS):
            self._call(name, file_system.makedirs, file_system._parent(path), exist_ok=True)
        self._call(name, file_system.pipe_file, path, content, **options)

    def delete(self, name: str) -> None:
        """Delete an object if there is one."""
        with contextlib.suppress(FileNotFoundError):
            self._call(name, self._file_system.rm_file, self._path(name))

    def now_seconds(self) -> float:
        """The store's own clock, for the ages of objects; S3 has whole seconds."""
        probe = f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            self.write(probe, [b"now"])
            return _modified_seconds(self._info(probe))
        finally:
            self.delete(probe)

    def _call(self, name: str, function: Callable[..., T], *args: Any, **options: Any) -> T:
        """Call the file system, and translate its errors.

        Raises:
            FileNotFoundError: there is no such object.
            FileExistsError: there is one already.
            StoreError: anything else.
        """
        for attempt in range(MAX_ATTEMPTS):
            try:
                return function(*args, **options)
            except FileExistsError:
                raise
            except Exception as error:  # whatever the library of a store raises
                code, status = _answer(error)
                if status == 412:  # s3fs recognises it only if the answer names the condition, as on AWS
                    raise FileExistsError(self.locate(name)) from error
                if isinstance(error, FileNotFoundError) and code != "NoSuchBucket":
                    raise FileNotFoundError(self.locate(name)) from error
                if status not in _BUSY or attempt + 1 == MAX_ATTEMPTS:
                    raise self._to_store_error(name, error) from error
                time.sleep(random.uniform(0.5, 1) * RETRY_SECONDS * 2**attempt)
        raise AssertionError("unreachable")

    def _to_store_error(self, name: str, error: Exception) -> StoreError:
        where, kind = self.locate(name).rstrip("/"), type(error).__name__
        code, status = _answer(error)
        said = _one_line(error)
        if code == "NoSuchBucket":
            return StoreError(f"{where}: expected a bucket, got none of this name; create it, or mend the URL")
        if isinstance(error, PermissionError) or status in (401, 403) or "Credential" in kind or "Forbidden" in said:
            return StoreError(
                f"{where}: access denied ({said}); check the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID, or those of "
                "your store) and that they may list, get, put and delete there"
            )
        if isinstance(error, ConnectionError | TimeoutError) or kind.endswith(("ConnectionError", "TimeoutError")):
            return StoreError(f"{where}: no answer ({said}); check the network and the endpoint (AWS_ENDPOINT_URL)")
        return StoreError(f"{where}: the store failed ({kind}: {said}); try again, and go on with --resume")


class _ObjectFile(io.RawIOBase):
    """An object as a file, read by ranges."""

    def __init__(self, store: ObjectStore, name: str, num_bytes: int) -> None:
        self._store, self._name, self._num_bytes, self._at = store, name, num_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._num_bytes}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._num_bytes - self._at))
        content = self._store.read_range(self._name, self._at, count)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def _answer(error: BaseException | None) -> tuple[str, int]:
    """Code and HTTP status of the server's answer behind an error; ("", 0) if there was none."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):  # botocore
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return str(response.get("Error", {}).get("Code", "")), int(status)
        code = str(getattr(error, "code", None) or getattr(error, "status", ""))  # gcsfs, aiohttp
        if code.isdecimal():
            return code, int(code)
        error = error.__cause__
    return "", 0


def _modified_seconds(info: dict[str, Any]) -> float:
    """When an object was written; infinity (never old) if the file system does not report it."""
    for key in ("LastModified", "mtime", "updated", "modified", "last_modified", "created"):
        value = info.get(key)
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return math.inf


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__

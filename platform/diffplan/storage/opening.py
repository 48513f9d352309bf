"""Stores by path or URL."""

from __future__ import annotations

from pathlib import Path

from diffplan.errors import DataError
from diffplan.storage.store import LocalStore, Store


def open_store(where: str | Path | Store) -> Store:
    """The store at a path or URL.

    Args:
        where: a local path, a URL that fsspec knows such as `s3://bucket/prefix`, or a store, which is returned as is.

    Raises:
        DataError: no file system for this URL.
    """
    if not isinstance(where, str | Path):
        return where
    text = str(where)
    if "://" not in text:
        return LocalStore(text)
    if text.startswith("file://"):
        return LocalStore(text.removeprefix("file://"))
    if not text.split("://", 1)[1].strip("/"):
        raise DataError(f"{text}: expected a bucket and a prefix, such as s3://bucket/dataset")
    from diffplan.storage.object_store import ObjectStore  # late: fsspec costs time that local paths need not pay

    return ObjectStore(text)

"""Open HDF5 files of strangers: nothing but the file itself is read, and no more than it can hold.

HDF5 can name other files: external links, external storage of an array, and virtual arrays. An import would copy their
bytes into the dataset. It can also claim arrays of any size that are stored nowhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffplan.errors import DataError

LARGEST_RATIO = 2_000
"""Bytes of arrays per byte of a file; deflate reaches 1 030 on constant data."""


def require_own_data(group: Any, path: Path) -> None:
    """Raise `DataError` if a group, or any below it, refers to other files or claims more data than the file can hold.

    Args:
        group: an open file or group of h5py.
        path: of the file, for messages.
    """
    import h5py
    from h5py import h5o  # pyright: ignore[reportAttributeAccessIssue]  # compiled

    claimed = 0
    seen = set()
    waiting = [group]
    while waiting:
        current = waiting.pop()
        address = h5o.get_info(current.id).addr
        if address in seen:  # groups may contain themselves
            continue
        seen.add(address)
        for name in current:
            link = current.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise _describe(path, f"{current.name.rstrip('/')}/{name}", f"a link to {link.filename}")
            item = current.get(name)
            if isinstance(item, h5py.Group):
                waiting.append(item)
            elif isinstance(item, h5py.Dataset):
                if item.is_virtual or item.external:
                    raise _describe(path, f"{current.name.rstrip('/')}/{name}", "data of other files")
                claimed += item.size * item.dtype.itemsize if item.shape is not None else 0
    if claimed > LARGEST_RATIO * path.stat().st_size:
        raise DataError(
            f"{path}: expected arrays that the file can hold, got {claimed:.3g} bytes of arrays in a file of "
            f"{path.stat().st_size:,}; it is damaged or made to waste memory"
        )


def _describe(path: Path, name: str, what: str) -> DataError:
    return DataError(
        f"{path}: {name}: expected data in the file itself, got {what}; copy the data into the file, for example with "
        "h5repack, or take another source"
    )

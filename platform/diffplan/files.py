"""Reading of files that others may have written: regular files only, and JSON of ordinary depth only.

A named pipe would wait for a writer, `/dev/zero` never ends, and deeply nested JSON exhausts the stack of whatever
walks through it. Every file of a user is opened here, so that none of them stops a command.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import numpy as np

MAX_JSON_DEPTH = 64
"""Levels of lists and objects within each other. Our own files have at most a dozen."""
MAX_SETTINGS_BYTES = 16 * 2**20
"""Size of a file that a user may have written by hand, such as settings or a study."""
MAX_ARRAYS_BYTES = 2**31
"""Size of the arrays of an archive; a small file may inflate to a thousand times its size."""


def open_file(path: str | Path, *, follow_links: bool = True) -> BinaryIO:
    """A regular file, opened for reading.

    Args:
        path: its path.
        follow_links: whether the file itself may be a symbolic link.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a directory.
        OSError: it is neither file nor directory (a pipe, a device, a socket), or cannot be opened.
    """
    # Without O_NONBLOCK, opening a pipe waits for somebody to write into it.
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW)
    try:
        file = os.open(path, flags)
    except ValueError as error:  # a null character in the path
        raise FileNotFoundError(errno.ENOENT, str(error), str(path)) from None
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise _not_regular(path) from None
        if error.errno == errno.ELOOP and not follow_links:
            raise OSError(errno.ELOOP, "expected the file itself, got a symbolic link", str(path)) from None
        raise
    try:
        mode = os.fstat(file).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise _not_regular(path)
        return os.fdopen(file, "rb")
    except BaseException:
        os.close(file)
        raise


def _not_regular(path: str | Path) -> OSError:
    return OSError(errno.EINVAL, "expected a regular file, got a pipe, device or socket", str(path))


def read_file(path: str | Path, *, follow_links: bool = True, max_bytes: int | None = None) -> bytes:
    """The content of a regular file; raises as `open_file` does, and an `OSError` for a file that is too large."""
    with open_file(path, follow_links=follow_links) as file:
        size = os.fstat(file.fileno()).st_size
        if max_bytes is not None and size > max_bytes:
            raise OSError(errno.EFBIG, f"expected at most {max_bytes} bytes, got {size}", str(path))
        return file.read()


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a NumPy archive (`.npz`), without unpickling.

    Raises:
        OSError: as `open_file`.
        ValueError: no archive, a damaged one, or one that would inflate to more than `MAX_ARRAYS_BYTES`.
    """
    import numpy as np  # late: configs need no NumPy, and most of this module is for them

    try:
        with open_file(path) as file, np.load(file, allow_pickle=False) as archive:
            num_bytes = sum(member.file_size for member in archive.zip.infolist())
            if num_bytes > MAX_ARRAYS_BYTES:
                raise ValueError(f"expected at most {MAX_ARRAYS_BYTES} bytes of arrays, got {num_bytes}")
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError):
        raise
    except Exception as error:  # NumPy and zipfile raise almost anything for damaged archives
        raise ValueError(f"{type(error).__name__}: {error}") from None


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: not JSON, or lists and objects deeper within each other than `MAX_JSON_DEPTH`.
    """
    too_deep = f"lists and objects lie more than {MAX_JSON_DEPTH} levels deep"
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(too_deep) from None
    level = [value]
    for _ in range(MAX_JSON_DEPTH + 1):  # level by level, not recursively
        level = [child for each in level if isinstance(each, (list, dict)) for child in _children(each)]
        if not level:
            return value
    raise ValueError(too_deep)


def _children(node: list[Any] | dict[str, Any]) -> list[Any]:
    """The lists and objects directly in a list or object."""
    values = node.values() if isinstance(node, dict) else node
    return [value for value in values if isinstance(value, (list, dict))]

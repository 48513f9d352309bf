"""A look at the footer of an Arrow IPC file before Arrow reads it.

Arrow inflates the compressed buffers of a batch, and all dictionaries, as soon as it reads the batch. A file of a few
kilobytes can claim to become gigabytes, so compression and dictionaries are found without reading a batch.

Source: Apache Arrow, `format/File.fbs` and `format/Message.fbs`; FlatBuffers internals, "Tables".
"""

from __future__ import annotations

import struct

FOOTER_TAIL = 10
"""The length of the footer, int32, and the magic `ARROW1` at the end of the file."""
MESSAGE_PREFIX = 8
"""Continuation marker and length, int32 each, before the metadata of a message."""
BLOCK_BYTES = 24
"""A block of the footer: offset int64, length of the metadata int32, padding, length of the body int64."""


def needs_inflating(content: memoryview) -> bool:
    """Whether reading the batches of a file would inflate or decode anything.

    Args:
        content: bytes of a file that Arrow could open.

    Raises:
        ValueError: the footer or a message leads out of the file.
    """
    try:
        (footer_bytes,) = struct.unpack_from("<i", content, _inside(len(content) - FOOTER_TAIL))
        footer = _root(content, len(content) - FOOTER_TAIL - footer_bytes)
        if _count(content, footer, 2):  # dictionaries
            return True
        for i in range(_count(content, footer, 3)):  # record batches
            block = _inside(_vector(content, footer, 3) + 4 + BLOCK_BYTES * i)
            (offset,) = struct.unpack_from("<q", content, block)
            (marker,) = struct.unpack_from("<I", content, _inside(offset))
            message = _root(content, offset + (MESSAGE_PREFIX if marker == 0xFFFFFFFF else MESSAGE_PREFIX // 2))
            header = _field(content, message, 2)
            if header is None or _field(content, _follow(content, header), 3) is not None:  # its compression
                return True
    except struct.error as error:
        raise ValueError(f"its footer leads out of the file ({error})") from None
    return False


def _root(content: memoryview, start: int) -> int:
    """Where the root table of a flatbuffer lies."""
    return _follow(content, start)


def _follow(content: memoryview, at: int) -> int:
    """Where a relative offset leads."""
    return at + struct.unpack_from("<I", content, _inside(at))[0]


def _field(content: memoryview, table: int, number: int) -> int | None:
    """Where a field of a table lies; None if the table does not have it."""
    vtable = _inside(table - struct.unpack_from("<i", content, _inside(table))[0])
    (num_bytes,) = struct.unpack_from("<H", content, vtable)
    slot = 4 + 2 * number
    offset = struct.unpack_from("<H", content, vtable + slot)[0] if slot < num_bytes else 0
    return table + offset if offset else None


def _vector(content: memoryview, table: int, number: int) -> int:
    field = _field(content, table, number)
    assert field is not None, "vectors are counted first"
    return _follow(content, field)


def _count(content: memoryview, table: int, number: int) -> int:
    """Entries of a vector; 0 if there is none."""
    field = _field(content, table, number)
    return 0 if field is None else struct.unpack_from("<I", content, _inside(_follow(content, field)))[0]


def _inside(at: int) -> int:
    """A place that is not before the file, where `struct` would count from its end."""
    if at < 0:
        raise struct.error("a place before its beginning")
    return at

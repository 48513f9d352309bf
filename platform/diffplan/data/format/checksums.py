"""Checksums of shards, one per chunk, so that a part of a shard can be verified without the rest."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

from diffplan.data.format.commit_record import CHUNK_BYTES, ShardRecord
from diffplan.errors import DataError
from diffplan.storage.store import Store

READ_BYTES = 8 * CHUNK_BYTES


def compute_checksums(content: Any) -> tuple[int, ...]:
    """CRC-32 of each chunk of a buffer."""
    view = memoryview(content)
    return tuple(zlib.crc32(view[i : i + CHUNK_BYTES]) for i in range(0, len(view), CHUNK_BYTES))


def read_checked(store: Store, shard: ShardRecord) -> Iterator[bytes]:
    """The bytes of a shard in chunks, each verified before it is returned.

    Raises:
        DataError: the shard is missing, has another size or does not match its checksums.
    """
    for start in range(0, shard.num_bytes, READ_BYTES):
        yield read_range(store, shard, start, min(READ_BYTES, shard.num_bytes - start), verify=True)


def read_range(store: Store, shard: ShardRecord, start: int, num_bytes: int, *, verify: bool) -> bytes:
    """A range of a shard.

    Args:
        store: the store of the dataset.
        shard: the shard.
        start: first byte.
        num_bytes: size of the range, which must be inside the shard.
        verify: read whole chunks and verify their checksums.

    Raises:
        DataError: the shard is missing, too short or, with `verify`, does not match its checksums.
    """
    first = start // CHUNK_BYTES if verify else 0
    begin = first * CHUNK_BYTES if verify else start
    end = start + num_bytes
    if verify:
        end = min(-(-end // CHUNK_BYTES) * CHUNK_BYTES, shard.num_bytes)
    try:
        content = store.read_range(shard.name, begin, end - begin)
    except FileNotFoundError:
        raise DataError(f"{store.locate(shard.name)}: the shard is gone; open the dataset again") from None
    except IsADirectoryError:
        raise DataError(
            f"{store.locate(shard.name)}: expected a shard, got a directory; delete it and make its units again "
            "(collect with --resume, or import again)"
        ) from None
    if len(content) != end - begin:
        raise DataError(
            f"{store.locate(shard.name)}: expected {shard.num_bytes} bytes, the file ends after "
            f"{begin + len(content)}; it is truncated: run `diffplan data verify --drop_damaged`, then make its units "
            "again"
        )
    if not verify:
        return content
    for i, found in enumerate(compute_checksums(content), first):
        if found != shard.checksums[i]:
            raise DataError(
                f"{store.locate(shard.name)}: expected checksum {shard.checksums[i]:08x} of the bytes from "
                f"{i * CHUNK_BYTES}, got {found:08x}; the shard is damaged: run `diffplan data verify --drop_damaged`, "
                "then make its units again (collect with --resume, or import again)"
            )
    return content[start - begin : start - begin + num_bytes]

"""Datasets with one thing wrong in each, and what reading them in a process of its own comes to."""

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from made_up_episodes import edit_shard_record, overwrite, shard_of, write_dataset

from diffplan.data.format.checksums import compute_checksums
from diffplan.data.format.dataset import read_manifest
from diffplan.data.format.record import encode_record
from diffplan.data.format.writer import locate_columns
from diffplan.storage.opening import open_store

LENGTHS = [[5, 7], [4, 8], [3, 9]]
"""Shards of equal sizes, so that what is swapped is not found by size."""
STAGES = ("open", "touch", "verified_read", "find_damage")


@dataclass(frozen=True)
class Case:
    """One way in which a dataset can be wrong.

    Attributes:
        name: what is wrong.
        damage: does it to the dataset at a root, and returns the file that the error must name.
        stage: the first of `STAGES` that finds it; "" where it does no harm.
        words: what the error says.
        cure: what the error tells the user to do.
    """

    name: str
    damage: Callable[[Path], Path]
    stage: str
    words: str
    cure: str = "--drop_damaged"


def prepare(directory: Path, cases: Sequence[Case]) -> dict[str, tuple[Path, Path]]:
    """A damaged dataset for each case, and the file that its errors must name."""
    write_dataset(directory / "good", LENGTHS)
    prepared = {}
    for case in cases:
        root = directory / case.name
        shutil.copytree(directory / "good", root)
        prepared[case.name] = root, case.damage(root)
    return prepared


def replace_shard(root: Path, content: bytes, *, unit: int = 0, rows: int | None = None) -> Path:
    """Put a file in the place of a shard, with size, checksums and places of the columns in its commit to match.

    Only what the file holds is wrong then, not what the commit says of it.
    """
    shard = shard_of(root, unit)
    overwrite(shard, content)
    changes: dict[str, object] = {"num_bytes": len(content), "checksums": compute_checksums(content)}
    try:
        changes["offsets"] = locate_columns(pa.py_buffer(content), read_manifest(open_store(root)))
        if not all(0 <= offset < len(content) for offset in changes["offsets"].values()):
            del changes["offsets"]  # decompressed, they lie outside
    except (pa.ArrowException, OSError, ValueError, KeyError, AttributeError):
        pass  # then those of the good shard stay
    edit_shard_record(root, unit, **changes)
    return shard


def read_batch(path: Path) -> pa.RecordBatch:
    return pa.ipc.open_file(pa.py_buffer(path.read_bytes())).get_batch(0)


def to_file(batches: list[pa.RecordBatch], schema: pa.Schema, **options: object) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def nested_record(depth: int = 200_000) -> bytes:
    """A record whose JSON is nested too deeply to read."""
    return encode_record({"unit": 0}).replace(b'"unit": 0', b'"unit": ' + b"[" * depth + b"]" * depth)


def to_big_endian(content: bytes) -> bytes:
    """The same Arrow file with its schemas marked as of the other byte order."""
    changed = bytearray(content)
    (footer_bytes,) = struct.unpack_from("<i", content, len(content) - 10)
    footer = len(content) - 10 - footer_bytes
    _mark_big_endian(changed, _follow(changed, _root(changed, footer), 1))
    message_start = 16  # after the magic and the length of the first message
    _mark_big_endian(changed, _follow(changed, _root(changed, message_start), 2))
    return bytes(changed)


def _root(content: bytearray, start: int) -> int:
    return start + struct.unpack_from("<I", content, start)[0]


def _slot(content: bytearray, table: int, field: int) -> int:
    """Where the vtable of a flatbuffers table has the place of a field."""
    return table - struct.unpack_from("<i", content, table)[0] + 4 + 2 * field


def _follow(content: bytearray, table: int, field: int) -> int:
    at = table + struct.unpack_from("<H", content, _slot(content, table, field))[0]
    return at + struct.unpack_from("<I", content, at)[0]


def _mark_big_endian(content: bytearray, schema: int) -> None:
    slot = _slot(content, schema, 0)
    assert struct.unpack_from("<H", content, slot)[0] == 0, "the default, little-endian, is not stored"
    # A scalar may lie anywhere behind its table: take one that is 1, which says big-endian, somewhere behind it.
    place = next(p for p in range(8, 4000, 2) if struct.unpack_from("<h", content, schema + p)[0] == 1)
    struct.pack_into("<H", content, slot, place)


def read_in_process(roots: Sequence[Path]) -> dict[Path, dict]:
    """What reading each dataset comes to, by stages, read in a process that a crash may end.

    Returns:
        For each root, an outcome per stage and command: None, or the type and the text of the error; `crash` with the
        exit code where the process died on it.
    """
    outcomes: dict[Path, dict] = {}
    left = list(roots)
    while left:
        script = Path(__file__).with_name("read_damaged.py")
        done = subprocess.run(
            [sys.executable, script, *map(str, left)], capture_output=True, text=True, check=False, timeout=200
        )
        lines = done.stdout.splitlines()
        outcomes |= {root: json.loads(line) for root, line in zip(left, lines, strict=False)}
        left = left[len(lines) :]
        if left:
            outcomes[left.pop(0)] = {"crash": done.returncode, "stderr": done.stderr[-2000:]}
    return outcomes

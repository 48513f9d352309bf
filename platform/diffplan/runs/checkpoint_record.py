"""The record of a checkpoint, `config.json`, and the files that it names, checked before they are used.

Checkpoints may come from others, so their files have plain names and their numbers are bounded.
"""

from __future__ import annotations

import json
import re
import sys
import zlib
from pathlib import Path
from typing import Any

from diffplan.config.environment import MAX_COLUMNS
from diffplan.errors import CheckpointError, show_value
from diffplan.files import parse_json, read_file

FORMAT_VERSION = 2
CONFIG, MODEL, NORMALIZATION, DATASET, TRAINING_STATE = (
    "config.json",
    "model.safetensors",
    "normalization.json",
    "dataset.json",
    "training_state.pt",
)
COMPANION = re.compile(r"[A-Za-z0-9_]+\.safetensors", re.ASCII)
"""Names of the files of companions. A record with any other name is refused, so that none leads out of a directory."""


def is_file_name(name: str) -> bool:
    """Whether a checkpoint may have a file of this name."""
    return name in (CONFIG, MODEL, NORMALIZATION, DATASET, TRAINING_STATE) or COMPANION.fullmatch(name) is not None


def parse_record(content: bytes, where: str) -> dict[str, Any]:
    """The record in the bytes of the file in a place; raises `CheckpointError` if it is damaged."""
    path = f"{where}/{CONFIG}"
    try:
        record = parse_json(content)
        version = record["format_version"]
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path}: expected the description of a checkpoint, got something else") from None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: expected checkpoint version {FORMAT_VERSION}, got {version}, of another diffplan; train it again"
        )
    try:
        _check_record(record)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; copy the whole checkpoint again or train it again") from None
    return record


def _check_record(record: dict[str, Any]) -> None:
    """Raise `ValueError` unless the fields of a record have their types, and its files plain names."""
    for name, low, high in (("step", 0, 2**63), ("observation_dim", 1, MAX_COLUMNS), ("action_dim", 0, MAX_COLUMNS)):
        if not _is_count(record.get(name), low, high):
            raise ValueError(
                f"{name}: expected a whole number from {low} to {high}, got {show_value(record.get(name))}"
            )
    if not isinstance(record.get("config"), dict):
        raise ValueError(f"config: expected an object, got {show_value(record.get('config'))}")
    given = record.get("return_range")
    if given is not None and not (
        isinstance(given, list)
        and len(given) == 2
        and all(type(value) in (int, float) and abs(value) <= sys.float_info.max for value in given)
    ):
        raise ValueError(f"return_range: expected two numbers or null, got {show_value(given)}")
    files = record.get("files")
    if not isinstance(files, dict):
        raise ValueError(f"files: expected an object, got {show_value(files)}")
    for name, file in files.items():
        if name == CONFIG or not is_file_name(name):
            raise ValueError(f"files: expected the names of files of a checkpoint, got {show_value(name)}")
        for part, high in (("num_bytes", 2**63), ("crc32", 2**32)):
            value = file.get(part) if isinstance(file, dict) else None
            if not _is_count(value, 0, high):
                raise ValueError(f"files: expected a number of {part} for {name}, got {show_value(value)}")


def _is_count(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high  # not isinstance, for bool is a kind of int


def describe_part(content: bytes) -> dict[str, int]:
    """Size and checksum of a file, as the record has them."""
    return {"num_bytes": len(content), "crc32": zlib.crc32(content)}


def format_record(record: dict[str, Any]) -> bytes:
    """The bytes of a record in its file."""
    return (json.dumps(record, indent=2) + "\n").encode()


def read_part(path: Path) -> bytes:
    """A file of a checkpoint; raises `CheckpointError` if it is none, `FileNotFoundError` if it is missing."""
    try:
        return read_file(path, follow_links=False)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror or error}); put the file of the checkpoint there"
        ) from None


def check_part(directory: Path, record: dict[str, Any], name: str) -> Path:
    """Path of a file after its size and checksum were compared with the record."""
    path = directory / name
    if name not in record["files"]:
        raise CheckpointError(f"{directory / CONFIG}: expected {name} among its files, got none; train it again")
    expected = record["files"][name]
    try:
        size = path.lstat().st_size
        content = read_part(path) if size == expected["num_bytes"] or path.is_symlink() else b""
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{path}: the file is missing; copy the whole checkpoint again or train it again"
        ) from None
    if size != expected["num_bytes"]:
        raise CheckpointError(
            f"{path}: expected {expected['num_bytes']} bytes, got {size}; the file is truncated or was "
            "changed: copy the whole checkpoint again or train it again"
        )
    if zlib.crc32(content) != expected["crc32"]:
        raise CheckpointError(f"{path}: its checksum does not match; copy the whole checkpoint again or train it again")
    return path

"""What identifies a policy that data were collected with: a checksum of its file or of the files of its directory."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from diffplan.behaviors.imported import FIELD
from diffplan.errors import ConfigError, describe_error
from diffplan.files import open_file
from diffplan.tasks.task import Task

DESCRIPTION = "policy.json"
"""File of a directory with a policy that diffplan wrote."""
MAX_FILES = 1000
MAX_BYTES = 2**32
_BLOCK_BYTES = 2**20


def find_policy_file(path: str, task: Task) -> str:
    """The file of `policy:PATH`: at that path, or else a policy of that name that comes with the task."""
    if not Path(path).exists() and task.trained_policies is not None:
        own = task.trained_policies / f"{path}.npz"
        if Path(path).name == path and own.is_file():
            return str(own)
    return path


def hash_policy(path: str) -> str:
    """SHA-256 of a file, or of the names and contents of all files of a directory, sorted by name.

    Raises:
        ConfigError: no policy there, or it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        if not os.path.isdir(path):
            _add_file(digest, path)
            return digest.hexdigest()
        check_policy_directory(path)
        for name in _list_files(Path(path)):
            content = hashlib.sha256()
            _add_file(content, Path(path, name))
            digest.update(f"{content.hexdigest()} {name}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()
    except OSError as error:
        raise ConfigError(f"{FIELD}: expected a policy in a file, got none ({describe_error(error)})") from None


def check_policy_directory(path: str) -> None:
    """Raise `ConfigError` for a directory without a policy that diffplan wrote."""
    if Path(path, DESCRIPTION).is_file():
        return
    names = ("rllib_checkpoint.json", "algorithm_state.pkl", "module_state.pkl", "learner_group", "rl_module")
    if any(Path(path, name).exists() for name in names):
        raise ConfigError(
            f"{FIELD}: expected a policy in {path}, got a checkpoint of RLlib, whose weights are pickled and could run "
            "code; convert your own to .npz as docs/tasks.md shows"
        )
    raise ConfigError(
        f"{FIELD}: expected a policy in {path}, got none (a directory without {DESCRIPTION}; `diffplan baseline train` "
        "writes one)"
    )


def _list_files(root: Path) -> list[str]:
    names: list[str] = []
    for folder, folders, files in os.walk(root):
        folders.sort()
        names += [Path(folder, name).relative_to(root).as_posix() for name in files]
        if len(names) > MAX_FILES:
            raise ConfigError(f"{FIELD}: {root}: expected a policy of at most {MAX_FILES} files, got more")
    return sorted(names)


def _add_file(digest: hashlib._Hash, path: str | Path) -> None:
    num_bytes = 0
    with open_file(path) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            num_bytes += len(block)
            if num_bytes > MAX_BYTES:
                raise ConfigError(f"{FIELD}: {path}: expected a policy of at most {MAX_BYTES} bytes, got more")

"""Submit a command as a job: the files that are uploaded, and the shell command that is run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from diffplan.cluster.jobs.job_server import JobServer  # first: it sets what Ray reads from the environment

# isort: split
from diffplan.cluster.ray_private import walk_upload
from diffplan.errors import ClusterError
from diffplan.terminal import format_bytes

MAX_UPLOAD_BYTES = 100_000_000
"""Size of a working directory; it goes through the head to every node. Ray's own limit is five times as high."""
EXCLUDES = (
    # Where the documents put data and runs. With a slash in front: there is a package `data` too.
    *("/data", "/runs", "/models", "/searches", "/results"),
    # Datasets and states of training anywhere.
    *("*.arrow", "*.parquet", "*.hdf5", "training_state.pt"),
    # Files that each machine makes for itself, and secrets.
    *(".git", ".venv", "venv", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis", ".env", "*.pem", "*.key"),
)
"""Files that are never uploaded: patterns as in .gitignore, in addition to those in .gitignore and .rayignore."""


def submit(
    server: JobServer,
    command: str,
    arguments: Sequence[str],
    working_dir: str | Path,
    *,
    num_cpus: float = 0,
    num_gpus: float = 0,
) -> str:
    """Submit `diffplan COMMAND ARGUMENTS` as a job.

    Args:
        server: of the cluster.
        command: such as `train`.
        arguments: of the command.
        working_dir: directory that is uploaded and becomes that of the command. If it is a checkout of diffplan, the
            job runs its code, on all nodes; else the code that is installed there.
        num_cpus: CPUs for the command itself; its workers have their own.
        num_gpus: GPUs for the command itself.

    Returns:
        The id of the job.

    Raises:
        ClusterError: the directory is missing or too large, or the server refuses.
    """
    root = Path(working_dir).absolute()
    check_upload(root)
    return server.submit(
        make_entrypoint(command, arguments, root),
        runtime_env=make_runtime_env(root),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )


def make_entrypoint(command: str, arguments: Sequence[str], root: Path) -> str:
    """The shell command of a job: the script of the directory, or the command that is installed on the nodes."""
    script = Path("jobs") / f"{command}.py"
    start = ["python", str(script)] if (root / script).is_file() else ["diffplan", command]
    return shlex.join([*start, *arguments])


def make_runtime_env(root: Path) -> dict[str, object]:
    """Ray's description of the environment of a job."""
    environment: dict[str, object] = {"working_dir": str(root), "excludes": list(EXCLUDES)}
    if (root / "platform" / "diffplan").is_dir():
        environment["env_vars"] = {"PYTHONPATH": "platform:envs"}  # processes start in the upload
    return environment


def check_upload(root: Path) -> int:
    """Size of the upload in bytes.

    Raises:
        ClusterError: the directory is missing or too large.
    """
    if not root.is_dir():
        raise ClusterError(f"--working_dir: expected a directory to upload, got {root}")
    sizes: dict[str, int] = {}

    def add(path: Path) -> None:
        if path.is_file():
            entry = path.relative_to(root).parts[0]
            sizes[entry] = sizes.get(entry, 0) + path.stat().st_size
            if sum(sizes.values()) > MAX_UPLOAD_BYTES:
                largest = max(sizes, key=lambda name: sizes[name])
                raise ClusterError(
                    f"--working_dir: expected at most {format_bytes(MAX_UPLOAD_BYTES)} to upload, got more in {root}, "
                    f"{format_bytes(sizes[largest])} of it in {largest}; list what a job does not need in .rayignore, "
                    "or name another directory"
                )

    walk_upload(root, EXCLUDES, add)
    return sum(sizes.values())

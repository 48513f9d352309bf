"""Submit a command as a job: the files that are uploaded, and the shell command that is run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffplan.cluster.jobs.job_server import JobServer  # first: it sets what Ray reads from the environment

# isort: split
from diffplan.cluster.ray_private import make_exclusion, walk_upload
from diffplan.errors import ClusterError
from diffplan.terminal import format_bytes

MAX_UPLOAD_BYTES = 100_000_000
"""Size of a working directory; it goes through the head to every node. Ray's own limit is five times as high."""
EXCLUDES = (
    # Where the documents put data and runs. With a slash in front: there is a package `data` too.
    *("/data", "/runs", "/models", "/searches", "/results"),
    # Datasets and states of training anywhere.
    *("*.arrow", "*.parquet", "*.hdf5", "training_state.pt"),
    # Files that each machine makes for itself.
    *(".git", ".venv", "venv", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis"),
    # What secrets are usually called: variables, keys, and the files of the tools that keep passwords and tokens.
    *(".env*", "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ppk", "*.asc", "*.gpg"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", ".ssh", ".gnupg", ".ray", ".vault-token", "auth_token"),
    *("credentials*", "!credentials*.py", "*credentials.json", "service[-_]account*.json", "client_secret*.json"),
    *("secrets.json", "secrets.toml", "secrets.y*ml", "*.secret", "*.tfstate*", "*.tfvars", ".terraformrc"),
    *(".aws", ".azure", ".gcloud", ".config/gcloud", "**/.config/gcloud", ".boto", ".s3cfg", ".oci"),
    *(".kube", "kubeconfig*", "*.kubeconfig", "**/.docker/config.json", ".dockercfg", ".dockerconfigjson"),
    *(".netrc", "_netrc", ".git-credentials", ".npmrc", ".pypirc", ".htpasswd", ".pgpass", ".my.cnf", ".huggingface"),
)
"""Files that are never uploaded: patterns as in .gitignore, in addition to those in .gitignore and .rayignore."""

MAX_SHOWN = 5
"""Names in a line about what is left out."""
_SPECIAL, _BACKSLASHED = r"([\\\[\]!*#? ])", r"\\\1"
"""Characters that mean something in a pattern, and how they stand for themselves."""


def submit(
    server: JobServer,
    command: str,
    arguments: Sequence[str],
    working_dir: str | Path,
    *,
    num_cpus: float = 0,
    num_gpus: float = 0,
    notice: Callable[[str], object] = lambda line: None,
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
        notice: called with a line about what is left out of the upload though nothing excludes it.

    Returns:
        The id of the job.

    Raises:
        ClusterError: the directory is missing or too large, or the server refuses.
    """
    root = Path(working_dir).absolute()
    upload = check_upload(root)
    if upload.left_out:
        shown = ", ".join(upload.left_out[:MAX_SHOWN])
        more = f" and {len(upload.left_out) - MAX_SHOWN} more" if len(upload.left_out) > MAX_SHOWN else ""
        notice(f"not uploaded (links out of {root} or to excluded files, pipes, devices): {shown}{more}")
    return server.submit(
        make_entrypoint(command, arguments, root),
        runtime_env=make_runtime_env(root, upload.left_out),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )


def make_entrypoint(command: str, arguments: Sequence[str], root: Path) -> str:
    """The shell command of a job: the script of the directory, or the command that is installed on the nodes."""
    script = Path("jobs") / f"{command}.py"
    start = ["python", str(script)] if (root / script).is_file() else ["diffplan", command]
    return shlex.join([*start, *arguments])


def make_runtime_env(root: Path, left_out: Sequence[str] = ()) -> dict[str, object]:
    """Ray's description of the environment of a job.

    Args:
        root: the directory that is uploaded.
        left_out: names in it that are not, besides those that are excluded.
    """
    patterns = [*EXCLUDES, *(f"/{re.sub(_SPECIAL, _BACKSLASHED, name)}" for name in left_out)]
    environment: dict[str, object] = {"working_dir": str(root), "excludes": patterns}
    if (root / "platform" / "diffplan").is_dir():
        environment["env_vars"] = {"PYTHONPATH": "platform:envs"}  # processes start in the upload
    return environment


@dataclass(frozen=True)
class Upload:
    """What would be uploaded of a directory.

    Attributes:
        num_bytes: its size.
        left_out: names of links that lead out of the directory, back into themselves or to what is excluded, and of
            pipes and devices. Ray would follow the ones and wait for the others.
    """

    num_bytes: int
    left_out: tuple[str, ...]


def check_upload(root: Path) -> Upload:
    """Find out what would be uploaded.

    Raises:
        ClusterError: the directory is missing, too large or not readable.
    """
    if not root.is_dir():
        raise ClusterError(f"--working_dir: expected a directory to upload, got {root}")
    sizes: dict[str, int] = {}
    left_out: set[Path] = set()
    is_excluded = make_exclusion(root, EXCLUDES)

    def visit(path: Path) -> None:
        if path != root and not _stays_inside(path, root, is_excluded):
            left_out.add(path)
        elif path.is_file():
            entry = path.relative_to(root).parts[0]
            sizes[entry] = sizes.get(entry, 0) + path.stat().st_size
            if sum(sizes.values()) > MAX_UPLOAD_BYTES:
                largest = max(sizes, key=lambda name: sizes[name])
                raise ClusterError(
                    f"--working_dir: expected at most {format_bytes(MAX_UPLOAD_BYTES)} to upload, got more in {root}, "
                    f"{format_bytes(sizes[largest])} of it in {largest}; list what a job does not need in .rayignore, "
                    "or name another directory"
                )

    try:
        walk_upload(root, EXCLUDES, visit, lambda path: path.parent in left_out)
    except OSError as error:
        raise ClusterError(
            f"--working_dir: {error.filename}: cannot be read ({error.strerror}); list it in .rayignore"
        ) from None
    names = sorted(path.relative_to(root).as_posix() for path in left_out)
    return Upload(sum(sizes.values()), tuple(names))


def _stays_inside(path: Path, root: Path, is_excluded: Callable[[Path], bool]) -> bool:
    """Whether a path under a root is a file or a directory, or a link to one that is uploaded too."""
    if not path.is_symlink():
        return path.is_file() or path.is_dir()
    try:
        target, real_root = path.resolve(), root.resolve()
    except (OSError, RuntimeError):  # a link that leads to itself
        return False
    if not target.is_relative_to(real_root) or path.parent.resolve().is_relative_to(target):  # the latter never ends
        return False
    return not is_excluded(root / target.relative_to(real_root))

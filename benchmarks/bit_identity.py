"""Whether two versions of the code compute the same numbers on Maze2D, bit by bit.

The commit is checked out into a temporary git worktree. The same probe runs with this tree and with that one, on this
machine, with the same interpreter and one thread, and each makes its own data:

* content hash of a small collection with the waypoint controller, and of one with a mixture of behaviors;
* the weights, averaged and raw, after 200 training steps on the first of them;
* the return of each episode of the shipped planners under both protocols: 100 episodes of seed 83, in two units;
* trajectories and first plans of the first eight of them, for returns are whole numbers and may hide a last bit.

Prints a table. The exit code is 0 if everything is equal, 1 if something differs, 2 if a probe failed.

    python benchmarks/bit_identity.py --against main
    python benchmarks/bit_identity.py --against main --quick

On two cores that other programs use too, a probe takes 160 seconds at a load average of 8 and 430 at 35, with `--quick`
110 to 150 at 8 to 14; most of that is the start of processes. The results of a commit are kept in `--cache`, so that
the next run against it pays only for this tree.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import platform as machine
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EVALUATIONS = tuple((maze, protocol) for maze in ("umaze", "medium", "large") for protocol in ("maze2d", "multi2d"))
QUICK_EVALUATIONS = (("umaze", "maze2d"), ("medium", "multi2d"), ("large", "maze2d"))
BEHAVIORS = {"waypoint": "waypoint", "mixture": "noisy_waypoint:0.5,random:0.5"}

Values = dict[str, dict[str, Any]]
"""What a probe found: a hash under each name, and a mean where that helps to see how far apart two values are."""


@dataclass(frozen=True)
class Sizes:
    """How much a probe does: what is evaluated, episodes of each (in two units), their seed, and training steps."""

    evaluations: tuple[tuple[str, str], ...]
    episodes: int
    seed: int
    num_steps: int


# ---------------------------------------------------------------------------------------------------------------------
# The probe. It runs inside either tree, so it may use only what both have: the command line, `diffplan.open_dataset`,
# and the files of a checkpoint and of an evaluation. If one of these changes, support the old and the new form here.


def run_probe(tree: Path, sizes: Sizes) -> Values:
    """Run every probe with the tree that `PYTHONPATH` names; everything is written below the current directory."""
    import diffplan

    assert diffplan.__file__ is not None
    if not Path(diffplan.__file__).is_relative_to(tree):
        raise RuntimeError(f"expected diffplan from {tree}, got {diffplan.__file__}")
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)  # one for all commands
    values: Values = {}
    for name, behavior in BEHAVIORS.items():
        size = ["--num_steps", "50000", "--behavior", behavior, "--num_workers", "1"]
        run_command(tree, "collect", "maze2d-umaze-smoke", *size, "--out", f"data-{name}")
        values[f"collection, {name}"] = {"hash": diffplan.open_dataset(f"data-{name}").content_hash()}
    run_command(
        tree, "train", "maze2d-umaze", "--data", "data-waypoint", "--out", "checkpoint",
        "--training.num_steps", str(sizes.num_steps), "--cpus_per_worker", "1",
    )  # fmt: skip
    values.update(hash_weights(Path("checkpoint")))
    for maze, protocol in sizes.evaluations:
        out = f"evaluation-{maze}-{protocol}"
        run_command(
            tree, "evaluate", f"pretrained:maze2d-{maze}", "--protocol", protocol, "--out", out,
            "--episodes", str(sizes.episodes), "--episodes_per_unit", str(-(-sizes.episodes // 2)),
            "--seed", str(sizes.seed), "--num_workers", "1", "--num_planners", "0",
        )  # fmt: skip
        values[f"returns, {maze} {protocol}"] = hash_returns(Path(out))
        values[f"recorded, {maze} {protocol}"] = hash_recordings(Path(out))
    ray.shutdown()
    return values


def run_command(tree: Path, *arguments: str) -> None:
    """Run `diffplan` with arguments in this process, through the entry point that the tree declares."""
    project = tomllib.loads((tree / "pyproject.toml").read_text())["project"]
    module, function = project["scripts"]["diffplan"].split(":")
    code = getattr(importlib.import_module(module), function)(list(arguments))
    if code:
        raise RuntimeError(f"diffplan {' '.join(arguments)}: expected exit code 0, got {code}")


def hash_weights(checkpoint: Path) -> Values:
    """Hashes of the averaged and of the raw weights of a checkpoint."""
    import torch
    from safetensors.torch import load_file

    averaged = load_file(checkpoint / "model.safetensors")
    raw = torch.load(checkpoint / "training_state.pt", map_location="cpu", weights_only=True)["network"]
    values: Values = {}
    for name, weights in (("averaged", averaged), ("raw", raw)):
        digest = hashlib.sha256()
        for key in sorted(weights):
            value = weights[key].contiguous()
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode() + value.numpy().tobytes())
        values[f"weights, {name}"] = {"hash": digest.hexdigest()}
    return values


def hash_returns(evaluation: Path) -> dict[str, Any]:
    """Hash and mean of the undiscounted return of each episode, in the order of episodes."""
    import numpy as np
    import pyarrow.parquet as pq

    table = pq.read_table(evaluation / "episodes.parquet").sort_by("episode")
    name = "undiscounted_return" if "undiscounted_return" in table.column_names else "return"
    returns = table[name].to_numpy().astype(np.float64)
    return {"hash": hashlib.sha256(returns.tobytes()).hexdigest(), "mean": float(returns.mean())}


def hash_recordings(evaluation: Path) -> dict[str, Any]:
    """Hash of the trajectories and first plans that an evaluation keeps; returns alone may hide a changed last bit."""
    import numpy as np

    digest = hashlib.sha256()
    with np.load(evaluation / "recordings.npz", allow_pickle=False) as arrays:
        for name in sorted(arrays.files):
            digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode() + arrays[name].tobytes())
    return {"hash": digest.hexdigest()}


# ---------------------------------------------------------------------------------------------------------------------


def probe_tree(tree: Path, sizes: Sizes) -> Values:
    """Run the probe in a process of its own that imports the code of a tree.

    Raises:
        RuntimeError: the probe failed; with the end of what it printed.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(tree / name) for name in ("platform", "envs")),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    }
    environment.pop("RAY_ADDRESS", None)  # workers of a running cluster may import another tree
    with tempfile.TemporaryDirectory(prefix="bit-identity-") as directory:
        found = Path(directory) / "found.json"
        # -P: benchmarks/ must not be on the path, for its scripts have the names of modules.
        command = [sys.executable, "-P", str(Path(__file__).resolve()), "--probe", str(found), "--tree", str(tree)]
        command += ["--episodes", str(sizes.episodes), "--seed", str(sizes.seed), "--num_steps", str(sizes.num_steps)]
        command += ["--quick"] if sizes.evaluations == QUICK_EVALUATIONS else []
        ran = subprocess.run(command, env=environment, cwd=directory, capture_output=True, text=True)
        if ran.returncode:
            raise RuntimeError(f"the probe of {tree} failed:\n" + (ran.stdout + ran.stderr)[-4000:])
        return json.loads(found.read_text())


@contextmanager
def check_out(commit: str) -> Iterator[Path]:
    """A temporary worktree of a commit."""
    with tempfile.TemporaryDirectory(prefix="bit-identity-tree-") as directory:
        tree = Path(directory).resolve() / commit[:12]
        run_git("worktree", "add", "--detach", str(tree), commit)
        try:
            yield tree
        finally:
            run_git("worktree", "remove", "--force", str(tree))


def run_git(*arguments: str) -> str:
    """What git prints in this repository; raises `RuntimeError` with its message if it fails."""
    ran = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"git {' '.join(arguments)}: {ran.stderr.strip()}")
    return ran.stdout.strip()


def describe_machine() -> dict[str, str]:
    """What the last bits of a number may depend on beside the code."""
    libraries = {name: version(name) for name in ("torch", "numpy", "mujoco", "ray", "gymnasium")}
    return {"node": machine.node(), "machine": machine.machine(), "python": machine.python_version(), **libraries}


def find_cache_file(cache: Path, commit: str, sizes: Sizes) -> Path:
    """Where the results of a commit lie; another machine, other libraries or another probe have another file."""
    key = json.dumps([commit, asdict(sizes), describe_machine(), Path(__file__).read_text()])
    return cache / f"{commit[:12]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def show_table(this: Values, that: Values, commit: str) -> bool:
    """Print both sides of each probe; returns whether all are equal."""
    titles = ("probe", "this tree", commit[:12], "equal")
    rows: list[tuple[str, ...]] = [titles]
    for name in [*this, *(name for name in that if name not in this)]:
        one, other = this.get(name), that.get(name)
        rows.append((name, show_value(one), show_value(other), "yes" if one == other else "NO"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(titles))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return this == that


def show_value(value: dict[str, Any] | None) -> str:
    """The first digits of a hash, and the mean where there is one."""
    if value is None:
        return "none"
    return value["hash"][:12] + (f"  mean {value['mean']:.4f}" if "mean" in value else "")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffplan" / "bit_identity"
    parser.add_argument("--against", default="HEAD", metavar="COMMIT", help="the other version; the last commit")
    parser.add_argument("--episodes", type=int, help="of each planner and protocol; 100, or 20 with --quick")
    parser.add_argument("--num_steps", type=int, help="of training; 200, or 120 with --quick; averaging starts at 100")
    parser.add_argument("--seed", type=int, default=83, help="of the evaluations")
    parser.add_argument("--quick", action="store_true", help="three evaluations, fewer episodes and steps")
    parser.add_argument("--cache", type=Path, default=cache, metavar="DIR", help="results of commits; %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write both sides of each probe there")
    parser.add_argument("--probe", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tree", type=Path, default=ROOT, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.episodes = arguments.episodes or (20 if arguments.quick else 100)
    arguments.num_steps = arguments.num_steps or (120 if arguments.quick else 200)
    if arguments.episodes < 2 or arguments.num_steps < 1:
        parser.error("expected --episodes of at least 2 and --num_steps of at least 1")
    return arguments


def compare(arguments: argparse.Namespace, sizes: Sizes) -> bool:
    """Probe both trees and show what they found; returns whether all is equal."""
    commit = run_git("rev-parse", "--verify", f"{arguments.against}^{{commit}}")
    head, is_dirty = run_git("rev-parse", "HEAD"), bool(run_git("status", "--porcelain"))
    arguments.cache.mkdir(parents=True, exist_ok=True)
    cached = find_cache_file(arguments.cache, commit, sizes)
    since = time.perf_counter()
    if cached.exists():
        that, origin = json.loads(cached.read_text()), "from the cache"
    else:
        with check_out(commit) as tree:
            that = probe_tree(tree, sizes)
        cached.write_text(json.dumps(that, indent=2) + "\n")
        origin = f"{time.perf_counter() - since:.0f} s"
    print(f"{commit[:12]}: {origin}", flush=True)
    since = time.perf_counter()
    this = probe_tree(ROOT, sizes)
    print(f"this tree ({head[:12]}{' and changes' if is_dirty else ''}): {time.perf_counter() - since:.0f} s\n")
    if not is_dirty and (run_git("rev-parse", "HEAD"), run_git("status", "--porcelain")) == (
        head,
        "",
    ):  # nor edited since
        find_cache_file(arguments.cache, head, sizes).write_text(json.dumps(this, indent=2) + "\n")
    is_equal = show_table(this, that, commit)
    if arguments.json:
        document = {
            "command": " ".join(["python", "benchmarks/bit_identity.py", *sys.argv[1:]]),
            "machine": describe_machine(),
            **asdict(sizes),
            "head": head,
            "has_changes": is_dirty,
            "against": commit,
            "equal": is_equal,
            "this_tree": this,
            "that_tree": that,
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    return is_equal


def main() -> int:
    arguments = parse_arguments()
    evaluations = QUICK_EVALUATIONS if arguments.quick else EVALUATIONS
    sizes = Sizes(evaluations, arguments.episodes, arguments.seed, arguments.num_steps)
    if arguments.probe:
        arguments.probe.write_text(json.dumps(run_probe(arguments.tree, sizes)))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the worktree is removed
    try:
        return 0 if compare(arguments, sizes) else 1
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

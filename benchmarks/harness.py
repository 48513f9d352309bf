"""What all benchmarks share: their options, where results go, and the datasets they start from.

Every benchmark runs without arguments and prints a table. With `--json FILE` it writes the results there; without it,
nowhere. `make benchmarks` runs them all with `--json docs/results/NAME.json`. With `--quick` sizes are so small that a
benchmark only shows that it works. Planners are those that come with the package; datasets are collected when they are
first needed and kept in `runs/benchmarks` (delete it to have them collected again).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "runs" / "benchmarks"


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help begins with the docstring of a benchmark."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def parse_arguments(parser: argparse.ArgumentParser, quick: Mapping[str, Any]) -> argparse.Namespace:
    """The arguments of this process, with the options that all benchmarks have.

    Args:
        parser: with the benchmark's own options.
        quick: defaults under `--quick`, by the names of arguments; what is given beside it still counts.
    """
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes, to see that it works")
    names = {action.dest for action in parser._actions}
    assert set(quick) <= names, f"no such arguments: {set(quick) - names}"
    if parser.parse_known_args()[0].quick:
        parser.set_defaults(**quick)
        # Nothing is measured, and threads that wait for each other take minutes where other programs use the cores.
        torch.set_num_threads(1)
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    return parser.parse_args()


def write_results(arguments: argparse.Namespace, results: Mapping[str, Any]) -> None:
    """Write results with the command and the machine that gave them, where `--json` asks for it."""
    if arguments.json is None:
        return
    document = {"command": get_command(), "machine": describe_machine(), **results}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    print(f"written to {arguments.json}")


def get_command() -> str:
    """The command of this process."""
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def describe_machine() -> str:
    """Cores, architecture, PyTorch and GPU of this machine."""
    gpu = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    return ", ".join([f"{os.cpu_count()} CPU cores", platform.machine(), f"torch {torch.__version__}", *gpu])


def require_gpu() -> None:
    """End this process well, with one line, where there is no GPU."""
    if not torch.cuda.is_available():
        print(f"{Path(sys.argv[0]).stem}: skipped, for there is no GPU")
        raise SystemExit(0)


def run_diffplan(command: str, arguments: Sequence[str | Path]) -> None:
    """Run a command of diffplan in a process of its own; ends this one if it fails."""
    line = [sys.executable, "-m", "diffplan.cli", command, *map(str, arguments)]
    if code := subprocess.run(line).returncode:
        raise SystemExit(f"{' '.join(line[2:])}: expected exit code 0, got {code}")


def find_dataset(preset: str, num_steps: int | None = None) -> Path:
    """The dataset that `diffplan collect` makes of a preset, collected unless it is there.

    Args:
        preset: the preset.
        num_steps: environment steps in place of the preset's.
    """
    path = WORK / "datasets" / (preset if num_steps is None else f"{preset}-{num_steps}")
    size = [] if num_steps is None else ["--num_steps", str(num_steps)]
    run_diffplan("collect", [preset, "--out", path, *size, "--resume"])
    return path


def make_scratch() -> tempfile.TemporaryDirectory[str]:
    """A temporary directory on the disk of this repository, for /tmp may be memory."""
    WORK.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(dir=WORK)

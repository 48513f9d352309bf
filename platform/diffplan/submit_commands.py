"""`diffplan submit …`: commands as jobs of a Ray cluster."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffplan.baseline_commands import parse_baseline
from diffplan.commands import parse_collect, parse_evaluate, parse_pipeline, parse_train, show
from diffplan.errors import ConfigError
from diffplan.suggestion import unknown_name
from diffplan.table1_commands import parse_table1
from diffplan.tuning_commands import parse_tune

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

    from diffplan.cluster.job_server import JobServer

SUBMIT_USAGE = """\
usage: diffplan submit COMMAND ARGUMENTS [options]

Runs `diffplan COMMAND ARGUMENTS` as a job of a Ray cluster and shows its output. COMMAND is one of collect, train,
tune, evaluate, pipeline, table1 and baseline. Ctrl-C stops following, and the job goes on.

options
  --address URL       job server; $RAY_API_SERVER_ADDRESS, $RAY_ADDRESS or http://127.0.0.1:8265 if not given
  --no_wait           print the id of the job, and leave it alone
  --working_dir DIR   directory to upload, without data and runs; the present one if not given
  --num_cpus N        CPUs for the command itself; without, it runs on the head (its workers have their own)
  --num_gpus N        GPUs for the command itself

Paths among the arguments must be absolute, and lead to the same place on all nodes. The exit code is that of the job:
0, 2 for what the user can cure, else 1. `ray job list`, `status`, `logs` and `stop` manage the jobs of a cluster."""


@dataclasses.dataclass(frozen=True)
class _Submittable:
    """A command that may be a job.

    Attributes:
        parse: reads its arguments, or raises what is wrong with them.
        places: arguments that are paths, by their fields.
        positional: those of them that have no `--`.
    """

    parse: Callable[[list[str]], Any]
    places: tuple[str, ...]
    positional: tuple[str, ...] = ()


SUBMITTABLE = {
    "collect": _Submittable(parse_collect, ("out",)),
    "train": _Submittable(lambda arguments: parse_train(arguments)[0], ("data", "out", "tensorboard")),
    "tune": _Submittable(parse_tune, ("source", "out", "study"), ("source",)),
    "evaluate": _Submittable(parse_evaluate, ("policy", "out", "settings"), ("policy",)),
    "pipeline": _Submittable(parse_pipeline, ("out",)),
    "table1": _Submittable(parse_table1, ("out", "results", "datasets", "models", "packages")),
    "baseline": _Submittable(parse_baseline, ("dataset", "out"), ("dataset",)),
}
NAMED = {"source": "pretrained:", "policy": ("pretrained:", "baseline:")}
"""How places begin that are names of something in the package."""


def submit(arguments: list[str]) -> int:
    """`diffplan submit`; returns the exit code of the job."""
    options, rest = _take_options(arguments)
    if rest[:1] in (["-h"], ["--help"]):
        show(SUBMIT_USAGE)
        return 0
    if not rest:
        raise ConfigError(f"submit: expected a command, one of {', '.join(SUBMITTABLE)}; got nothing")
    command, *rest = rest
    if command not in SUBMITTABLE:
        raise ConfigError(unknown_name("submit", command, SUBMITTABLE))
    check_places(command, rest)
    from diffplan.cluster.job_server import JobServer
    from diffplan.cluster.submit import submit as submit_job

    server = JobServer(options.address)
    job = submit_job(server, command, rest, options.working_dir, num_cpus=options.num_cpus, num_gpus=options.num_gpus)
    show(f"job: {job}")
    return 0 if options.no_wait else _follow(server, job)


def check_places(command: str, arguments: list[str]) -> None:
    """Parse the arguments of a command as the command does, and see that its paths mean the same on all nodes.

    Raises:
        ConfigError: a path that would lead into the copy of the working directory, which is gone after the job.
    """
    parsed = SUBMITTABLE[command].parse(arguments)
    for name in SUBMITTABLE[command].places:
        value = getattr(parsed, name)
        if value is None and name != "out":
            continue
        text = str(value or "none")
        if "://" in text or os.path.isabs(text) or text.startswith(NAMED.get(name, "://")):
            continue
        if name == "study" and not text.endswith(".json"):
            continue
        option = name if name in SUBMITTABLE[command].positional else f"--{name}"
        raise ConfigError(
            f"{option}: expected an absolute path or a URL that all nodes see, got {text}; a job runs in a copy of the "
            "working directory, and what it writes there is lost"
        )


def _take_options(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of `submit` itself, wherever they stand, and the other arguments in their order."""
    parser = argparse.ArgumentParser("diffplan submit", add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS)
    parser.add_argument("--address")
    parser.add_argument("--no_wait", "--no-wait", action="store_true")
    parser.add_argument("--working_dir", "--working-dir", type=Path, default=Path())
    parser.add_argument("--num_cpus", "--num-cpus", type=float, default=0.0)
    parser.add_argument("--num_gpus", "--num-gpus", type=float, default=0.0)
    options, rest = parser.parse_known_args(arguments)
    for name in ("num_cpus", "num_gpus"):
        if not getattr(options, name) >= 0:
            raise ConfigError(f"--{name}: expected 0 or more, got {getattr(options, name):g}")
    return options, rest


def _follow(server: JobServer, job: str) -> int:
    """Show the output of a job until it ends, and return its exit code."""
    try:
        details = server.follow(job, _write, lambda line: print(line, file=sys.stderr, flush=True))  # noqa: T201
    except KeyboardInterrupt:
        sys.stderr.write(
            f"\ninterrupted; the job goes on: `{server.describe_command('logs --follow', job)}`, or end it by "
            f"`{server.describe_command('stop', job)}`\n"
        )
        return 130
    if details.status == "SUCCEEDED":
        return 0
    if details.driver_exit_code == 2:
        return 2  # its last line says what was wrong
    sys.stderr.write(f"error: {_describe_end(job, details)}\n")
    return 1


def _describe_end(job: str, details: JobDetails) -> str:
    if details.status == "STOPPED":
        return f"{job}: the job was stopped"
    if details.driver_exit_code is not None:
        return f"{job}: the job failed with exit code {details.driver_exit_code}; see its output above"
    return f"{job}: the job failed; {' '.join((details.message or 'no reason is known').split())[:500]}"


def _write(text: str) -> None:
    """Print text that has its own ends of lines."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()

"""`diffplan submit …`: commands as jobs of a Ray cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from diffplan.cli.command import Arguments, Command, ExperimentArguments, Group, Passthrough
from diffplan.cli.experiments import check_known_environment, find_config
from diffplan.cli.main import HELP, find_action, find_command
from diffplan.cli.output import show, write
from diffplan.cli.overrides import split_overrides
from diffplan.cli.parsing import list_own_options, parse
from diffplan.config import config_from_dict
from diffplan.errors import ConfigError, unknown_name
from diffplan.importing import look_in_directory

if TYPE_CHECKING:
    from diffplan.cluster.jobs.job_server import JobDetails, JobServer

SUBMITTABLE = ("collect", "train", "tune", "evaluate", "pipeline", "table", "baseline", "behavior")
"""Commands that can be submitted."""
NAMED = ("pretrained:", "baseline:")
"""Prefixes of arguments that name something in a package, rather than a path."""


@dataclass(kw_only=True)
class SubmitArguments(Arguments):
    """Run a command as a job of a Ray cluster.

    The command is collect, train, tune, evaluate, pipeline, table, baseline or behavior. Its output is shown. Paths
    among its arguments must be absolute, and lead to the same place on all nodes. Ctrl-C stops following; the job goes
    on. `ray job list`, `status`, `logs` and `stop` manage the jobs of a cluster. The exit code is that of the job: 0, 2
    for errors that the user can fix, else 1.
    """

    command: Annotated[Positional[tuple[str, ...]], arg(metavar="COMMAND ARGUMENTS ...")]
    """The command and its arguments."""
    address: str | None = None
    """Job server; $RAY_API_SERVER_ADDRESS, $RAY_ADDRESS or http://127.0.0.1:8265 if not given."""
    no_wait: bool = False
    """Print the id of the job, and do not follow it."""
    working_dir: str = "."
    """Directory to upload; data and runs are left out."""
    num_cpus: float = 0.0
    """CPUs for the command itself, besides those of its workers; with 0 it runs on the head node."""
    num_gpus: float = 0.0
    """GPUs for the command itself."""


def submit(words: list[str]) -> int:
    """Submit a job; returns its exit code, or 0 if the user does not wait for it."""
    if any(word in HELP for word in words):
        from diffplan.cli.help import show_help

        show_help(Command(arguments=SubmitArguments, run=lambda call: None), "submit", [], everything=False)
        return 0
    options, rest = take_options(words)
    if not rest:
        raise ConfigError(f"submit: expected a command, one of {', '.join(SUBMITTABLE)}; got nothing")
    command, *rest = rest
    if command not in SUBMITTABLE:
        raise ConfigError(unknown_name("submit", command, SUBMITTABLE))
    look_in_directory(options.working_dir)  # the job imports modules from there
    check_places(command, rest)
    from diffplan.cluster.jobs.job_server import JobServer
    from diffplan.cluster.jobs.submit import submit as submit_job

    server = JobServer(options.address)
    job = submit_job(
        server,
        command,
        rest,
        options.working_dir,
        num_cpus=options.num_cpus,
        num_gpus=options.num_gpus,
        notice=_tell,
    )
    show(f"job: {job}")
    return 0 if options.no_wait else _follow(server, job)


def take_options(words: Sequence[str]) -> tuple[SubmitArguments, list[str]]:
    """The options of `submit` itself, at any position, and the other words in their order."""
    rest, values = split_overrides(words, list_own_options(SubmitArguments)[1], {})
    try:
        options = config_from_dict(SubmitArguments, {**values, "command": rest})
    except ConfigError as error:
        raise ConfigError(f"--{error}") from None
    for name in ("num_cpus", "num_gpus"):
        if not getattr(options, name) >= 0:
            raise ConfigError(f"--{name}: expected 0 or more, got {getattr(options, name):g}")
    return options, rest


def check_places(name: str, words: Sequence[str]) -> None:
    """Parse the arguments of a command as the command does, and check that its paths mean the same on all nodes.

    Raises:
        ConfigError: a path inside the copy of the working directory, which is deleted after the job.
    """
    command, words = find_command(name), list(words)
    while isinstance(command, Group):
        name, command, words = find_action(name, command, words)
    assert isinstance(command, Command)
    call = parse(command, name, words)
    command.check(call)
    if isinstance(call.arguments, ExperimentArguments):
        check_known_environment(find_config(call).env)
    positional, _ = list_own_options(command.arguments)
    named = [(place, getattr(call.arguments, place)) for place in command.places]
    for place, value in [(p, v) for p, given in named for v in (given if isinstance(given, tuple) else (given,))]:
        if value is None and place != "out":
            continue
        text = str(value or "none")
        if "://" in text or os.path.isabs(text) or text.startswith(NAMED):
            continue
        if place == "study" and not text.endswith(".json"):
            continue
        option = place if place in positional else f"--{place}"
        raise ConfigError(
            f"{option}: expected an absolute path or a URL that all nodes see, got {text}; a job runs in a copy of the "
            "working directory, and what it writes there is lost"
        )


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def _follow(server: JobServer, job: str) -> int:
    """Show the output of a job until it ends, and return its exit code."""
    try:
        details = server.follow(job, write, _tell)
    except KeyboardInterrupt:
        sys.stderr.write(
            f"\ninterrupted; the job goes on: `{server.describe_command('logs --follow', job)}`, or end it by "
            f"`{server.describe_command('stop', job)}`\n"
        )
        return 130
    if details.status == "SUCCEEDED":
        return 0
    if details.driver_exit_code == 2:
        return 2  # the last line of the job's output is the error
    sys.stderr.write(f"error: {_describe_end(job, details)}\n")
    return 1


def _describe_end(job: str, details: JobDetails) -> str:
    if details.status == "STOPPED":
        return f"{job}: the job was stopped"
    if details.driver_exit_code is not None:
        return f"{job}: the job failed with exit code {details.driver_exit_code}; see its output above"
    return f"{job}: the job failed; {' '.join((details.message or 'no reason is known').split())[:500]}"


COMMAND = Passthrough("Run a command as a job of a Ray cluster.", submit)

"""The command line: finds a command, runs it, and prints every error that the user can fix as one line.

Each command is a module of this package, imported when the command is used; heavy modules are imported when it runs.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Sequence

from diffplan.cli.command import AnyCommand, Group, Passthrough
from diffplan.cli.output import show
from diffplan.cli.parsing import parse
from diffplan.errors import ConfigError, DiffplanError, Terminated, describe_error, describe_refusal, unknown_name
from diffplan.runs.interrupts import is_heard, watch_start

COMMANDS = (
    *("collect", "train", "calibrate", "tune", "evaluate", "plan", "video", "report", "status", "pipeline", "data"),
    *("baseline", "behavior", "table", "new", "submit"),
)
"""Names of the commands and of their modules."""
RESUMABLE = ("collect", "train", "tune", "evaluate", "pipeline", "behavior")
KEPT = "; what is done is kept: go on with --resume"
EVERYTHING = ("--help_all", "--help-all")
HELP = ("-h", "--help", *EVERYTHING)
NOTE = "`diffplan train --list` lists the presets, `diffplan tune --list` the studies.\n"


def main(words: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    It is 0 for success, 2 for errors that the user can fix, 130 after Ctrl-C, 143 after SIGTERM, 1 for a failed job.
    """
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0] in (*HELP, "help"):
        from diffplan.cli.help import show_group_help

        with _closed_output():
            show_group_help("diffplan", _list_commands(), NOTE)
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        with _closed_output():
            show(version("diffplan"))
        return 0
    return run_command(words[0], words[1:])


@contextlib.contextmanager
def _closed_output() -> Iterator[None]:
    """Go on where the reader of our output has closed it, as in `diffplan data info DIR | head`."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_command(name: str, words: Sequence[str]) -> int:
    """Run one command with the words after its name and return its exit code; see `main`."""
    try:
        with _closed_output(), watch_start():
            try:
                return _run(name, find_command(name), list(words))
            except Exception:
                if is_heard():  # a library has made another error of it
                    raise KeyboardInterrupt from None
                raise
    except DiffplanError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt as interrupt:
        sys.stderr.write(f"interrupted{KEPT if name in RESUMABLE else ''}\n")
        return 143 if isinstance(interrupt, Terminated) else 130
    except SystemExit as error:  # only code that files or options name ends the program itself
        sys.stderr.write(f"error: expected {name} to go on, got {describe_error(error)} from code that it was given\n")
        return 2
    except OSError as error:  # a full disk, a directory that was deleted or must not be written, a path too long
        if (line := describe_refusal(error)) is None:
            raise
        sys.stderr.write(f"error: {line}{KEPT if name in RESUMABLE else ''}\n")
        return 2
    return 0


def find_command(name: str) -> AnyCommand:
    """A command by its name; raises `ConfigError` for an unknown one, suggesting the nearest."""
    if name not in COMMANDS:
        raise ConfigError(unknown_name("command", name, COMMANDS))
    return importlib.import_module(f"diffplan.cli.{name}").COMMAND


def find_action(name: str, group: Group, words: list[str]) -> tuple[str, AnyCommand, list[str]]:
    """The action that the first word names, as its full name, the command, and the other words."""
    if not words:
        raise ConfigError(f"{name}: expected one of the actions {', '.join(group.commands)}; got nothing")
    if words[0] not in group.commands:
        raise ConfigError(unknown_name(name, words[0], group.commands))
    return f"{name} {words[0]}", group.commands[words[0]], words[1:]


def _list_commands() -> Group:
    commands = {name: find_command(name) for name in COMMANDS}
    return Group("Planning with diffusion on Ray: collect, train, search, evaluate, report.", commands)


def _run(name: str, command: AnyCommand, words: list[str]) -> int:
    if isinstance(command, Group):
        if words[:1] and words[0] in HELP:
            from diffplan.cli.help import show_group_help

            show_group_help(f"diffplan {name}", command)
            return 0
        return _run(*find_action(name, command, words))
    if isinstance(command, Passthrough):
        return command.run(words)
    if any(word in HELP for word in words):
        from diffplan.cli.help import show_help

        everything = any(word in EVERYTHING for word in words)
        rest = [word for word in words if word not in HELP]
        show_help(command, name, rest, everything=everything)
        return 0
    if command.lists is not None and "--list" in words:
        if others := [word for word in words if word != "--list"]:
            raise ConfigError(f"{name} --list: expected nothing beside it, got {' '.join(others)}")
        show("\n".join(command.lists()))
        return 0
    call = parse(command, name, words)
    command.check(call)
    return command.run(call) or 0

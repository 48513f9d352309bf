"""Commands: their own options, the config sections whose fields are options too, and their function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, TypeVar

from tyro.conf import Positional, arg

A = TypeVar("A", bound="Arguments")

ADVANCED = "advanced"
"""Key of the metadata of an option that only `--help_all` shows."""


@dataclass(kw_only=True)
class Arguments:
    """The options of a command, a field each."""

    help_all: bool = False
    """Show all options."""


@dataclass(kw_only=True)
class ExperimentArguments(Arguments):
    """The options of a command whose first argument is an experiment."""

    experiment: Annotated[Positional[str], arg(metavar="PRESET|TASK|TASK/PRESET")]
    """A preset, a task (its first preset), or a preset of a task; a task is a name or an import path such as
    my_package.tasks:PUSHING."""


def advanced(default: Any) -> Any:
    """A field of `Arguments` that only `--help_all` shows."""
    return dataclasses.field(default=default, metadata={ADVANCED: True})


@dataclass(frozen=True)
class Call(Generic[A]):
    """A call of a command from the command line.

    Attributes:
        name: the command and its action, such as `data info`.
        arguments: its own options.
        overrides: given fields of the sections, by dotted names.
        words: the words of the command line after the command.
    """

    name: str
    arguments: A
    overrides: Mapping[str, Any]
    words: tuple[str, ...]

    @property
    def line(self) -> str:
        """The command line, for records."""
        return " ".join(["diffplan", self.name, *self.words])


@dataclass(frozen=True, kw_only=True)
class Command(Generic[A]):
    """A command of `diffplan`.

    Attributes:
        arguments: the class of its own options; its docstring describes the command.
        run: runs the command; returns an exit code, or None for 0.
        check: raises for mistakes in a call that can be found without reading storage. It is called before a command is
            run, and before it is submitted.
        sections: types whose fields are options too, by the prefix of their names: `training` makes
            `--training.num_steps`. An empty prefix makes `--num_steps`.
        aliases: other names of options of a section.
        places: own options that are paths or URLs.
        lists: returns the lines that `--list` prints; None if the command has no `--list`.
    """

    arguments: type[A]
    run: Callable[[Call[A]], int | None]
    check: Callable[[Call[A]], object] = lambda call: None
    sections: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    places: tuple[str, ...] = ()
    lists: Callable[[], list[str]] | None = None

    @property
    def summary(self) -> str:
        """What it does, in one sentence."""
        return (self.arguments.__doc__ or "").partition("\n")[0]


@dataclass(frozen=True)
class Passthrough:
    """A command that parses its words itself, because they contain another command.

    Attributes:
        summary: what it does, in one sentence.
        run: runs it, and returns an exit code.
    """

    summary: str
    run: Callable[[list[str]], int]


@dataclass(frozen=True)
class Group:
    """A command that has actions.

    Attributes:
        summary: the purpose of its actions, in one sentence.
        commands: the actions by name.
    """

    summary: str
    commands: Mapping[str, AnyCommand]


AnyCommand = Command[Any] | Passthrough | Group

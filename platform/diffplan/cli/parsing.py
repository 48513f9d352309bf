"""Parses a command line into the call of a command; every mistake is reported in one line.

tyro draws the help of a command (`diffplan.cli.help`), but does not parse: options of a section change an experiment
that only the command knows, such as that of a checkpoint, and tyro reports mistakes only in boxes of many lines.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from diffplan.cli.command import Arguments, Call, Command
from diffplan.cli.overrides import is_option, list_fields, normalize, split_overrides
from diffplan.config import config_from_dict
from diffplan.errors import ConfigError


def parse(command: Command[Any], name: str, words: Sequence[str]) -> Call[Any]:
    """Read the command line of a command.

    Args:
        command: the command.
        name: name of the command, such as `data info`.
        words: the words after its name.

    Raises:
        ConfigError: an unknown option (the message suggests the nearest), a missing one, or a value of the wrong type.
    """
    positional, own = list_own_options(command.arguments)
    fields = list_fields(command.sections)
    rest, values = split_overrides(words, {**fields, **own}, command.aliases)
    for word in rest:
        if is_option(word):
            raise ConfigError(_describe_unknown(name, word, [*own, *command.aliases, *fields]))
    given = {option: values.pop(option) for option in own if option in values}
    for option, hint in positional.items():
        if not rest:
            break
        takes_all = typing.get_origin(hint) is tuple
        given[option], rest = (rest, []) if takes_all else (rest[0], rest[1:])
    if rest:
        raise ConfigError(f"{name}: expected nothing more, got {' '.join(rest)}")
    _require(command, name, given)
    try:
        arguments = config_from_dict(command.arguments, given)
    except ConfigError as error:
        raise ConfigError(f"--{error}") from None
    return Call(name, arguments, values, tuple(words))


def list_own_options(cls: type[Arguments]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The own options of a command with their types: the positional ones, and those by name."""
    from tyro.conf import Positional

    hints = typing.get_type_hints(cls, include_extras=True)
    plain = typing.get_type_hints(cls)
    is_placed = {f.name: Positional in getattr(hints[f.name], "__metadata__", ()) for f in dataclasses.fields(cls)}
    positional = {name: plain[name] for name, placed in is_placed.items() if placed}
    return positional, {name: plain[name] for name, placed in is_placed.items() if not placed}


def _describe_unknown(name: str, word: str, known: Iterable[str]) -> str:
    """One line about an unknown option; suggests the nearest known one, or the nearest last part."""
    unknown, known = normalize(word), list(known)
    near = difflib.get_close_matches(unknown, known, n=1, cutoff=0.75)
    if not near:
        by_last = {option.rpartition(".")[2]: option for option in reversed(known)}
        last = difflib.get_close_matches(unknown.rpartition(".")[2], by_last, n=1, cutoff=0.75)
        near = [by_last[each] for each in last]
    cure = f"did you mean --{near[0]}?" if near else f"`diffplan {name} --help_all` lists them"
    return f"{name}: expected one of its options, got {word.partition('=')[0]}; {cure}"


def _require(command: Command[Any], name: str, given: dict[str, Any]) -> None:
    """Raise `ConfigError` if an option without a default is missing."""
    fields = [f for f in dataclasses.fields(command.arguments) if f.name not in given]
    missing = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    if not missing:
        return
    if missing[0] == "experiment":
        raise ConfigError(
            f"{name}: expected a preset or a task first, got nothing; `diffplan train --list` shows the presets"
        )
    positional = list_own_options(command.arguments)[0]
    named = [option.upper() if option in positional else f"--{option}" for option in missing]
    raise ConfigError(f"{name}: expected {' and '.join(named)}, got {'neither' if len(named) > 1 else 'none'}")

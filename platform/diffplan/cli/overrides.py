"""Options that set fields of an experiment by dotted names, such as `--training.num_steps 1000`.

The same names are the keys of `with_overrides`, of a search and of settings files. This module finds the words that
belong to a field; `diffplan.config` checks the values.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from diffplan.config import with_overrides
from diffplan.config.kinds import list_members
from diffplan.errors import ConfigError

T = TypeVar("T")

_OPTION = re.compile(r"--[A-Za-z]|-h$")


def is_option(word: str) -> bool:
    """Whether a word of a command line is an option; `-1` is not."""
    return _OPTION.match(word) is not None


def normalize(word: str) -> str:
    """The name of an option: `num_steps` of `--num-steps=3`."""
    return word.partition("=")[0].lstrip("-").replace("-", "_")


def list_fields(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names of all fields of sections, with their types.

    Args:
        sections: types by the prefix of the names of their fields. A union of dataclasses has the fields of all of
            them, and its prefix alone stands for their `kind`.
    """
    found: dict[str, Any] = {}
    for prefix, hint in sections.items():
        members = [member for member in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(member)]
        if not members:
            found.setdefault(prefix, hint)
        elif list_members(hint):
            found.setdefault(prefix, str)
        for member in members:
            start = f"{prefix}." if prefix else ""
            hints = typing.get_type_hints(member)
            inner = {f"{start}{f.name}": hints[f.name] for f in dataclasses.fields(member)}
            for name, value in list_fields(inner).items():
                found.setdefault(name, value)
    return found


def split_overrides(
    words: Sequence[str], fields: Mapping[str, Any], aliases: Mapping[str, str]
) -> tuple[list[str], dict[str, Any]]:
    """Separate the options that set fields from the other words of a command line.

    Args:
        words: words of the command line.
        fields: types of the fields by dotted names.
        aliases: other names of dotted names.

    Returns:
        The other words, and the fields that are set. Values are texts, lists of texts, JSON objects or None.

    Raises:
        ConfigError: an option without a value, or a value that must be a JSON object and is not one.
    """
    rest: list[str] = []
    values: dict[str, Any] = {}
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        name = normalize(word)
        name = aliases.get(name, name)
        if not word.startswith("--"):
            rest.append(word)
        elif name in fields:
            given = [word.partition("=")[2]] if "=" in word else []
            values[name] = _take_value(word.partition("=")[0], fields[name], given, waiting)
        elif fields.get(positive := _drop_no(name)) is bool:
            values[positive] = "False"
        else:
            rest.append(word)
    return rest, values


def _drop_no(name: str) -> str:
    section, dot, last = name.rpartition(".")
    return f"{section}{dot}{last.removeprefix('no_')}"


def _take_value(option: str, hint: Any, given: list[str], waiting: list[str]) -> Any:
    """The value of an option from the words after it, which are removed from `waiting`."""
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    kinds = [typing.get_origin(member) or member for member in members]
    if tuple in kinds:
        if not given:
            given = list(itertools.takewhile(lambda word: not is_option(word), waiting))
            del waiting[: len(given)]
        return None if given == ["None"] and type(None) in kinds else given
    if bool in kinds:
        if not given and waiting and waiting[0] in ("True", "False", "true", "false", "None"):
            given.append(waiting.pop(0))
        return None if given == ["None"] else given[0] if given else "True"
    if not given:
        if not waiting or is_option(waiting[0]):
            raise ConfigError(f"{option}: expected a value, got none")
        given.append(waiting.pop(0))
    if given == ["None"] and type(None) in kinds:
        return None
    if dict in kinds or any(dataclasses.is_dataclass(kind) for kind in kinds):
        return _decode_object(option, given[0])
    return given[0]


def _decode_object(option: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ConfigError(f"{option}: expected a JSON object such as {{}}, got {text}")
    return value


def list_section(overrides: Mapping[str, Any], section: str) -> dict[str, Any]:
    """The fields of one section by their names in it."""
    start = f"{section}."
    return {name.removeprefix(start): value for name, value in overrides.items() if name.startswith(start)}


def override_section(section: T, overrides: Mapping[str, Any], name: str) -> T:
    """A section with its overrides; raises `ConfigError` as `with_overrides` does, with the dotted names."""
    try:
        return with_overrides(section, list_section(overrides, name))
    except ConfigError as error:
        first = str(error).partition(":")[0].partition(".")[0]
        raise ConfigError(f"{name}.{error}" if hasattr(section, first) else str(error)) from None

"""Configs as dicts and JSON, and dotted overrides; pydantic checks the types."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, dataclass_transform

from diffplan.config.kinds import change_kind, list_kinds, list_members, list_names, list_unions
from diffplan.errors import MAX_SHOWN, ConfigError, show_value, unknown_name
from diffplan.files import parse_json

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config_dataclass(cls: type[T]) -> type[T]:
    """A frozen, keyword-only dataclass that refuses unknown keys when it is read from a dict."""
    cls.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def require(condition: bool, field: str, expected: str, got: object) -> None:
    """Raise `ConfigError` unless a condition on a field holds; for the `__post_init__` of configs."""
    if not condition:
        raise ConfigError(f"{field}: expected {expected}, got {show_value(got)}")


def require_between(config: object, section: str, **limits: tuple[float, float]) -> None:
    """Raise `ConfigError` unless numeric fields are within limits; for the `__post_init__` of configs.

    Files with configs may come from others. Upper limits are far above all use, and below what would run until it is
    killed. Fields without a value are passed over.

    Args:
        config: the section.
        section: its dotted name with a dot at its end, or nothing.
        limits: the least and the greatest value of each field.
    """
    for name, (low, high) in limits.items():
        value = getattr(config, name)
        if value is not None:
            expected = f"at least {low:g}" if not value >= low else f"at most {high:,}".replace(",", "_")
            require(low <= value <= high, f"{section}{name}", expected, value)


@functools.cache
def _adapter(cls: type) -> Any:
    from pydantic import TypeAdapter  # imported late: it takes 0.2 s, which `--help` does not need

    return TypeAdapter(cls)


def config_to_dict(config: Any) -> dict[str, Any]:
    """The config as nested dicts of JSON values."""
    return _adapter(type(config)).dump_python(config, mode="json")


def config_from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """Read a config; the inverse of `config_to_dict`.

    Raises:
        ConfigError: unknown field, wrong type or value out of range; the message names the field.
    """
    from pydantic import ValidationError

    try:
        return _adapter(cls).validate_python(dict(values))
    except ValidationError as error:
        raise ConfigError(_one_line(cls, error.errors()[0])) from None


def read_shape(shape: type[T], values: Any) -> T:
    """JSON values that are not a config, checked: a `TypedDict`, whose further keys are kept, or a dataclass.

    Args:
        shape: what is expected.
        values: what was read.

    Raises:
        ValueError: values of another shape; the message names the field.
    """
    from pydantic import ValidationError

    try:
        # Only as JSON are types strict while objects may still become dataclasses.
        return _adapter(shape).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "it"
        expected = _EXPECTED.get(first["type"].partition("_")[0])
        said = first["msg"].lower() if expected is None else f"expected {expected}"
        raise ValueError(f"{field}: {said}, got {show_value(first['input'])}") from None


def config_to_json(config: Any) -> str:
    """The config as JSON text."""
    return json.dumps(config_to_dict(config), indent=2) + "\n"


def config_from_json(cls: type[T], text: str) -> T:
    """Read a config from JSON text; raises `ConfigError` as `config_from_dict` does."""
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ConfigError(f"{cls.__name__}: expected JSON, got {text[:40]!r}… ({error})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{cls.__name__}: expected a JSON object, got {type(values).__name__}")
    return config_from_dict(cls, values)


def with_overrides(config: T, overrides: Mapping[str, Any]) -> T:
    """A copy with dotted fields replaced, such as `{"training.learning_rate": 1e-4}`.

    Raises:
        ConfigError: unknown field, wrong type or value out of range; the message names the field and suggests the
            nearest.
    """
    values, unions = config_to_dict(config), list_unions(type(config))
    kinds = {
        name: field for field in unions for name in (field, f"{field}.kind") if isinstance(overrides.get(name), str)
    }
    for name, field in kinds.items():  # first, because the kind decides which fields exist
        section, last = _find_section(values, field, unions)
        section[last] = change_kind(section[last], overrides[name], unions[field])
    for dotted, value in overrides.items():
        if dotted not in kinds:
            section, last = _find_section(values, dotted, unions)
            section[last] = value
    return config_from_dict(type(config), values)


def _find_section(
    values: dict[str, Any], dotted: str, unions: Mapping[str, tuple[type, ...]]
) -> tuple[dict[str, Any], str]:
    """The section that has a field, and the field's name in it; raises `ConfigError` if there is no such field."""
    *path, last = dotted.split(".")
    node: Any = values
    for i, name in enumerate([*path, last]):
        if not isinstance(node, dict) or name not in node:
            prefix, unknown = ".".join([*path, last][:i]), ".".join([*path, last][: i + 1])
            if not isinstance(node, dict) or not node:
                raise ConfigError(f"{prefix}: it has no fields and can only be replaced whole, got {dotted!r}")
            _refuse_other_kind(unions.get(prefix, ()), unknown, node)
            raise ConfigError(_describe_unknown(unknown, prefix, node))
        if i < len(path):
            node = node[name]
    return node, last


def _refuse_other_kind(members: tuple[type, ...], field: str, values: Mapping[str, Any]) -> None:
    """Raise `ConfigError` if a field belongs to another kind than the present one."""
    prefix, _, name = field.rpartition(".")
    others = [kind for member in members if name in list_names(member) for kind in list_kinds((member,))]
    if others:
        raise ConfigError(
            f"{field}: expected a field of {prefix} {values['kind']}, got one of {' and '.join(others)} only; "
            f"set {prefix} too"
        )


def _describe_unknown(field: str, prefix: str, values: Mapping[str, Any]) -> str:
    """One line about an unknown field; suggests one, such as `horizon.min` for `horizon_min` or `min`."""
    start = f"{prefix}." if prefix else ""
    below = [start + name for name in _list_below(values)]
    names = {name.removeprefix(start).replace(".", "_"): name for name in reversed(below)}
    names |= {name.rpartition(".")[2]: name for name in reversed(below)}
    near = difflib.get_close_matches(field.removeprefix(start), names, n=1)
    hint = f" Did you mean {names[near[0]]!r}?" if near else ""
    return f"config: expected one of {', '.join(sorted(start + name for name in values))}; got {field!r}.{hint}"


def _list_below(values: Mapping[str, Any]) -> list[str]:
    """Dotted names of nested fields; a section comes before its fields."""
    names = []
    for name, value in values.items():
        names += [name, *(f"{name}.{inner}" for inner in (_list_below(value) if isinstance(value, dict) else ()))]
    return names


_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "True or False",
    "string": "text",
    "dict": "an object",
}
"""Our wording for the beginnings of pydantic's messages."""


def _one_line(cls: type, error: Mapping[str, Any]) -> str:
    field = ".".join(_without_tags(cls, error["loc"]))
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _dotted_fields(cls)
        if field in known:
            return f"{field}: expected a field of the kind of {field.rpartition('.')[0]}, got one of another kind"
        return unknown_name(cls.__name__, field, known)
    got = error["input"]
    if error["type"] in ("union_tag_not_found", "union_tag_invalid"):
        choices = list_kinds(list_unions(cls)[field])
        kind = got.get("kind") if isinstance(got, Mapping) else got
        return f"{field}.kind: expected one of {', '.join(choices)}, got {show_value(kind)}{_suggest(kind, choices)}"
    if error["type"] == "literal_error":
        choices = error["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
        return f"{field}: expected one of {choices}, got {show_value(got)}{_suggest(got, choices.split(', '))}"
    expected = _EXPECTED.get(error["type"].partition("_")[0])
    return f"{field}: {error['msg'] if expected is None else f'expected {expected}'}, got {show_value(got)}"


def _suggest(got: object, choices: list[str]) -> str:
    near = difflib.get_close_matches(str(got), choices, n=1) if isinstance(got, str) and len(got) < MAX_SHOWN else []
    return f"; did you mean {near[0]!r}?" if near else ""


def _without_tags(cls: type, loc: Sequence[Any]) -> list[str]:
    """The location of an error, without the names of classes that pydantic adds after the field of a tagged union."""
    hint: Any = cls
    found = []
    for part in loc:
        if members := list_members(hint):
            hint = next((member for member in members if member.__name__ == part), None)
            continue
        found.append(str(part))
        hint = typing.get_type_hints(hint).get(part) if dataclasses.is_dataclass(hint) else None
    return found


def _dotted_fields(cls: type, prefix: str = "") -> list[str]:
    names = []
    for name, annotation in typing.get_type_hints(cls).items():
        members = list_members(annotation) or ((annotation,) if dataclasses.is_dataclass(annotation) else ())
        for member in members:
            names += _dotted_fields(typing.cast(type, member), f"{prefix}{name}.")
        if not members:
            names.append(prefix + name)
    return list(dict.fromkeys(names))

"""Configs as dicts and JSON, and dotted overrides; pydantic checks the types."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, dataclass_transform

from diffplan.errors import ConfigError, unknown_name

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config_dataclass(cls: type[T]) -> type[T]:
    """A frozen, keyword-only dataclass that refuses unknown keys when it is read from a dict."""
    cls.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def require(condition: bool, field: str, expected: str, got: object) -> None:
    """Raises `ConfigError` unless a condition on a field holds; for the `__post_init__` of configs."""
    if not condition:
        raise ConfigError(f"{field}: expected {expected}, got {got!r}")


@functools.cache
def _adapter(cls: type) -> Any:
    from pydantic import TypeAdapter  # imported late: it costs 0.2 s that `--help` need not pay

    return TypeAdapter(cls)


def config_to_dict(config: Any) -> dict[str, Any]:
    """The config as nested dicts of JSON values."""
    return _adapter(type(config)).dump_python(config, mode="json")


def config_from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """Read a config; the inverse of `config_to_dict`.

    Raises:
        ConfigError: unknown field, wrong type or value out of range; names the field.
    """
    from pydantic import ValidationError

    try:
        return _adapter(cls).validate_python(dict(values))
    except ValidationError as error:
        raise ConfigError(_one_line(cls, error.errors()[0])) from None


def config_to_json(config: Any) -> str:
    """The config as JSON text."""
    return json.dumps(config_to_dict(config), indent=2) + "\n"


def config_from_json(cls: type[T], text: str) -> T:
    """Read a config from JSON text; raises `ConfigError` as `config_from_dict` does."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{cls.__name__}: expected JSON, got {text[:40]!r}… ({error})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{cls.__name__}: expected a JSON object, got {type(values).__name__}")
    return config_from_dict(cls, values)


def with_overrides(config: T, overrides: Mapping[str, Any]) -> T:
    """A copy with dotted fields replaced, such as `{"training.learning_rate": 1e-4}`.

    Raises:
        ConfigError: unknown field, wrong type or value out of range; names the field and suggests.
    """
    values = config_to_dict(config)
    for dotted, value in overrides.items():
        *path, last = dotted.split(".")
        node = values
        for i, name in enumerate([*path, last]):
            if not isinstance(node, dict) or name not in node:
                prefix, unknown = ".".join([*path, last][:i]), ".".join([*path, last][: i + 1])
                if not isinstance(node, dict) or not node:
                    raise ConfigError(f"{prefix}: it has no fields and can only be replaced whole, got {dotted!r}")
                raise ConfigError(unknown_name("config", unknown, [f"{prefix}.{k}" if prefix else k for k in node]))
            if i < len(path):
                node = node[name]
        node[last] = value
    return config_from_dict(type(config), values)


_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "True or False",
    "string": "text",
    "dict": "an object",
}
"""What pydantic's errors begin with, in our words."""


def _one_line(cls: type, error: Mapping[str, Any]) -> str:
    field = ".".join(str(part) for part in error["loc"])
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return unknown_name(cls.__name__, field, _dotted_fields(cls))
    got = error["input"]
    if error["type"] == "literal_error":
        choices = error["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
        near = difflib.get_close_matches(str(got), choices.split(", "), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{field}: expected one of {choices}, got {got!r}{hint}"
    expected = _EXPECTED.get(error["type"].partition("_")[0])
    return f"{field}: {error['msg'] if expected is None else f'expected {expected}'}, got {got!r}"


def _dotted_fields(cls: type, prefix: str = "") -> list[str]:
    names = []
    for name, annotation in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(annotation):
            names += _dotted_fields(typing.cast(type, annotation), f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names

"""Tagged unions: fields with one of several sections, chosen by `kind`.

The kind is a literal in each section, except in one section that may take any other text, such as an import path.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Any


class ByKind:
    """Marks a union of sections in the annotation of a field, so that pydantic reads the section of the given kind."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        members = list_members(source)

        def tag(value: Any) -> str | None:
            kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
            member = find_member(members, kind)
            return None if member is None else member.__name__

        return core_schema.tagged_union_schema(
            {member.__name__: handler.generate_schema(member) for member in members}, discriminator=tag
        )


def list_members(hint: Any) -> tuple[type, ...]:
    """The sections of a tagged union; empty for any other type."""
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else ()
    is_union = len(members) > 1 and all(dataclasses.is_dataclass(m) and "kind" in list_names(m) for m in members)
    return members if is_union else ()


def find_member(members: tuple[type, ...], kind: Any) -> type | None:
    """The section of a kind; for an unknown kind, the section that takes any text; None if there is none."""
    if not isinstance(kind, str):
        return None
    for member in members:
        if kind in typing.get_args(typing.get_type_hints(member)["kind"]):
            return member
    return next((member for member in members if typing.get_type_hints(member)["kind"] is str), None)


def list_kinds(members: tuple[type, ...]) -> list[str]:
    """The literal kinds of a union."""
    return [kind for member in members for kind in typing.get_args(typing.get_type_hints(member)["kind"])]


def list_names(member: Any) -> tuple[str, ...]:
    """Names of the fields of a section."""
    return tuple(field.name for field in dataclasses.fields(member))


@functools.cache
def list_unions(cls: type) -> dict[str, tuple[type, ...]]:
    """The tagged unions of a config: the dotted name of each field, with its sections."""
    found: dict[str, tuple[type, ...]] = {}
    for name, hint in typing.get_type_hints(cls).items():
        if members := list_members(hint):
            found[name] = members
        elif dataclasses.is_dataclass(hint):
            found.update({f"{name}.{inner}": each for inner, each in list_unions(typing.cast(type, hint)).items()})
    return found


def change_kind(values: dict[str, Any], kind: str, members: tuple[type, ...]) -> dict[str, Any]:
    """The values of a section after a change of kind: common fields are kept, the others have their defaults."""
    member = find_member(members, kind)
    fields = () if member is None else dataclasses.fields(member)
    return {**{field.name: values.get(field.name, field.default) for field in fields}, "kind": kind}

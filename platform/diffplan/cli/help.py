"""The help of commands, drawn by tyro from their options: the important ones on one screen, or all of them."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import typing
from collections.abc import Mapping
from typing import Annotated, Any

import tyro

from diffplan.cli.command import ADVANCED, Command, Group
from diffplan.cli.output import show
from diffplan.cli.parsing import list_own_options
from diffplan.config.kinds import list_kinds, list_unions
from diffplan.errors import ConfigError

_REGISTRY = tyro.constructors.ConstructorRegistry()


@_REGISTRY.primitive_rule
def _json_object(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """How dicts of JSON values are shown, such as that of `--env.env_kwargs '{"size": 3}'`."""
    if info.type != dict[str, Any]:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=lambda texts: json.loads(texts[0]),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [json.dumps(value)],
    )


def show_group_help(name: str, group: Group, note: str = "") -> None:
    """Print the actions of a command, one per line.

    Args:
        name: `diffplan`, or `diffplan` and the command.
        group: its actions.
        note: text below them.
    """
    actions = tuple(
        Annotated[_Nothing, tyro.conf.subcommand(action, description=each.summary)]
        for action, each in group.commands.items()
    )
    _draw(typing.Union[actions], name, group.summary)  # noqa: UP007  (made of a tuple)
    show(f"{note}`{name} {'COMMAND' if name == 'diffplan' else 'ACTION'} --help` lists its options.")


@dataclasses.dataclass
class _Nothing:
    """Placeholder for a command in a list of commands, which shows no options."""


def show_help(command: Command[Any], name: str, words: list[str], *, everything: bool) -> None:
    """Print the options of a command.

    Args:
        command: the command.
        name: name of the command, such as `data info`.
        words: words of the command line without the help option; if they name a preset, its values are shown.
        everything: whether to show the options of sections and the advanced ones too.
    """
    description = inspect.getdoc(command.arguments)
    if everything:
        _draw(_with_sections(command, words), f"diffplan {name}", description, tyro.conf.AvoidSubcommands)
        return
    _draw(_without_advanced(command.arguments), f"diffplan {name}", description)
    described = {prefix: hint for prefix, hint in command.sections.items() if prefix}
    if not described:
        return
    width = max(map(len, described)) + 6
    lines = [f"  {f'--{prefix}.*':<{width}}{_first_sentence(hint)}" for prefix, hint in described.items()]
    aliases = [f"--{alias}" for alias in command.aliases]
    if aliases:
        lines.append(f"  without their section: {', '.join(aliases[:6])}{', …' if len(aliases) > 6 else ''}")
    show("\n".join([f"Sections, listed by `diffplan {name} --help_all`:", *lines]))


def _draw(cls: Any, prog: str, description: str | None, *markers: Any) -> None:
    config = (tyro.conf.FlagCreatePairsOff, *markers)
    with contextlib.suppress(SystemExit):
        tyro.cli(
            cls,
            args=["--help"],
            prog=prog,
            description=description,
            use_underscores=True,
            config=config,
            registry=_REGISTRY,
        )


def _first_sentence(hint: Any) -> str:
    return (hint.__doc__ or "").strip().partition(". ")[0].partition("\n")[0].rstrip(".") + "."


def _without_advanced(cls: type) -> type:
    hints = typing.get_type_hints(cls, include_extras=True)
    hidden = [f for f in dataclasses.fields(cls) if ADVANCED in f.metadata]
    fields = [(f.name, tyro.conf.Suppress[hints[f.name]], dataclasses.field(default=f.default)) for f in hidden]
    return _extend(cls, fields)


def _with_sections(command: Command[Any], words: list[str]) -> type:
    """The options of a command and of its sections; the sections have the values of a preset, if one is named."""
    values = _find_values(command, words)
    fields = []
    for prefix, hint in command.sections.items():
        default = values.get(prefix, dataclasses.MISSING)
        if dataclasses.is_dataclass(hint) and list_unions(typing.cast(type, hint)):
            hint, default = _show_every_kind(hint, default)
        field = dataclasses.field() if default is dataclasses.MISSING else dataclasses.field(default=default)
        shown = tyro.conf.FlagConversionOff[hint]
        fields.append((prefix or "settings", shown if prefix else tyro.conf.OmitArgPrefixes[shown], field))
    return _extend(command.arguments, fields)


def _show_every_kind(section: Any, value: Any) -> tuple[type, Any]:
    """A section and its value, with the fields of all kinds where it holds one of several."""
    value = section() if value is dataclasses.MISSING else value
    changes = {}
    for name, members in list_unions(section).items():
        own = getattr(value, name)
        every = _extend(members[0], [("kind", str, own.kind)], members)
        every.__doc__ = f"One of several kinds, each with its own fields: {', '.join(list_kinds(members))}."
        changes[name] = every(**vars(own))
    shown = _extend(section, [(name, type(every), every) for name, every in changes.items()])
    return shown, shown(**{**vars(value), **changes})


def _find_values(command: Command[Any], words: list[str]) -> Mapping[str, Any]:
    if "experiment" not in list_own_options(command.arguments)[0] or not words:
        return {}
    from diffplan.tasks.registry import get_preset

    with contextlib.suppress(ConfigError):
        return vars(get_preset(words[0]))
    return {}


def _extend(cls: type, fields: list[Any], bases: tuple[type, ...] = ()) -> type:
    frozen = cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    extended = dataclasses.make_dataclass(cls.__name__, fields, bases=bases or (cls,), kw_only=True, frozen=frozen)
    extended.__doc__ = cls.__doc__
    return extended

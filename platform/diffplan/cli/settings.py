"""Planner settings of a command: those of the checkpoint, overridden by a file, overridden by the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from diffplan.cli.overrides import list_section, override_section
from diffplan.config import PlanningConfig, config_to_dict
from diffplan.planning.settings import merge_settings, read_settings
from diffplan.planning.trust import list_named, require_trust
from diffplan.tasks.pretrained import PREFIX


def choose_settings(
    own: PlanningConfig, source: str, *, file: str | None, overrides: Mapping[str, Any], trust: bool
) -> PlanningConfig:
    """The settings that a command plans with.

    Args:
        own: settings of the checkpoint.
        source: the checkpoint, as the user named it.
        file: path or URL of a file with all or some settings.
        overrides: fields of the command line by dotted names; only those of `planning` are used.
        trust: whether the files may name functions and URLs.

    Raises:
        ConfigError: no such file, or it holds no settings; an unknown field or a wrong value; or functions and URLs
            that only a file names, without trust.
    """
    values = {} if file is None else read_settings(file)
    chosen = override_section(own if file is None else merge_settings(own, values, file), overrides, "planning")
    if not trust:
        known = set(_list_texts(list_section(overrides, "planning").values()))
        if source.startswith(PREFIX):  # it comes with an installed package
            known.update(text for _, text in list_named(config_to_dict(own)))
        of_file = {text for _, text in list_named(values)}
        for field, text in list_named(config_to_dict(chosen)):
            where = str(file) if text in of_file else source
            require_trust({field.removeprefix("planning."): text}, where, known)
    return chosen


def _list_texts(values: Any) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _list_texts(value)

"""Planner settings: in files, merged, and for a model whose companions are not there yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffplan.config import PlanningConfig, config_to_dict, with_overrides
from diffplan.errors import ConfigError
from diffplan.files import MAX_SETTINGS_BYTES, parse_json, read_file
from diffplan.storage.opening import open_store


def _read(where: str) -> bytes:
    if "://" not in where:
        return read_file(where, max_bytes=MAX_SETTINGS_BYTES)
    directory, _, name = where.rpartition("/")
    return open_store(directory).read(name)


def load_settings(path: str | Path, base: PlanningConfig | None = None) -> PlanningConfig:
    """Planner settings from a file that a search wrote (`best.json`), or from a plain JSON object of settings.

    Args:
        path: path or URL.
        base: settings for fields that the file does not have, such as those of the checkpoint; None if it has all.

    Raises:
        ConfigError: no such file, it holds no settings, or only some and there is no base.
        StoreError: the store of a URL cannot be reached.
    """
    values = read_settings(path)
    if base is not None:
        return merge_settings(base, values, str(path))
    settings = merge_settings(PlanningConfig(), values, str(path))
    given = {name for name, _ in _list_fields(values)}
    missing = [name for name, _ in _list_fields(config_to_dict(settings)) if name not in given]
    if missing:  # defaults in their place would silently replace what was tuned for a checkpoint
        raise ConfigError(
            f"{path}: expected all planner settings, got none for {', '.join(missing[:3])}"
            f"{f' and {len(missing) - 3} more' if len(missing) > 3 else ''}; give the settings that these are to be "
            "merged over, such as those of the checkpoint (base)"
        )
    return settings


def read_settings(path: str | Path) -> dict[str, Any]:
    """What a settings file holds, which may be some fields only; raises as `load_settings` does."""
    try:
        values = parse_json(_read(str(path)))
    except FileNotFoundError:
        raise ConfigError(f"{path}: expected a settings file (such as search/best.json), got none there") from None
    except (ValueError, OSError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise ConfigError(f"{path}: expected JSON settings, got something else ({reason})") from None
    if isinstance(values, dict):
        values = values.get("settings", values)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a JSON object of settings, got {type(values).__name__}")
    return values


def merge_settings(base: PlanningConfig, values: Mapping[str, Any], where: str) -> PlanningConfig:
    """Settings with some fields replaced by JSON values.

    Args:
        base: settings for fields without a value.
        values: nested sections, or dotted names.
        where: source of the values, for messages.

    Raises:
        ConfigError: an unknown field or a wrong value.
    """
    try:
        return with_overrides(base, dict(_list_fields(values)))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def without_companions(settings: PlanningConfig) -> PlanningConfig:
    """The settings, but for what needs companions, so that a model can plan before `diffplan calibrate` fits them."""
    return with_overrides(settings, {"horizon.rule": "scan", "controller": "tracking", "guidance.value": None})


def _list_fields(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Fields of nested sections by dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _list_fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value

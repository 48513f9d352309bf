"""Planner settings in files."""

from __future__ import annotations

import json
from pathlib import Path

from diffplan.config import PlanningConfig, config_from_dict
from diffplan.data.opening import open_store
from diffplan.errors import ConfigError


def _read(where: str) -> bytes:
    if "://" not in where:
        return Path(where).read_bytes()
    directory, _, name = where.rpartition("/")
    return open_store(directory).read(name)


def load_settings(path: str | Path) -> PlanningConfig:
    """Planner settings from a file that a search wrote (`best.json`), or from a plain JSON object of settings.

    Args:
        path: path or URL.

    Raises:
        ConfigError: no such file, or something else in it.
        StoreError: the store of a URL cannot be reached.
    """
    try:
        values = json.loads(_read(str(path)))
    except FileNotFoundError:
        raise ConfigError(f"{path}: expected a settings file (such as search/best.json), got none there") from None
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path}: expected JSON settings, got something else ({error})") from None
    if isinstance(values, dict):
        values = values.get("settings", values)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a JSON object of settings, got {type(values).__name__}")
    return config_from_dict(PlanningConfig, values)

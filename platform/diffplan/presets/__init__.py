"""Ready experiments, each a complete config under a name.

`janner-*` are the published rows of Janner et al. 2022; the same name without `janner-` is a small model of the same
task that trains in minutes to hours on two CPU cores. A family of environments is a module here with a table `PRESETS`;
a new one is another such module and its name in `_FAMILIES`.
"""

from __future__ import annotations

from diffplan.config import Config
from diffplan.errors import ConfigError
from diffplan.presets import locomotion, maze2d, stacking
from diffplan.presets.preset import Preset
from diffplan.suggestion import unknown_name

_FAMILIES = (maze2d, locomotion, stacking)
_PRESETS: dict[str, Preset] = {name: preset for family in _FAMILIES for name, preset in family.PRESETS.items()}


def find_preset(name: str) -> Preset:
    """A preset: its config and the sizes of its environment.

    Raises:
        ConfigError: no preset of that name; suggests the nearest.
    """
    if name not in _PRESETS:
        raise ConfigError(unknown_name("preset", name, _PRESETS))
    return _PRESETS[name]


def get_preset(name: str) -> Config:
    """The config of a preset.

    Raises:
        ConfigError: no preset of that name; suggests the nearest.
    """
    return find_preset(name).config


def list_presets() -> list[str]:
    """Names of all presets."""
    return sorted(_PRESETS)

"""Protocols: the tasks that an experiment's environment is evaluated on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from diffplan.config import EnvConfig
from diffplan.errors import ConfigError
from diffplan.suggestion import unknown_name

PROTOCOLS: dict[str, dict[str, Any]] = {
    "maze2d": {"redraw_goal": False},
    "multi2d": {"redraw_goal": True},
}
"""Arguments of the environment under each protocol. Maze2D keeps the goal of D4RL, Multi2D draws one per episode."""

EPISODES_PER_UNIT = 50
"""Episodes that are evaluated at once, if no other number is asked for. It fixes which random numbers a plan sees."""


def apply_protocol(name: str, env: EnvConfig) -> EnvConfig:
    """The environment under a protocol; raises `ConfigError` for an unknown one."""
    if name not in PROTOCOLS:
        raise ConfigError(unknown_name("protocol", name, PROTOCOLS))
    return replace(env, env_kwargs={**env.env_kwargs, **PROTOCOLS[name]})

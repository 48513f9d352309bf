"""Protocols: the ways in which a task's environments are evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from diffplan.config import EnvConfig
from diffplan.errors import ConfigError, unknown_name
from diffplan.tasks.registry import task_of

BASELINE_PREFIX = "baseline:"
"""Prefix of the name of a policy that needs no checkpoint."""
EPISODES_PER_UNIT = 50
"""Episodes that are evaluated at once by default. This number fixes the random numbers in a plan."""


def apply_protocol(name: str, env: EnvConfig) -> EnvConfig:
    """The environment under a protocol of its task; raises `ConfigError` for an unknown one."""
    protocols = task_of(env).protocols
    if name not in protocols:
        raise ConfigError(unknown_name("protocol", name, protocols))
    return replace(env, env_kwargs={**env.env_kwargs, **protocols[name].env_kwargs})


def choose_protocols(names: Sequence[str], env: EnvConfig) -> tuple[str, ...]:
    """The protocols named, or all of the environment's task; raises `ConfigError` for an unknown one."""
    protocols = task_of(env).protocols
    for name in names:
        if name not in protocols:
            raise ConfigError(unknown_name("protocol", name, protocols))
    return tuple(names) or tuple(protocols)


def choose_protocol(name: str | None, env: EnvConfig) -> str:
    """The protocol named, or the only one of the environment's task.

    Raises:
        ConfigError: an unknown protocol, or none is named and there are several.
    """
    protocols = choose_protocols(() if name is None else (name,), env)
    if len(protocols) != 1:
        raise ConfigError(f"--protocol: expected one of {', '.join(protocols)}, got none")
    return protocols[0]

"""Protocols: the ways in which a task's environments are evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from diffplan.config import EnvConfig
from diffplan.errors import ConfigError, unknown_name
from diffplan.tasks.registry import find_protocols

BASELINE_PREFIX = "baseline:"
"""Prefix of the name of a policy that needs no checkpoint."""
EPISODES_PER_UNIT = 50
"""Episodes that are evaluated at once by default. This number fixes the random numbers in a plan."""


def apply_protocol(name: str, env: EnvConfig) -> EnvConfig:
    """The environment under a protocol of its task; raises `ConfigError` for an unknown one."""
    protocols = find_protocols(env)
    if name not in protocols:
        raise ConfigError(unknown_name("protocol", name, protocols))
    return replace(env, env_kwargs={**env.env_kwargs, **protocols[name].env_kwargs})


def choose_protocols(names: Sequence[str], env: EnvConfig) -> tuple[str, ...]:
    """The protocols named, or all of the environment's task; raises `ConfigError` for an unknown one."""
    protocols = find_protocols(env)
    for name in names:
        if name not in protocols:
            raise ConfigError(unknown_name("protocol", name, protocols))
    return tuple(names) or tuple(protocols)


def list_protocols(env: EnvConfig, own: Sequence[str] = ()) -> tuple[str, ...]:
    """The protocols that an experiment can be evaluated under.

    Args:
        env: its environment.
        own: those that it names (`search.protocols`). Of protocols that name data, only these are left.
    """
    protocols = find_protocols(env)
    return tuple(name for name, found in protocols.items() if not found.names_data or not own or name in own)


def choose_protocol(name: str | None, env: EnvConfig, own: Sequence[str] = ()) -> str:
    """The named protocol, or the only one.

    Args:
        name: the protocol; None for the only one.
        env: the environment.
        own: as for `list_protocols`.

    Raises:
        ConfigError: an unknown protocol, one of other data than the experiment's, or none is named and there are
            several.
    """
    choose_protocols(() if name is None else (name,), env)
    protocols = list_protocols(env, own)
    if name is None and len(protocols) != 1:
        raise ConfigError(f"--protocol: expected one of {', '.join(protocols)}, got none")
    if name is not None and name not in protocols:
        raise ConfigError(
            f"--protocol: expected {' or '.join(protocols)}, the data that the policy was trained on, got {name}"
        )
    return protocols[0] if name is None else name

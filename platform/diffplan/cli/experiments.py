"""The experiment of a command line: a preset or a task, with the overrides of its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffplan.cli.command import Call
from diffplan.config import Config, EnvConfig, with_overrides
from diffplan.errors import ConfigError
from diffplan.tasks.registry import find_experiment


def find_config(call: Call[Any]) -> Config:
    """The experiment of a call whose first argument names one.

    Raises:
        ConfigError: no such preset or task (the message suggests the nearest), or a field with an invalid value.
    """
    return with_overrides(find_experiment(call.arguments.experiment).config, call.overrides)


def require_counts(arguments: Any, *names: str, least: int = 1) -> None:
    """Raise `ConfigError` for options that are given and are less than `least`."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name}: expected at least {least}, got {value}")


def find_config_to_collect(call: Call[Any]) -> Config:
    """The same experiment; raises `ConfigError` as `find_config` does, or if it names no environment."""
    config = find_config(call)
    if not config.env.env_id:
        raise ConfigError("env.env_id: expected the id of a Gymnasium environment, got none; give --env.env_id ID")
    return config


def check_known_environment(env: EnvConfig) -> None:
    """Raise `ConfigError` for an environment that is installed here and cannot be planned in.

    One that is not installed may be where the command will run, or may not be needed. Without an id it is that of data.
    """
    from diffplan.environments import make_env
    from diffplan.tasks.registry import complete_env

    if not env.env_id:
        return
    try:
        make_env(env).close()
    except ConfigError:
        return
    complete_env(env)


def find_config_for(call: Call[Any], data: str) -> Config:
    """The same experiment, in the environment of a dataset; see `find_config_of`."""
    return find_config_of(call.arguments.experiment, data, call.overrides)


def find_config_of(experiment: str, data: str, overrides: Mapping[str, Any]) -> Config:
    """An experiment in the environment of a dataset, unless the overrides name another one.

    Raises:
        ConfigError: as for `find_config`, or the preset is for another environment than the data.
        DataError: the dataset is missing or damaged.
    """
    from diffplan.data.format.dataset import open_dataset
    from diffplan.training.environment import adopt_environment

    found = find_experiment(experiment)
    if "env.env_id" in overrides:
        return with_overrides(found.config, overrides)
    return with_overrides(adopt_environment(found.preset, open_dataset(data), experiment), overrides)

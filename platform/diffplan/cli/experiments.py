"""The experiment of a command line: a preset or a task, with the overrides of its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffplan.cli.command import Call
from diffplan.config import Config, with_overrides
from diffplan.tasks.registry import find_experiment


def find_config(call: Call[Any]) -> Config:
    """The experiment of a call whose first argument names one.

    Raises:
        ConfigError: no such preset or task (the message suggests the nearest), or a field with an invalid value.
    """
    return with_overrides(find_experiment(call.arguments.experiment).config, call.overrides)


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

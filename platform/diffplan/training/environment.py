"""The environment of a training run is that of its data; a preset for another environment is refused."""

from __future__ import annotations

from dataclasses import replace

from diffplan.config import Config, EnvConfig, config_from_dict
from diffplan.data.format.dataset import TrajectoryDataset
from diffplan.errors import ConfigError
from diffplan.tasks.registry import fill_roles
from diffplan.tasks.task import Preset

ROLES = ("position_columns", "velocity_columns", "goal_columns")


def adopt_environment(preset: Preset, dataset: TrajectoryDataset, name: str) -> Config:
    """The experiment of a preset in the environment of a dataset, with the roles that its columns have there.

    Args:
        preset: the preset; one without an environment takes any data.
        dataset: the data. Of a merged dataset any of its environments will do.
        name: of the preset, for messages.

    Raises:
        ConfigError: the preset is of another environment, of other columns, or of other sizes.
    """
    config = preset.config
    manifest = dataset.manifest
    recorded = [dataset.env, *(config_from_dict(EnvConfig, dict(task.env)) for task in manifest.tasks)]
    wanted = config.env.env_id
    found = next((env for env in recorded if env.env_id == wanted or not (wanted and env.env_id)), None)
    if found is None:
        others = ", ".join(dict.fromkeys(env.env_id for env in recorded))
        raise _contradiction(name, "data of", wanted, others, dataset)
    if preset.observation_dim not in (None, manifest.observation_dim):
        raise _contradiction(name, "observations of size", preset.observation_dim, manifest.observation_dim, dataset)
    if preset.action_dim not in (None, manifest.action_dim):
        raise _contradiction(name, "actions of size", preset.action_dim, manifest.action_dim, dataset)
    if not found.env_id:
        return config  # imported data that do not name their environment
    env = fill_roles(replace(found, task=found.task or config.env.task))
    for role in ROLES:
        own, got = getattr(config.env, role), getattr(env, role)
        if wanted and own and got and own != got:
            raise _contradiction(name, f"env.{role}", list(own), list(got), dataset)
    roles = {role: getattr(env, role) or getattr(config.env, role) for role in (*ROLES, "step_seconds")}
    return replace(config, env=replace(env, **roles))


def _contradiction(name: str, what: str, expected: object, got: object, dataset: TrajectoryDataset) -> ConfigError:
    return ConfigError(
        f"{name}: expected {what} {expected}, got {got} in {dataset.uri}; take a preset of that environment or the "
        "preset gymnasium, or name the environment on purpose by --env.env_id"
    )

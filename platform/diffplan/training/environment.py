"""The environment of a training run is that of its data; a preset for another environment is refused."""

from __future__ import annotations

from dataclasses import replace

from diffplan.config import Config, EnvConfig, config_from_dict
from diffplan.data.format.dataset import TrajectoryDataset
from diffplan.errors import ConfigError
from diffplan.tasks.registry import fill_roles, find_protocols
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
    recorded = _list_environments(dataset)
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


def check_environment(config: Config, dataset: TrajectoryDataset, *, is_other: bool = False) -> None:
    """Check that data can be planned in, are of the environment of an experiment, and have the columns that it names.

    Args:
        config: the experiment.
        dataset: the data.
        is_other: whether the experiment names another environment than the data on purpose.

    Raises:
        ConfigError: images or discrete actions, another environment, or a column out of range.
    """
    for column in dataset.manifest.columns[:2]:
        if len(column.shape) != 1 or (column.name == "action" and not column.dtype.startswith("float")):
            raise ConfigError(
                f"{dataset.uri}: expected {column.name}s that are vectors of numbers, got shape {list(column.shape)} "
                f"of {column.dtype}; images and discrete actions cannot be planned"
            )
    num_columns = dataset.manifest.observation_dim
    named = {f"env.{role}": getattr(config.env, role) for role in ROLES}
    named |= {"windows.goal_columns": config.windows.goal_columns or ()}
    named |= {"windows.relative_columns": config.windows.relative_columns}
    named |= {"windows.known_columns": config.windows.known_columns}
    for field, columns in named.items():
        if max(columns, default=0) >= num_columns:
            raise ConfigError(
                f"{field}: expected columns below {num_columns}, the size of observations in {dataset.uri}, got "
                f"{list(columns)}"
            )
    recorded = [env for env in _list_environments(dataset) if env.env_id]
    if not is_other and config.env.env_id and recorded and not any(_agrees(config.env, env) for env in recorded):
        others = ", ".join(dict.fromkeys(_describe(env) for env in recorded))
        raise ConfigError(
            f"env: expected that of the data in {dataset.uri} ({others}), got {_describe(config.env)}; take the "
            "environment from the data (adopt_environment), or say that another one is meant"
        )


def _list_environments(dataset: TrajectoryDataset) -> list[EnvConfig]:
    """The environments that a dataset records; several if it was merged."""
    return [dataset.env, *(config_from_dict(EnvConfig, dict(task.env)) for task in dataset.manifest.tasks)]


def _agrees(env: EnvConfig, recorded: EnvConfig) -> bool:
    """Whether two are the same environment, apart from what protocols of its task set."""
    free = {name for protocol in find_protocols(env).values() for name in protocol.env_kwargs}
    both = (set(env.env_kwargs) & set(recorded.env_kwargs)) - free
    return env.env_id == recorded.env_id and all(env.env_kwargs[k] == recorded.env_kwargs[k] for k in both)


def _describe(env: EnvConfig) -> str:
    return f"{env.env_id} {env.env_kwargs}" if env.env_kwargs else env.env_id


def _contradiction(name: str, what: str, expected: object, got: object, dataset: TrajectoryDataset) -> ConfigError:
    return ConfigError(
        f"{name}: expected {what} {expected}, got {got} in {dataset.uri}; take a preset of that environment or the "
        "preset gymnasium, or name the environment on purpose by --env.env_id"
    )

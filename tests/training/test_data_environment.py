"""The environment of a training run is that of its data."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from diffplan.cli.experiments import find_config_of
from diffplan.config import EnvConfig, with_overrides
from diffplan.data.format.dataset import open_dataset
from diffplan.data.format.manifest import Column, Manifest, make_columns, new_dataset_uuid
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.data.maintenance.merging import Source, merge
from diffplan.errors import ConfigError
from diffplan.tasks.registry import find_preset, get_preset
from diffplan.training.environment import check_environment
from diffplan.types import Episode

UMAZE = get_preset("maze2d-umaze").env
PENDULUM = EnvConfig(env_id="Pendulum-v1", task="gymnasium")


def write(root: Path, env: EnvConfig, observation_dim: int = 4, action_dim: int = 2) -> Path:
    """A dataset of one episode in some environment."""
    manifest = Manifest(
        new_dataset_uuid(),
        dataclasses.asdict(env),
        make_columns(observation_dim, action_dim),
        [-1.0] * action_dim,
        [1.0] * action_dim,
    )
    manifest = create_dataset(root, manifest)
    generator = np.random.default_rng(0)
    episode = Episode(
        episode_index=0,
        seed=0,
        behavior="random",
        observations=generator.uniform(1, 3, (41, observation_dim)).astype(np.float32),
        actions=generator.uniform(-1, 1, (40, action_dim)).astype(np.float32),
        rewards=np.zeros(40, np.float32),
        terminated=False,
        truncated=True,
        columns={},
    )
    write_unit(root, manifest, 0, [episode])
    return root


def test_a_preset_of_the_same_environment_is_left_as_it_is(tmp_path: Path) -> None:
    data = write(tmp_path / "data", UMAZE)
    assert find_config_of("maze2d-umaze", str(data), {}) == find_preset("maze2d-umaze").config


def test_arguments_and_roles_are_those_of_the_data(tmp_path: Path) -> None:
    env = dataclasses.replace(UMAZE, env_kwargs={"reward_type": "dense"}, step_seconds=0.02, task=None)
    config = find_config_of("maze2d-umaze", str(write(tmp_path / "data", env)), {})
    assert config.env == dataclasses.replace(env, task="maze2d")
    # What the data do not know of their columns, their task does.
    bare = write(tmp_path / "bare", EnvConfig(env_id=UMAZE.env_id))
    assert find_config_of("maze2d-umaze", str(bare), {}).env == UMAZE


def test_the_generic_preset_takes_any_data(tmp_path: Path) -> None:
    data = str(write(tmp_path / "pendulum", PENDULUM, 3, 1))
    assert find_config_of("gymnasium", data, {}).env == PENDULUM
    given = {"env.step_seconds": 0.05, "training.num_steps": 7}
    config = find_config_of("gymnasium", data, given)
    assert config.env == dataclasses.replace(PENDULUM, step_seconds=0.05)
    assert config.training.num_steps == 7
    assert find_config_of("gymnasium", str(write(tmp_path / "umaze", UMAZE)), {}).env == UMAZE


def test_a_preset_that_contradicts_the_data_is_refused(tmp_path: Path) -> None:
    data = write(tmp_path / "pendulum", PENDULUM, 3, 1)
    message = f"maze2d-umaze: expected data of {UMAZE.env_id}, got Pendulum-v1 in {data}; "
    with pytest.raises(ConfigError, match=message) as caught:
        find_config_of("maze2d-umaze", str(data), {})
    assert "--env.env_id" in str(caught.value)
    assert "\n" not in str(caught.value)
    # Unless it is meant.
    assert find_config_of("maze2d-umaze", str(data), {"env.env_id": "Pendulum-v1"}).env.env_id == "Pendulum-v1"
    with pytest.raises(ConfigError, match="expected observations of size 4, got 5 in"):
        find_config_of("maze2d-umaze", str(write(tmp_path / "wide", UMAZE, 5)), {})
    other = dataclasses.replace(UMAZE, position_columns=(2, 3), velocity_columns=())
    with pytest.raises(ConfigError, match=r"expected env.position_columns \[0, 1\], got \[2, 3\] in"):
        find_config_of("maze2d-umaze", str(write(tmp_path / "turned", other)), {})


def test_merged_data_are_of_every_environment_that_they_were_merged_of(tmp_path: Path) -> None:
    medium = get_preset("maze2d-medium").env
    parts = [open_dataset(write(tmp_path / env.env_id[-9:-3], env)) for env in (UMAZE, medium)]
    merge([Source(parts[0], "u", 1.0), Source(parts[1], "m", 1.0)], tmp_path / "all")
    for preset, env in (("maze2d-umaze", UMAZE), ("maze2d-medium", medium)):
        assert find_config_of(preset, str(tmp_path / "all"), {}).env == env
    with pytest.raises(ConfigError, match="got diffplan/Maze2D-UMaze-v1, diffplan/Maze2D-Medium-v1 in"):
        find_config_of("maze2d-large", str(tmp_path / "all"), {})


def test_data_that_do_not_say_what_they_are_of_are_what_the_preset_says(tmp_path: Path) -> None:
    data = write(tmp_path / "data", EnvConfig(env_id=""))
    assert find_config_of("maze2d-umaze", str(data), {}).env == UMAZE
    assert json.loads((data / "_dataset.json").read_text())["env"]["env_id"] == ""


@pytest.mark.parametrize("field", ["windows.goal_columns", "env.position_columns", "env.goal_columns"])
def test_columns_that_the_data_do_not_have_are_refused(field: str, tmp_path: Path) -> None:
    dataset = open_dataset(write(tmp_path / "data", UMAZE))
    config = with_overrides(get_preset("maze2d-umaze"), {field: (0, 50), "env.velocity_columns": ()})
    with pytest.raises(ConfigError, match=rf"{field}: expected columns below 4, .* got \[0, 50\]") as caught:
        check_environment(config, dataset)
    assert "\n" not in str(caught.value)


def test_an_experiment_in_another_environment_than_its_data_is_refused(tmp_path: Path) -> None:
    config = get_preset("maze2d-umaze")
    check_environment(config, open_dataset(write(tmp_path / "same", UMAZE)))
    multi = dataclasses.replace(UMAZE, env_kwargs={"redraw_goal": True})
    check_environment(config, open_dataset(write(tmp_path / "multi", multi)))
    for name, env in (
        ("medium", get_preset("maze2d-medium").env),
        ("pendulum", PENDULUM),
        ("map", dataclasses.replace(UMAZE, env_kwargs={"maze": "large"})),
    ):
        dataset = open_dataset(write(tmp_path / name, env))
        own = with_overrides(config, {"env.env_kwargs": {"maze": "umaze"}})
        with pytest.raises(ConfigError, match=r"env: expected that of the data in .*, got diffplan/Maze2D-UMaze-v1"):
            check_environment(own, dataset)
        check_environment(own, dataset, is_other=True)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            make_columns((8, 8, 3), 2, observation_dtype="uint8"),
            r"observations that are vectors .* shape \[8, 8, 3\] of uint8",
        ),
        (make_columns(4, (), action_dtype="int64"), r"actions that are vectors of numbers, got shape \[\] of int64"),
        (make_columns(4, 2, action_dtype="int64"), r"actions that are vectors of numbers, got shape \[2\] of int64"),
    ],
)
def test_images_and_discrete_actions_are_refused(columns: tuple[Column, ...], message: str, tmp_path: Path) -> None:
    size = columns[1].size
    manifest = create_dataset(
        tmp_path / "data", Manifest(new_dataset_uuid(), {"env_id": "some/Game-v0"}, columns, [0.0] * size, [1.0] * size)
    )
    observation, action = columns[:2]
    episode = Episode(
        episode_index=0,
        seed=0,
        behavior="random",
        observations=np.zeros((41, *observation.shape), observation.numpy_dtype),
        actions=np.zeros((40, *action.shape), action.numpy_dtype),
        rewards=np.zeros(40, np.float32),
        terminated=False,
        truncated=True,
        columns={},
    )
    write_unit(tmp_path / "data", manifest, 0, [episode])
    config = find_config_of("gymnasium", str(tmp_path / "data"), {"env.env_id": "some/Game-v0"})
    with pytest.raises(ConfigError, match=message) as caught:
        check_environment(config, open_dataset(tmp_path / "data"))
    assert "\n" not in str(caught.value)

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from minari_sources import POINTMAZE_SPEC, UMAZE, make_buffer, save, save_pointmaze, unbounded, write_env_spec

from diffplan.config import EnvConfig
from diffplan.data.exchange.minari import export_minari, import_minari
from diffplan.environments import make_env
from diffplan.errors import ConfigError, DataError
from diffplan.tasks.maze2d.environment import ROLES, get_maze
from diffplan.tasks.maze2d.frames import make_frame
from diffplan.tasks.registry import find_frame


def drive(env_id: str, num_steps: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Observations [T + 1, 4], actions [T, 2], rewards [T] and goal [2] of random driving in our environment."""
    env = gymnasium.make(env_id, max_episode_steps=num_steps)
    observation, info = env.reset(seed=seed)
    generator = np.random.default_rng(seed)
    observations, actions, rewards = [observation], [], []
    for t in range(num_steps):
        # Long pushes, so that the ball crosses cells and hits walls.
        actions.append(generator.uniform(-1, 1, 2).astype(np.float32) if t % 25 == 0 else actions[-1])
        observation, reward, *_ = env.step(actions[-1])
        observations.append(observation)
        rewards.append(reward)
    env.close()
    return np.array(observations), np.array(actions), np.array(rewards), info["goal"]


def centre(positions: np.ndarray, width: int, height: int) -> np.ndarray:
    """Maze2D to PointMaze: x along columns, y against rows, origin in the middle."""
    return np.stack([positions[..., 1] - width / 2 + 0.7, height / 2 - 0.7 - positions[..., 0]], axis=-1)


def turn(vectors: np.ndarray) -> np.ndarray:
    return np.stack([vectors[..., 1], -vectors[..., 0]], axis=-1)


def save_centred(env_id: str, maze_map: list[list[int]], **kwargs: Any) -> tuple[str, list[Any]]:
    """Trajectories of our environment as a dataset of PointMaze; returns its id and the trajectories."""
    width, height = len(maze_map[0]), len(maze_map)
    buffers, driven = [], []
    for seed in range(2):
        observations, actions, rewards, goal = drive(env_id, 400, seed)
        driven.append((observations, actions, rewards, goal))
        position, velocity = centre(observations[:, :2], width, height), turn(observations[:, 2:])
        goals = np.tile(centre(goal, width, height), (len(observations), 1))
        buffers.append(
            make_buffer(
                {
                    "observation": np.concatenate([position, velocity], axis=1),
                    "achieved_goal": position,
                    "desired_goal": goals,
                },
                turn(actions),
                rewards,
                infos={"goal": goals, "qpos": position, "qvel": velocity, "success": np.zeros((401, 1), bool)},
            )
        )
    name = save_pointmaze(buffers=buffers, name=f"m{width}x{height}")
    spec = {**json.loads(POINTMAZE_SPEC.to_json()), "kwargs": {"maze_map": maze_map, **kwargs}}
    write_env_spec(name, json.dumps(spec))
    return name, driven


@pytest.mark.parametrize("env_id", ["diffplan/Maze2D-UMaze-v1", "diffplan/Maze2D-Large-v1"])
def test_pointmaze_data_comes_back_in_our_coordinates(env_id: str, tmp_path: Path) -> None:
    maze = get_maze(EnvConfig(env_id=env_id))
    source, driven = save_centred(env_id, maze.walls.astype(int).tolist())
    dataset = import_minari(source, tmp_path / "out", frame="maze2d")

    assert dataset.env == replace(ROLES, env_id=env_id)
    for i, (observations, actions, _, goal) in enumerate(driven):
        record = dataset.episodes[i]
        found = np.concatenate([dataset.episode_column(i, "observation"), [record.final_observation]])
        np.testing.assert_allclose(found, observations, rtol=0, atol=1e-12)
        assert maze.is_free(found[:, :2]).all()
        assert np.array_equal(dataset.episode_column(i, "action"), actions)
        for name in ("observation.desired_goal", "infos.goal"):
            np.testing.assert_allclose(dataset.episode_column(i, name)[0], goal, atol=1e-12)
        for name in ("observation.achieved_goal", "infos.qpos"):
            np.testing.assert_allclose(dataset.episode_column(i, name), found[:-1, :2], atol=1e-12)
            np.testing.assert_allclose(record.final_values[name], found[-1, :2], atol=1e-12)
        np.testing.assert_allclose(dataset.episode_column(i, "infos.qvel"), found[:-1, 2:], atol=1e-12)
    # The ball does leave its first cell, so a wrong map would be seen.
    assert len(np.unique(maze.cell_at(found[:, :2]), axis=0)) > 1
    assert not maze.is_free(centre(found[:, :2], *maze.walls.shape[::-1])).all()


def test_actions_replay_in_our_environment(tmp_path: Path) -> None:
    source, driven = save_centred("diffplan/Maze2D-UMaze-v1", UMAZE)
    dataset = import_minari(source, tmp_path / "out", frame="maze2d")
    env = make_env(dataset.env)
    observations = dataset.episode_column(0, "observation")
    env.reset(options={"observation": observations[0]})
    for t in range(50):
        observation, *_ = env.step(dataset.episode_column(0, "action")[t])
        np.testing.assert_allclose(observation, observations[t + 1], rtol=0, atol=1e-9)
    assert len(driven[0][1]) == 400


def test_own_mazes_goals_and_dense_rewards_choose_the_environment(tmp_path: Path) -> None:
    def env_of(maze_map: list[list[Any]], **kwargs: Any) -> EnvConfig:
        return make_frame(json.dumps({"kwargs": {"maze_map": maze_map, **kwargs}})).env

    assert env_of(UMAZE, reward_type="dense").env_id == "diffplan/Maze2D-UMaze-Dense-v1"
    own = [[1, 1, 1, 1], [1, "r", "g", 1], [1, "c", 0, 1], [1, 1, 1, 1]]
    assert env_of(own) == replace(ROLES, env_kwargs={"maze": "####/#OG#/#OO#/####"})
    assert get_maze(env_of(own, reward_type="dense")).goal_cell.tolist() == [1, 2]


def test_asymmetric_bounds_turn_with_the_actions(tmp_path: Path) -> None:
    action_space = spaces.Box(np.array([-1.0, -2.0]), np.array([3.0, 4.0]), dtype=np.float64)
    save(
        "maze/bounds-v0",
        [make_buffer(np.zeros((2, 4)), np.array([[3.0, 4.0]]), np.zeros(1))],
        unbounded(4),
        action_space,
    )
    write_env_spec("maze/bounds-v0", POINTMAZE_SPEC.to_json())
    dataset = import_minari("maze/bounds-v0", tmp_path / "out", frame="maze2d")
    assert (dataset.manifest.action_low, dataset.manifest.action_high) == ([-4.0, -1.0], [2.0, 3.0])
    assert dataset.episode_column(0, "action").tolist() == [[-4.0, 3.0]]


def test_mapped_data_round_trips_as_data_of_our_environment(tmp_path: Path) -> None:
    import minari

    source, _ = save_centred("diffplan/Maze2D-UMaze-v1", UMAZE)
    dataset = import_minari(source, tmp_path / "out", frame="maze2d")
    export_minari(dataset, "maze2d/mapped-v0")
    loaded = minari.load_dataset("maze2d/mapped-v0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = loaded.recover_environment()
    assert env.spec.id == "diffplan/Maze2D-UMaze-v1"
    assert loaded.observation_space.shape == env.observation_space.shape
    again = import_minari("maze2d/mapped-v0", tmp_path / "again")
    assert again.content_hash() == dataset.content_hash()
    assert again.env == dataset.env


def test_what_the_frame_does_not_fit(tmp_path: Path) -> None:
    for spec, message in (
        (None, "expected a maze_map"),
        ('{"kwargs": {"maze_map": [[1, 1], [1]]}}', "expected a maze_map"),
        (json.dumps({"kwargs": {"maze_map": UMAZE, "maze_size_scaling": 4}}), "cells of size 1, got 4"),
        ('{"kwargs": {"maze_map": [[1, 1, 1], [1, 0, 0], [1, 1, 1]]}}', "the border must be closed"),
    ):
        with pytest.raises(DataError, match=message):
            make_frame(spec)
    assert find_frame("maze2d")(json.dumps({"kwargs": {"maze_map": UMAZE}})).env.env_id == "diffplan/Maze2D-UMaze-v1"
    with pytest.raises(ConfigError, match="--frame: expected one of maze2d; got 'd4rl'"):
        find_frame("d4rl")
    save("maze/ant-v0", [make_buffer(np.zeros((2, 27)), np.zeros((1, 8)), np.zeros(1))], unbounded(27), unbounded(8))
    write_env_spec("maze/ant-v0", POINTMAZE_SPEC.to_json())
    with pytest.raises(DataError, match="column 'observation': expected 4 floats per step"):
        import_minari("maze/ant-v0", tmp_path / "out", frame="maze2d")


def test_the_real_pointmaze_moves_as_ours_does(tmp_path: Path) -> None:
    robotics = pytest.importorskip("gymnasium_robotics")
    gymnasium.register_envs(robotics)
    env = gymnasium.make("PointMaze_UMaze-v3", continuing_task=True, max_episode_steps=60)
    observation, _ = env.reset(seed=3)
    generator = np.random.default_rng(0)
    steps, actions, rewards = [observation], [], []
    for _ in range(60):
        actions.append(generator.uniform(-1, 1, 2).astype(np.float32))
        observation, reward, *_ = env.step(actions[-1])
        steps.append(observation)
        rewards.append(float(reward))
    observations = {name: np.array([s[name] for s in steps]) for name in steps[0]}
    source = save_pointmaze(buffers=[make_buffer(observations, np.array(actions), np.array(rewards))], name="real")
    write_env_spec(source, env.spec.to_json())
    dataset = import_minari(source, tmp_path / "out", frame="maze2d")

    ours = make_env(dataset.env)
    found = dataset.episode_column(0, "observation")
    ours.reset(options={"observation": found[0]})
    for t in range(59):
        observation, *_ = ours.step(dataset.episode_column(0, "action")[t])
        np.testing.assert_allclose(observation, found[t + 1], rtol=0, atol=1e-9)
    assert np.abs(found[-1, :2] - found[0, :2]).max() > 0.01

"""Minari datasets made on the spot, in the layouts of those that are published."""

import json
import warnings
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from minari import MinariDataset, create_dataset_from_buffers
from minari.data_collector import EpisodeBuffer
from minari.storage.datasets_root_dir import get_dataset_path

UMAZE = [[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]


def unbounded(*shape: int, dtype: Any = np.float64) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, shape, dtype)


POINTMAZE_SPACE = spaces.Dict(
    {"observation": unbounded(4), "achieved_goal": unbounded(2), "desired_goal": unbounded(2)}
)
POINTMAZE_SPEC = gymnasium.envs.registration.EnvSpec(
    "PointMaze_UMaze-v3",
    entry_point="gymnasium_robotics.envs.maze.point_maze:PointMazeEnv",
    max_episode_steps=300,
    kwargs={"maze_map": UMAZE, "reward_type": "sparse", "continuing_task": True},
)


def save(
    dataset_id: str,
    buffers: list[EpisodeBuffer],
    observation_space: spaces.Space,
    action_space: spaces.Space,
    *,
    data_format: str = "hdf5",
    **metadata: Any,
) -> MinariDataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari asks for an author and the like
        return create_dataset_from_buffers(
            dataset_id,
            buffers,
            observation_space=observation_space,
            action_space=action_space,
            data_format=data_format,
            **metadata,
        )


def make_buffer(
    observations: Any,
    actions: Any,
    rewards: Any,
    *,
    terminated: bool = False,
    truncated: bool = True,
    infos: Any = None,
    seed: int | None = None,
    options: dict[str, Any] | None = None,
) -> EpisodeBuffer:
    length = len(rewards)
    return EpisodeBuffer(
        seed=seed,
        options=options,
        observations=observations,
        actions=actions,
        rewards=rewards,
        terminations=[False] * (length - 1) + [terminated],
        truncations=[False] * (length - 1) + [truncated],
        infos=infos,
    )


def make_mujoco_buffers(lengths: tuple[int, ...] = (7, 1, 12)) -> list[EpisodeBuffer]:
    """`mujoco/*`: float64 observations, nested infos of floats, the first seed missing."""
    buffers = []
    for k, length in enumerate(lengths):
        generator = np.random.default_rng(k)
        x_velocity = generator.standard_normal(length + 1)
        x_velocity[0] = np.nan
        infos = {
            "x_position": generator.standard_normal((length + 1, 1)),
            "x_velocity": x_velocity.tolist(),
            "reward": {"ctrl": generator.standard_normal((length + 1, 2)).astype(np.float32)},
            "contact": [bool(b) for b in generator.integers(2, size=length + 1)],
        }
        buffers.append(
            make_buffer(
                generator.standard_normal((length + 1, 11)),
                generator.uniform(-1, 1, (length, 3)).astype(np.float32),
                generator.standard_normal(length),
                terminated=k % 2 == 0,
                truncated=k % 2 == 1,
                infos=infos,
                seed=None if k == 0 else 2**62 + k,
                options={"goal_cell": [k, 2], "noise": {"scale": 0.1}, "kind": "hard"} if k else None,
            )
        )
    return buffers


def save_mujoco(data_format: str = "hdf5", lengths: tuple[int, ...] = (7, 1, 12), name: str = "hopper") -> str:
    dataset_id = f"mujoco/{name}/{data_format}-v0"
    save(
        dataset_id,
        make_mujoco_buffers(lengths),
        unbounded(11),
        spaces.Box(-1, 1, (3,), np.float32),
        data_format=data_format,
        env=gymnasium.spec("diffplan/Maze2D-UMaze-v1"),
        algorithm_name="SAC",
        author="A. N. Author",
        code_permalink="https://example.org/code",
        description="made up",
        requirements=["numpy>=1"],
    )
    return dataset_id


def make_pointmaze_buffers(lengths: tuple[int, ...] = (5, 9)) -> list[EpisodeBuffer]:
    """`D4RL/pointmaze/*`: dict observations, infos with goal, success, qpos and qvel."""
    buffers = []
    for k, length in enumerate(lengths):
        generator = np.random.default_rng(100 + k)
        observation = generator.uniform(-1, 1, (length + 1, 4))
        goal = generator.uniform(-1, 1, (length + 1, 2))
        buffers.append(
            make_buffer(
                {"observation": observation, "achieved_goal": observation[:, :2], "desired_goal": goal},
                generator.uniform(-1, 1, (length, 2)).astype(np.float32),
                (generator.random(length) < 0.3).astype(np.float64),
                infos={
                    "success": generator.random((length + 1, 1)) < 0.3,
                    "goal": goal,
                    "qpos": observation[:, :2],
                    "qvel": observation[:, 2:],
                },
                seed=k,
            )
        )
    return buffers


def save_pointmaze(data_format: str = "hdf5", buffers: list[EpisodeBuffer] | None = None, name: str = "umaze") -> str:
    dataset_id = f"D4RL/pointmaze/{name}-{data_format}-v2"
    save(
        dataset_id,
        make_pointmaze_buffers() if buffers is None else buffers,
        POINTMAZE_SPACE,
        spaces.Box(-1, 1, (2,), np.float32),
        data_format=data_format,
    )
    write_env_spec(dataset_id, POINTMAZE_SPEC.to_json())
    return dataset_id


def write_env_spec(dataset_id: str, env_spec: str) -> None:
    """Name the environment in the metadata, which Minari does only for environments that it can make."""
    path = get_dataset_path(dataset_id) / "data" / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "env_spec": env_spec}))


def assert_trees_equal(found: Any, expected: Any, *, where: str = "") -> None:
    """Same structure, types and bits; lists count as arrays."""
    if isinstance(expected, dict):
        assert isinstance(found, dict), where
        assert sorted(found) == sorted(expected), where
        for name in expected:
            assert_trees_equal(found[name], expected[name], where=f"{where}/{name}")
        return
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.dtype == expected.dtype, where
    np.testing.assert_array_equal(found, expected, err_msg=where)

"""A small experiment for the tests of this directory: straight paths at constant velocity, and a tiny network."""

import dataclasses
from pathlib import Path

import numpy as np

from diffplan.config import (
    Config,
    DiffusionConfig,
    HorizonConfig,
    NetworkConfig,
    PlanningConfig,
    SamplingConfig,
    TrainingConfig,
    WindowConfig,
    config_to_dict,
)
from diffplan.data.format.manifest import Manifest, make_columns, new_dataset_uuid
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.tasks.maze2d.environment import ROLES
from diffplan.types import Episode

NUM_EPISODES, NUM_STEPS = 8, 30
CONFIG = Config(
    env=dataclasses.replace(ROLES, env_id="diffplan/Maze2D-Open-v1"),
    windows=WindowConfig(min_horizon=4, max_horizon=10, horizon_multiple=3, stride=2),
    network=NetworkConfig(dim=8, dim_mults=(1, 2)),
    diffusion=DiffusionConfig(num_diffusion_steps=8),
    training=TrainingConfig(num_steps=4, batch_size=12, num_warmup_steps=1, ema_start_step=1, ema_decay=0.9),
    planning=PlanningConfig(sampling=SamplingConfig(num_steps=3), horizon=HorizonConfig(min=4, max=10, multiple=3)),
)


def make_straight_episode(index: int) -> Episode:
    """A path at constant velocity; actions are noise."""
    generator = np.random.default_rng(index)
    start, velocity = generator.uniform(0, 5, 2), generator.uniform(-2, 2, 2)
    times = 0.01 * np.arange(NUM_STEPS + 1)
    observations = np.concatenate([start + times[:, None] * velocity, np.tile(velocity, (NUM_STEPS + 1, 1))], axis=1)
    return Episode(
        episode_index=index,
        seed=index,
        behavior="straight",
        observations=observations.astype(np.float32),
        actions=generator.uniform(-1, 1, (NUM_STEPS, 2)).astype(np.float32),
        rewards=np.zeros(NUM_STEPS, dtype=np.float32),
        terminated=False,
        truncated=True,
    )


def write_straight_paths(root: Path) -> list[Episode]:
    """Write a dataset of two units of straight paths."""
    manifest = create_dataset(
        root,
        Manifest(
            dataset_uuid=new_dataset_uuid(),
            env=config_to_dict(CONFIG.env),
            collection={"seed": 0},
            columns=make_columns(4, 2),
            action_low=[-1.0, -1.0],
            action_high=[1.0, 1.0],
        ),
    )
    episodes = [make_straight_episode(i) for i in range(NUM_EPISODES)]
    for unit in range(2):
        write_unit(root, manifest, unit, episodes[unit * NUM_EPISODES // 2 : (unit + 1) * NUM_EPISODES // 2])
    return episodes

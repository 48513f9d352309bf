"""Maze2D of D4RL.

`maze2d-*` are small models that train in minutes on two CPU cores, `maze2d-umaze-smoke` in seconds. `janner-maze2d-*`
are the published settings of Janner et al. 2022 (`config/maze2d.py` of its code release); Multi2D is the same model
with other goals. One difference is not in the config: the release splits its data wherever they leave the goal of the
evaluation, so its episodes are the paths between two visits of that goal.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from diffplan.config import (
    CollectionConfig,
    Config,
    DiffusionConfig,
    EnvConfig,
    GuidanceConfig,
    HorizonConfig,
    NetworkConfig,
    PlanningConfig,
    SamplingConfig,
    SearchConfig,
    SelectionConfig,
    Sooner,
    Tracking,
    TrainingConfig,
    WindowConfig,
)
from diffplan.tasks.janner import make_janner_planning, make_janner_training
from diffplan.tasks.maze2d.environment import ROLES
from diffplan.tasks.task import Preset

_GOAL = GuidanceConfig(guides=("goal_distance()",))
"""The guide; a search may turn it on by its scale."""

_TITLES = {"umaze": "UMaze", "medium": "Medium", "large": "Large", "open": "Open"}


def _make_env(maze: str) -> EnvConfig:
    return dataclasses.replace(ROLES, env_id=f"diffplan/Maze2D-{_TITLES[maze]}-v1")


def _collect(num_steps: int) -> CollectionConfig:
    """Collection in episodes of 1,000 steps, in which the behavior pursues one goal after the other."""
    return CollectionConfig(behavior="waypoint", num_steps=num_steps, episode_steps=1_000)


def _brisk(
    *, max_horizon: int, max_speed_error: float, interpolation: Literal["linear", "hermite"] = "linear"
) -> PlanningConfig:
    """Plans at the speed of the demonstrations, followed faster, which pause while the robot lags behind.

    The limit of the speed error is loose: plans that would cut a wall are recognised by their departure from the data.
    """
    return PlanningConfig(
        sampling=SamplingConfig(num_steps=4),
        horizon=HorizonConfig(min=4, max=max_horizon, multiple=1, max_speed_error=max_speed_error, max_departure=0.25),
        selection=SelectionConfig(num_candidates=1),
        guidance=_GOAL,
        controller=Tracking(position_gain=20.0, velocity_gain=1.5, interpolation=interpolation, pace=2.0, max_lag=0.9),
        replanning=Sooner(interval=50, max_deviation=1.4),
    )


def _maze2d(maze: str, *, max_horizon: int, num_collected_steps: int, num_training_steps: int) -> Config:
    return Config(
        env=_make_env(maze),
        collection=_collect(num_collected_steps),
        windows=WindowConfig(min_horizon=4, max_horizon=max_horizon, horizon_multiple=1, stride=5),
        training=TrainingConfig(num_steps=num_training_steps),
        planning=_brisk(max_horizon=max_horizon, max_speed_error=10.0),
    )


def _long_maze2d(maze: str, *, max_horizon: int, num_collected_steps: int, num_training_steps: int) -> Config:
    """Mazes with long paths: fewer, longer plan steps, with cubic interpolation between them."""
    return Config(
        env=_make_env(maze),
        collection=_collect(num_collected_steps),
        windows=WindowConfig(min_horizon=4, max_horizon=max_horizon, horizon_multiple=1, stride=10),
        training=TrainingConfig(num_steps=num_training_steps, batch_size=128),
        planning=_brisk(max_horizon=max_horizon, max_speed_error=8.0, interpolation="hermite"),
    )


def _janner_maze2d(maze: str, *, horizon: int, num_diffusion_steps: int, num_collected_steps: int) -> Config:
    return Config(
        env=_make_env(maze),
        collection=_collect(num_collected_steps),
        windows=WindowConfig(
            min_horizon=horizon,
            max_horizon=horizon,
            horizon_multiple=1,
            stride=1,
            columns="actions_observations",
            goal_columns=(0, 1, 2, 3),
            normalization="limits",
        ),
        network=NetworkConfig(dim=32, dim_mults=(1, 4, 8)),
        diffusion=DiffusionConfig(num_diffusion_steps=num_diffusion_steps, prediction="clean", clip_denoised=True),
        training=make_janner_training(num_steps=2_000_000),
        planning=dataclasses.replace(
            make_janner_planning(horizon=horizon, num_diffusion_steps=num_diffusion_steps, max_speed_error=10.0),
            guidance=_GOAL,
            controller=Tracking(position_gain=1.0, velocity_gain=1.0),
        ),
    )


_CONFIGS: dict[str, Config] = {
    "maze2d-umaze": _maze2d("umaze", max_horizon=36, num_collected_steps=500_000, num_training_steps=3_000),
    "maze2d-medium": _long_maze2d("medium", max_horizon=48, num_collected_steps=1_000_000, num_training_steps=6_000),
    "maze2d-large": _long_maze2d("large", max_horizon=64, num_collected_steps=2_000_000, num_training_steps=14_000),
    "maze2d-open": _maze2d("open", max_horizon=24, num_collected_steps=500_000, num_training_steps=3_000),
    "janner-maze2d-umaze": _janner_maze2d("umaze", horizon=128, num_diffusion_steps=64, num_collected_steps=1_000_000),
    "janner-maze2d-medium": _janner_maze2d(
        "medium", horizon=256, num_diffusion_steps=256, num_collected_steps=2_000_000
    ),
    "janner-maze2d-large": _janner_maze2d("large", horizon=384, num_diffusion_steps=256, num_collected_steps=4_000_000),
}


def _smoke(config: Config) -> Config:
    """The smallest size of an experiment in which every stage really runs, for a few seconds each."""
    return dataclasses.replace(
        config,
        collection=dataclasses.replace(config.collection, num_steps=100_000, episode_steps=500, episodes_per_unit=50),
        training=dataclasses.replace(config.training, num_steps=600, checkpoint_interval=200, picture_interval=600),
        search=SearchConfig(num_trials=3, episodes_per_block=4, num_blocks=2, max_concurrent_trials=2),
    )


_CONFIGS["maze2d-umaze-smoke"] = _smoke(_CONFIGS["maze2d-umaze"])


PRESETS = {name: Preset(config=config, observation_dim=4, action_dim=2) for name, config in _CONFIGS.items()}

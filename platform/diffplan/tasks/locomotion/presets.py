"""Locomotion of D4RL: three robots, three datasets each.

The data come from elsewhere: `diffplan data import d4rl hopper_medium-v2.hdf5 --preset hopper-medium --out DIR`, or
Minari's. The environments are Gymnasium's v4, with the physics that the v2 data of D4RL were made with; v5 has a
different friction in Walker2d. The robots run forward without a target, so there are no position columns and no goals.
Plans are guided by a value function, trained with `--training.objective value` and set in `planning.guidance.value`.

`janner-*` are `config/locomotion.py` of the code release of Janner et al. 2022. Differences that the config does not
show:

* the value function (`--training.objective value`) is trained for 200,000 steps. Presets cannot name its checkpoint,
  so without `planning.guidance.value` the strength and the steps of the guide have no effect;
* the release pads terminated episodes with zeros, which count in the loss, and does not pad full episodes;
  `padding="end"` pads every episode with its last step, which does not count.

The others are small models of the same tasks, with the same windows and the same way of acting, not yet tuned.
"""

from __future__ import annotations

import dataclasses

from diffplan.config import (
    Actions,
    Config,
    DiffusionConfig,
    EnvConfig,
    GuidanceConfig,
    HorizonConfig,
    NetworkConfig,
    PlanningConfig,
    Receding,
    SamplingConfig,
    SelectionConfig,
    TrainingConfig,
    WindowConfig,
)
from diffplan.tasks.janner import make_janner_planning, make_janner_training
from diffplan.tasks.task import Preset

DATASETS = ("medium", "medium-replay", "medium-expert")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Robot:
    """A robot, and the published settings that depend on it."""

    env_id: str
    observation_dim: int
    action_dim: int
    step_seconds: float = 0.008
    horizon: int = 32
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    attention: bool = False
    guidance_scale: float = 0.1
    guide_stop_step: int = 2

    @property
    def env(self) -> EnvConfig:
        return EnvConfig(env_id=self.env_id, step_seconds=self.step_seconds)

    @property
    def windows(self) -> WindowConfig:
        return WindowConfig(
            min_horizon=self.horizon,
            max_horizon=self.horizon,
            horizon_multiple=1,
            stride=1,
            columns="actions_observations",
            goal_columns=(),
            normalization="gaussian",
            padding="end",
        )


_ROBOTS = {
    "hopper": _Robot(env_id="Hopper-v4", observation_dim=11, action_dim=3),
    "walker2d": _Robot(env_id="Walker2d-v4", observation_dim=17, action_dim=6),
    "halfcheetah": _Robot(
        env_id="HalfCheetah-v4",
        observation_dim=17,
        action_dim=6,
        step_seconds=0.05,
        horizon=4,
        dim_mults=(1, 4, 8),
        attention=True,
        guidance_scale=0.001,
        guide_stop_step=4,
    ),
}


def _guide(planning: PlanningConfig, robot: _Robot) -> PlanningConfig:
    """Replan at every step, and take the first action of the candidate that the guide scores highest."""
    return dataclasses.replace(
        planning,
        selection=dataclasses.replace(planning.selection, rule="guide"),
        # The user sets the value function after training it.
        guidance=GuidanceConfig(scale=robot.guidance_scale, stop_step=robot.guide_stop_step),
        controller=Actions(),
        replanning=Receding(interval=1),
    )


def _janner(robot: _Robot) -> Config:
    planning = _guide(make_janner_planning(horizon=robot.horizon, num_diffusion_steps=20), robot)
    return Config(
        env=robot.env,
        windows=robot.windows,
        network=NetworkConfig(dim=32, dim_mults=robot.dim_mults, attention=robot.attention),
        diffusion=DiffusionConfig(
            num_diffusion_steps=20, prediction="clean", clip_denoised=False, action_weight=10.0, loss_discount=1.0
        ),
        training=dataclasses.replace(
            make_janner_training(num_steps=1_000_000), discount=0.997, termination_penalty=100.0
        ),
        planning=dataclasses.replace(
            planning,
            selection=dataclasses.replace(planning.selection, num_candidates=64),
            guidance=dataclasses.replace(planning.guidance, num_steps=2),
        ),
    )


def _small(robot: _Robot) -> Config:
    planning = PlanningConfig(
        sampling=SamplingConfig(num_steps=4),
        horizon=HorizonConfig(min=robot.horizon, max=robot.horizon, multiple=1),
        selection=SelectionConfig(num_candidates=16),
    )
    return Config(
        env=robot.env,
        windows=robot.windows,
        diffusion=DiffusionConfig(num_diffusion_steps=16, clip_denoised=False, action_weight=10.0),
        training=TrainingConfig(num_steps=10_000),
        planning=_guide(planning, robot),
    )


def _make_presets() -> dict[str, Preset]:
    presets = {}
    for name, robot in _ROBOTS.items():
        for dataset in DATASETS:
            guided = robot
            if (name, dataset) == ("hopper", "medium-expert"):  # the one row with a guide of its own
                guided = dataclasses.replace(robot, guidance_scale=0.0001, guide_stop_step=4)
            for prefix, make in (("", _small), ("janner-", _janner)):
                presets[f"{prefix}{name}-{dataset}"] = Preset(
                    config=make(guided), observation_dim=robot.observation_dim, action_dim=robot.action_dim
                )
    return presets


PRESETS = _make_presets()

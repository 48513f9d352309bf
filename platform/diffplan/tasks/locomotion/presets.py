"""Locomotion of D4RL: three robots, three datasets each.

Data are collected by policies that come with the task, or come from elsewhere: `diffplan data import d4rl
hopper_medium-v2.hdf5 --preset hopper-medium --out DIR`, or Minari's. The environments have Gymnasium's v4 physics,
which the v2 data of D4RL were made with; v5 has a different friction in Walker2d. The robots run forward without a
target, so there are no position columns and no goals.

The small presets plan a few jumps ahead: changes of the state at chosen offsets, by a perceptron, with a flag for
falls. Windows come from the best episodes, candidates are averaged, and an action head acts.

`janner-*` are `config/locomotion.py` of the code release of Janner et al. 2022. Their plans are guided by a value
function, trained with `--training.objective value` and set in `planning.guidance.value`. Differences that the config
does not show:

* the value function (`--training.objective value`) is trained for 200,000 steps. Presets cannot name its checkpoint,
  so without `planning.guidance.value` the strength and the steps of the guide have no effect;
* the release pads terminated episodes with zeros, which count in the loss, and does not pad full episodes;
  `padding="end"` pads every episode with its last step, which does not count.
"""

from __future__ import annotations

import dataclasses

from diffplan.config import (
    Actions,
    CalibrationConfig,
    CollectionConfig,
    Config,
    DiffusionConfig,
    EnvConfig,
    GuidanceConfig,
    HeadControl,
    HorizonConfig,
    NetworkConfig,
    PlanningConfig,
    Receding,
    SamplingConfig,
    SearchConfig,
    SelectionConfig,
    TrainingConfig,
    WindowConfig,
)
from diffplan.tasks.janner import make_janner_planning, make_janner_training
from diffplan.tasks.task import Preset

DATASETS = ("medium", "medium-replay", "medium-expert")
SPEEDS = (2, 4, 6, 8)
"""Speeds that protocols ask for, in m/s."""
SPEEDS_BEHAVIOR = "policy:sac-halfcheetah?deterministic&noise=0.1&scale=0.3..1&scale_steps=100&skip=1"
"""Collects a continuum of speeds: actions are scaled by a factor that changes every 100 steps on average."""


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
    offsets: tuple[int, ...] = (1, 8, 32)

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
    "hopper": _Robot(env_id="diffplan/Hopper-v4", observation_dim=11, action_dim=3),
    "walker2d": _Robot(env_id="diffplan/Walker2d-v4", observation_dim=17, action_dim=6),
    "halfcheetah": _Robot(
        env_id="diffplan/HalfCheetah-v4",
        observation_dim=17,
        action_dim=6,
        step_seconds=0.05,
        horizon=4,
        dim_mults=(1, 4, 8),
        attention=True,
        guidance_scale=0.001,
        guide_stop_step=4,
        offsets=(1, 4, 16),
    ),
}
BEHAVIORS = {
    "hopper-medium": "policy:sac-hopper",
    "hopper-medium-expert": "policy:sac-hopper:0.7,policy:trpo-hopper?deterministic:0.3",
    "walker2d-medium": "policy:ppo-walker2d",
    "walker2d-medium-expert": "policy:ppo-walker2d:0.6,policy:tqc-walker2d?deterministic:0.4",
    "halfcheetah-medium": "policy:sac-halfcheetah?deterministic&noise=0.1&scale=0.5..0.9",
    "halfcheetah-medium-expert": (
        "policy:sac-halfcheetah?deterministic&noise=0.1&scale=0.5..0.9:0.5,policy:tqc-halfcheetah?deterministic:0.5"
    ),
}
"""What collects each dataset. The policy of HalfCheetah is scaled anew in each episode, so that some episodes are much
better than others; weights count episodes, and in the mixtures about half of the steps are of the expert."""
ROBOTS = tuple(_ROBOTS)
REPLAYS = tuple(f"{robot}-medium-replay" for robot in ROBOTS)
"""Datasets that are the replay buffer of soft actor-critic: every step of a training from nothing."""


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
    horizon = len(robot.offsets) + 1
    return Config(
        env=robot.env,
        windows=WindowConfig(
            min_horizon=horizon,
            max_horizon=horizon,
            offsets=robot.offsets,
            deltas=True,
            goal_columns=(),
            normalization="gaussian",
            padding="terminal",
            best_share=0.2,
        ),
        network=NetworkConfig(kind="mlp", dim=256, depth=2),
        diffusion=DiffusionConfig(num_diffusion_steps=64, prediction="velocity", clip_denoised=False),
        training=TrainingConfig(
            num_steps=20_000,
            batch_size=256,
            optimizer="adam",
            weight_decay=0.0,
            max_gradient_norm=5.0,
            ema_decay=0.999,
            checkpoint_interval=5_000,
            picture_interval=10_000,
        ),
        calibration=CalibrationConfig(expectile=0.7, value_steps=10),
        planning=PlanningConfig(
            sampling=SamplingConfig(num_steps=3),
            horizon=HorizonConfig(min=horizon, max=horizon, multiple=1),
            selection=SelectionConfig(num_candidates=32, rule="mean"),
            controller=HeadControl(),
            replanning=Receding(interval=1),
        ),
    )


def _make_presets() -> dict[str, Preset]:
    presets = {}
    for name, robot in _ROBOTS.items():
        for dataset in DATASETS:
            guided = robot
            if (name, dataset) == ("hopper", "medium-expert"):  # the one row with a guide of its own
                guided = dataclasses.replace(robot, guidance_scale=0.0001, guide_stop_step=4)
            for prefix, make in (("", _small), ("janner-", _janner)):
                config = dataclasses.replace(make(guided), search=SearchConfig(protocols=(dataset,)))
                if (behavior := BEHAVIORS.get(f"{name}-{dataset}")) is not None:
                    config = dataclasses.replace(config, collection=CollectionConfig(behavior=behavior))
                presets[f"{prefix}{name}-{dataset}"] = Preset(
                    config=config, observation_dim=robot.observation_dim, action_dim=robot.action_dim
                )
    return presets


def _speeds() -> Config:
    """A diffuser that is never told a reward, for a robot asked for speeds; plans have the position along x."""
    robot = dataclasses.replace(_ROBOTS["halfcheetah"], offsets=(4, 16, 32))
    config = _small(robot)
    return dataclasses.replace(
        config,
        env=dataclasses.replace(robot.env, env_kwargs={"exclude_current_positions_from_observation": False}),
        collection=CollectionConfig(behavior=SPEEDS_BEHAVIOR),
        windows=dataclasses.replace(
            config.windows, relative_columns=(0,), known_columns=(0,), known_share=0.8, best_share=1.0
        ),
        training=dataclasses.replace(config.training, num_steps=30_000),
        planning=dataclasses.replace(
            config.planning,
            sampling=SamplingConfig(num_steps=5),
            selection=SelectionConfig(num_candidates=8, rule="mean"),
            controller=HeadControl(reads="all"),
        ),
        search=SearchConfig(protocols=tuple(f"speed-{speed}" for speed in SPEEDS)),
    )


PRESETS = _make_presets()
PRESETS["halfcheetah-speeds"] = Preset(config=_speeds(), observation_dim=18, action_dim=6)

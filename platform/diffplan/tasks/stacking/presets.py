"""Block stacking: a robot arm of 7 joints and 4 blocks.

An observation is 7 joint angles and, for each block, position (3), orientation as a quaternion (4) and whether it is
attached to the arm (1): 39 numbers. An action is 7 joint angles to go to and 4 numbers that say which blocks to attach.
Velocities are not observed, so there are no position columns; constraints and guides say what to do with the blocks.

`janner-stacking` has the settings of Janner et al. 2022 as their code release trains it (branch for block stacking,
`scripts/kuka.py`). One model serves the three published rows, unconditional, conditional and rearrangement, which
differ in the guide. The arm, its blocks and its demonstrations are ours. Differences that the config does not show:

* the release has L1 loss, ours is squared;
* its network has attention inside every residual block, ours after the blocks of each level; its network also has an
  input that marks the fixed steps;
* in training it fixes the first observation of a window, the last or both, each a third of the time; ours the first;
* the guides of its conditional rows are a classifier of block pairs and hand-made gradients; planned joint angles are
  the targets of position control.

`stacking` is a small model of the same task: half as many steps, twice as far apart. It is not yet tuned.
"""

from __future__ import annotations

from diffplan.config import (
    CollectionConfig,
    Config,
    DiffusionConfig,
    EnvConfig,
    HorizonConfig,
    NetworkConfig,
    PlanningConfig,
    SamplingConfig,
    SelectionConfig,
    TrainingConfig,
    WindowConfig,
)
from diffplan.tasks.janner import make_janner_planning, make_janner_training
from diffplan.tasks.stacking.columns import NUM_BLOCKS
from diffplan.tasks.task import Preset

_ENV = EnvConfig(
    env_id="diffplan/StackRearrange-Fine-v1", env_kwargs={"num_placements": 5, "on_pile": 0.3}, step_seconds=0.05
)
"""Episodes of five placements from random piles, in steps of equal length as in the paper."""
_COLLECTION = CollectionConfig(behavior="demonstrator", num_steps=500_000)


def _windows(horizon: int, stride: int) -> WindowConfig:
    return WindowConfig(
        min_horizon=horizon,
        max_horizon=horizon,
        horizon_multiple=1,
        stride=stride,
        columns="observations",
        goal_columns=(),
        normalization="limits",
    )


def _janner() -> Config:
    return Config(
        env=_ENV,
        collection=_COLLECTION,
        windows=_windows(128, stride=2),
        network=NetworkConfig(dim=128, dim_mults=(1, 2, 4, 8), attention=True),
        diffusion=DiffusionConfig(num_diffusion_steps=1000, prediction="noise", clip_denoised=True),
        training=make_janner_training(num_steps=700_000, learning_rate=2e-5),
        planning=make_janner_planning(horizon=128, num_diffusion_steps=1000),
    )


def _small() -> Config:
    return Config(
        env=_ENV,
        collection=_COLLECTION,
        windows=_windows(64, stride=4),
        diffusion=DiffusionConfig(num_diffusion_steps=64),
        training=TrainingConfig(num_steps=10_000),
        planning=PlanningConfig(
            sampling=SamplingConfig(num_steps=8),
            horizon=HorizonConfig(min=64, max=64, multiple=1),
            selection=SelectionConfig(num_candidates=1),
        ),
    )


PRESETS = {
    name: Preset(
        config=config,
        observation_dim=7 + 8 * NUM_BLOCKS,
        action_dim=7 + NUM_BLOCKS,
    )
    for name, config in (("stacking", _small()), ("janner-stacking", _janner()))
}

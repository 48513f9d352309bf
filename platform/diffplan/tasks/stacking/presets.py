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

`stacking` plans the placement of one block in 9 steps, of which each is a move of the arm: positions of the cup and of
the blocks, and which block is held. Its environment makes a whole move in a step and takes positions of the cup. The
ends of the blocks are known in half of the training windows; in planning a script says which block goes where next, or
nothing does and guides choose. The scene is turned and its blocks change places in training, for all that is alike.
`stacking-joints` is the same in joint angles, with the orientations of the blocks, as the paper plans.
"""

from __future__ import annotations

from typing import Literal

from diffplan.config import (
    CollectionConfig,
    Config,
    DiffusionConfig,
    EnvConfig,
    GuidanceConfig,
    HorizonConfig,
    NetworkConfig,
    Never,
    PlanningConfig,
    SamplingConfig,
    SelectionConfig,
    Targets,
    TrainingConfig,
    WindowConfig,
)
from diffplan.tasks.janner import make_janner_planning, make_janner_training
from diffplan.tasks.stacking.columns import NUM_BLOCKS
from diffplan.tasks.task import Preset

_FINE = EnvConfig(
    env_id="diffplan/StackUnconditional-Fine-v1", env_kwargs={"num_placements": 5, "on_pile": 0.3}, step_seconds=0.05
)
"""Episodes of five placements from random piles, in steps of equal length as in the paper."""
_SIZES = {"cup": (3, 4), "joints": (7, 8)}
"""Columns of an observation: of the arm, and of each block; `StackingSpace` has the same, but imports MuJoCo."""
KEYFRAMES = 9
"""Steps of a plan: the present, and the end of each move of a placement."""


def _janner() -> Config:
    return Config(
        env=_FINE,
        collection=CollectionConfig(behavior="demonstrator", num_steps=500_000),
        windows=WindowConfig(
            min_horizon=128,
            max_horizon=128,
            horizon_multiple=1,
            stride=2,
            columns="observations",
            goal_columns=(),
            normalization="limits",
        ),
        network=NetworkConfig(dim=128, dim_mults=(1, 2, 4, 8), attention=True),
        diffusion=DiffusionConfig(num_diffusion_steps=1000, prediction="noise", clip_denoised=True),
        training=make_janner_training(num_steps=700_000, learning_rate=2e-5),
        planning=make_janner_planning(horizon=128, num_diffusion_steps=1000),
    )


def _small(space: Literal["cup", "joints"]) -> Config:
    num_arm, num_each = _SIZES[space]
    starts = [num_arm + num_each * block for block in range(NUM_BLOCKS)]
    blocks = tuple(start + axis for start in starts for axis in range(3))
    held = tuple(start + num_each - 1 for start in starts)
    return Config(
        env=EnvConfig(
            env_id="diffplan/StackUnconditional-v1", env_kwargs={"num_placements": 5, "on_pile": 0.3, "space": space}
        ),
        collection=CollectionConfig(behavior="demonstrator", num_steps=50_000),
        windows=WindowConfig(
            min_horizon=KEYFRAMES,
            max_horizon=KEYFRAMES,
            horizon_multiple=1,
            stride=1,
            start_every=KEYFRAMES - 1,
            deltas=True,
            known_columns=blocks,
            symmetries=("turns", "exchanges"),
            goal_columns=(),
            normalization="gaussian",
        ),
        network=NetworkConfig(kind="mlp", dim=512, depth=3),
        diffusion=DiffusionConfig(num_diffusion_steps=100, prediction="clean", clip_denoised=False),
        training=TrainingConfig(num_steps=10_000, batch_size=128, ema_decay=0.999),
        planning=PlanningConfig(
            sampling=SamplingConfig(num_steps=10),
            horizon=HorizonConfig(min=KEYFRAMES, max=KEYFRAMES, multiple=1),
            selection=SelectionConfig(num_candidates=16, rule="guide", refine="settle"),
            guidance=GuidanceConfig(
                guides=(f"contact({space!r}) + tower({space!r})",),
                scale=0.015,
                target="denoised",
                scaling="none",
                num_steps=5,
                start_step=25,
            ),
            controller=Targets(columns=(*range(num_arm), *held)),
            replanning=Never(),
        ),
    )


PRESETS = {
    "stacking": Preset(config=_small("cup"), observation_dim=3 + 4 * NUM_BLOCKS, action_dim=3 + NUM_BLOCKS),
    "stacking-joints": Preset(config=_small("joints"), observation_dim=7 + 8 * NUM_BLOCKS, action_dim=7 + NUM_BLOCKS),
    "janner-stacking": Preset(config=_janner(), observation_dim=7 + 8 * NUM_BLOCKS, action_dim=7 + NUM_BLOCKS),
}

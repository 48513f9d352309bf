"""Planners for the tests of this directory: an untrained network, and a network whose plans are known."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from diffplan.config import (
    Config,
    DiffusionConfig,
    EnvConfig,
    GuidanceConfig,
    HorizonConfig,
    NetworkConfig,
    PlanningConfig,
    SamplingConfig,
    SelectionConfig,
    WindowConfig,
    with_overrides,
)
from diffplan.data.windows.normalization import Normalizer
from diffplan.diffusion.denoiser import Denoiser
from diffplan.layout import Layout
from diffplan.networks.temporal_unet import TemporalUnet
from diffplan.planning.planner import Planner

STEP_SECONDS = 0.05  # stride 5 at 0.01 s
CONFIG = Config(
    env=EnvConfig(
        env_id="diffplan/Maze2D-UMaze-v1",
        position_columns=(0, 1),
        velocity_columns=(2, 3),
        goal_columns=(0, 1),
        step_seconds=0.01,
    ),
    windows=WindowConfig(min_horizon=4, max_horizon=12, horizon_multiple=4, stride=5),
    network=NetworkConfig(dim=8, dim_mults=(1, 2)),
    diffusion=DiffusionConfig(num_diffusion_steps=8, clip_denoised=False),
    planning=PlanningConfig(
        sampling=SamplingConfig(num_steps=3),
        horizon=HorizonConfig(min=4, max=16, multiple=4, max_speed_error=0.1),
        selection=SelectionConfig(num_candidates=1),
        guidance=GuidanceConfig(guides=("goal_distance()",)),
    ),
)
NORMALIZER = Normalizer(
    center=np.array([1.7, 2.3, 0.1, -0.3], dtype=np.float32), scale=np.array([1.3, 0.7, 5.1, 4.9], dtype=np.float32)
)


def make_untrained_planner(config=CONFIG, settings=None, action_dim=0):
    torch.manual_seed(0)
    layout = Layout(4, action_dim)
    network = TemporalUnet(layout.transition_dim, config.network)
    normalizer = NORMALIZER
    if action_dim:
        normalizer = Normalizer(
            np.concatenate([np.zeros(action_dim, np.float32), NORMALIZER.center]),
            np.concatenate([np.ones(action_dim, np.float32), NORMALIZER.scale]),
        )
    return Planner(config, layout, Denoiser.make(network, config.diffusion), normalizer, settings)


class StraightLines(nn.Module):
    """Plans straight lines from start to goal whose velocity is that of the start, however long the way.

    Such a plan agrees with itself only if its horizon is the one that the distance takes at that velocity. One that
    starts at rest is wrong by the speed that it would need, so that all long enough horizons are consistent.

    Args:
        speed_offsets: added to the velocities after the first, one for each row of a batch in turn.

    Attributes:
        batches: for each run of the sampler the horizon of every row.
        steps: the diffusion step of every call.
    """

    def __init__(self, speed_offsets=(0.0,)):
        super().__init__()
        self.speed_offsets = torch.tensor(speed_offsets)
        self.batches = []
        self.steps = []

    def forward(self, x_noisy, diffusion_step, *, lengths=None):
        """The clean plan, from the constraints in the noisy one."""
        batch_size, horizon, _ = x_noisy.shape
        ends = torch.full((batch_size,), horizon) if lengths is None else lengths
        self.steps.append(int(diffusion_step[0]))
        if self.steps[-1] == 0:  # the last step of each run
            self.batches.append(tuple(ends.tolist()))
        x = NORMALIZER.unnormalize(x_noisy)
        start, goal, velocity = x[:, 0, :2], x[torch.arange(batch_size), ends - 1, :2], x[:, 0, 2:]
        way = (torch.arange(horizon) / (ends[:, None] - 1))[..., None]
        positions = start[:, None] + way * (goal - start)[:, None]
        offsets = self.speed_offsets.repeat(-(-batch_size // len(self.speed_offsets)))[:batch_size]
        velocities = velocity[:, None].repeat(1, horizon, 1) + offsets[:, None, None]
        return NORMALIZER.normalize(torch.cat([positions, velocities], dim=-1))


class Silent(nn.Module):
    """Predicts 0. As a velocity: estimates are the noisy plan, scaled; as noise: all of it is signal.

    Attributes:
        steps: the diffusion step of every call.
    """

    def __init__(self):
        super().__init__()
        self.steps = []

    def forward(self, x_noisy, diffusion_step, *, lengths=None):
        """Zeros."""
        self.steps.append(int(diffusion_step[0]))
        return torch.zeros_like(x_noisy)


def make_silent_planner(prediction="velocity", normalizer=NORMALIZER, **settings):
    denoiser = Denoiser.make(Silent(), replace(CONFIG.diffusion, prediction=prediction))
    return Planner(CONFIG, Layout(4), denoiser, normalizer, with_overrides(CONFIG.planning, settings))


def make_straight_planner(speed_offsets=(0.0,), horizon_model=None, **settings):
    network = StraightLines(speed_offsets)
    denoiser = Denoiser.make(network, CONFIG.diffusion)
    settings = with_overrides(CONFIG.planning, settings)
    return Planner(CONFIG, Layout(4), denoiser, NORMALIZER, settings, horizon_model=horizon_model), network


def distance_of(horizon, speed):
    """Way that a plan of a horizon covers at a speed."""
    return (horizon - 1) * STEP_SECONDS * speed


def make_ways(horizons, speed=2.0):
    """Observations and goals along the first axis that take the given horizons at their own speed."""
    observations = np.tile([1.0, 2.0, speed, 0.0], (len(horizons), 1))
    goals = np.array([[1.0 + distance_of(horizon, speed), 2.0] for horizon in horizons])
    return observations, goals


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def stack(plans):
    return np.stack([plan.observations for plan in plans])

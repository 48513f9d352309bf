"""A goal-free toy system without known roles: a point that actions move, and a network that plans to bring it home."""

import numpy as np
import torch
from torch import nn

from diffplan.config import (
    Actions,
    Config,
    DiffusionConfig,
    EnvConfig,
    HorizonConfig,
    NetworkConfig,
    PlanningConfig,
    SamplingConfig,
    SelectionConfig,
    WindowConfig,
)
from diffplan.data.windows.normalization import Normalizer
from diffplan.diffusion.denoiser import Denoiser
from diffplan.layout import Layout
from diffplan.planning.planner import Planner

SHRINK = 0.8
"""What a planned step leaves of the distance from home."""
HORIZON = 8
CONFIG = Config(
    env=EnvConfig(env_id="toy"),
    windows=WindowConfig(
        min_horizon=HORIZON, max_horizon=HORIZON, horizon_multiple=1, stride=1, columns="actions_observations"
    ),
    network=NetworkConfig(dim=8, dim_mults=(1, 2)),
    diffusion=DiffusionConfig(num_diffusion_steps=8, clip_denoised=False),
    planning=PlanningConfig(
        sampling=SamplingConfig(num_steps=2),
        horizon=HorizonConfig(min=HORIZON, max=HORIZON, multiple=1),
        selection=SelectionConfig(num_candidates=1),
        controller=Actions(),
    ),
)


class Homing(nn.Module):
    """Plans x, SHRINK x, SHRINK² x, … with the actions between them, from the observation at the start."""

    def forward(self, x_noisy, diffusion_step, *, lengths=None):
        """The clean plan."""
        xs = x_noisy[:, :1, 2:] * SHRINK ** torch.arange(x_noisy.shape[1])[None, :, None]
        return torch.cat([(SHRINK - 1) * xs, xs], dim=2)


def make_homing_planner(config=CONFIG, settings=None):
    """Plans of 2 actions and 2 observations, in model space as in environment units."""
    normalizer = Normalizer(center=np.zeros(4, dtype=np.float32), scale=np.ones(4, dtype=np.float32))
    return Planner(config, Layout(2, 2), Denoiser.make(Homing(), config.diffusion), normalizer, settings)


def move(observations, actions):
    """Observations one step later."""
    return observations + actions

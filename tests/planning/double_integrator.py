"""A point that actions accelerate, exactly integrated, and a network that plans for it."""

import numpy as np
import torch
from straight_line_planner import CONFIG, NORMALIZER
from torch import nn

from diffplan.diffusion.guidance import hermite

SECONDS = CONFIG.env.step_seconds


def accelerate(observations, actions):
    """Observations one environment step later, under constant accelerations."""
    positions, velocities = observations[:, :2], observations[:, 2:]
    moved = positions + SECONDS * velocities + SECONDS**2 / 2 * actions
    return np.concatenate([moved, velocities + SECONDS * actions], axis=1)


def find_actions(observations, next_observations):
    """The accelerations that lead to the next positions; whatever the next velocities say."""
    moved = next_observations[:, :2] - observations[:, :2]
    return 2 * (moved - SECONDS * observations[:, 2:]) / SECONDS**2


class Cubics(nn.Module):
    """Plans cubics from the state at the start to rest at the goal, in the time that a horizon gives them."""

    def forward(self, x_noisy, diffusion_step, *, lengths=None):
        """The clean plan, from the constraints in the noisy one."""
        batch_size, horizon, _ = x_noisy.shape
        ends = torch.full((batch_size,), horizon) if lengths is None else lengths
        x = NORMALIZER.unnormalize(x_noisy)
        start, goal = x[:, None, 0], x[torch.arange(batch_size), ends - 1, None, :2]
        seconds = (SECONDS * CONFIG.windows.stride * (ends - 1))[:, None, None]
        s = (torch.arange(horizon) / (ends[:, None] - 1))[..., None]
        leaving = seconds * start[..., 2:]
        positions = hermite(s, start[..., :2], goal, leaving, torch.zeros(1))
        velocities = (6 * s * (1 - s) * (goal - start[..., :2]) + (1 - s) * (1 - 3 * s) * leaving) / seconds
        return NORMALIZER.normalize(torch.cat([positions, velocities], dim=-1))

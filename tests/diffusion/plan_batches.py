"""Plans as guides see them, with columns [action, x, vx, y, vy]: positions are neither first nor in one block."""

import torch

from diffplan.diffusion.guidance import PlanBatch
from diffplan.layout import Layout

LAYOUT = Layout(observation_dim=4, action_dim=1)
STEP_SECONDS = 0.5
UNITS, OFFSET = torch.tensor([1.0, 2.0, 0.5, 4.0, 3.0]).double(), torch.tensor([0.0, 1.0, -1.0, 2.0, 0.0]).double()
"""From model space to environment units."""


def to_plans(x, *, goals=None, velocities=True, diffusion_step=-1):
    """Plans from model space."""
    return PlanBatch(
        transitions=x * UNITS.to(x) + OFFSET.to(x),
        normalized=x,
        layout=LAYOUT,
        position_columns=(0, 2),
        velocity_columns=(1, 3) if velocities else (),
        step_seconds=STEP_SECONDS,
        diffusion_step=diffusion_step,
        goals=goals,
    )


def place(positions, velocities=None, goals=None):
    """Plans through positions, [batch, horizon, 2]; on straight lines where no velocities are given."""
    positions = torch.as_tensor(positions, dtype=torch.float64)
    transitions = torch.full((*positions.shape[:2], 5), 7.0, dtype=torch.float64)
    transitions[..., [1, 3]] = positions
    if velocities is not None:
        transitions[..., [2, 4]] = torch.as_tensor(velocities, dtype=torch.float64)
    if goals is not None:
        goals = torch.as_tensor(goals, dtype=torch.float64)
    return to_plans((transitions - OFFSET) / UNITS, goals=goals, velocities=velocities is not None)


def draw_x(batch_size, horizon, seed=0):
    """Random plans in model space."""
    return torch.randn(batch_size, horizon, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

"""The training objective of value networks: squared error of the value of noisy trajectories.

Source: Janner et al. 2022, section 3.2, and `ValueDiffusion` in `diffuser/models/diffusion.py` of its code release: the
network learns the value of a clean trajectory from a noisy one, with the constrained entries set as in planning.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diffplan.diffusion.schedule import NoiseSchedule

_MIN_LENGTH = 2


def compute_value_loss(
    network: nn.Module,
    schedule: NoiseSchedule,
    x_clean: Float[Tensor, "batch horizon transition"],
    noise: Float[Tensor, "batch horizon transition"],
    diffusion_step: Int[Tensor, " batch"],
    mask: Bool[Tensor, "#batch horizon transition"],
    targets: Float[Tensor, " batch"],
    real: Bool[Tensor, "batch horizon"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error of the values over the batch.

    Args:
        network: a value network or a wrapper of it (DDP).
        schedule: the noise schedule.
        x_clean: trajectories in model space.
        noise: standard normal.
        diffusion_step: noise level of each trajectory.
        mask: known entries; one row is broadcast over the batch.
        targets: values of the clean trajectories.
        real: steps that are not padding, which is at the end; None without padding. The network gets the lengths.
    """
    x_noisy = torch.where(mask, x_clean, schedule.add_noise(x_clean, noise, diffusion_step))
    if real is None:
        values = network(x_noisy, diffusion_step)
    else:
        # Networks need at least two steps, so a trajectory of one step keeps one of padding, a copy of its last step.
        values = network(x_noisy, diffusion_step, lengths=real.sum(dim=1).clamp(min=_MIN_LENGTH))
    return (values - targets).square().mean()

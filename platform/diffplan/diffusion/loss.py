"""The training objective: weighted squared error of the prediction, with known entries in place.

Source: Janner et al. 2022, eq. 1 and `diffuser/models/diffusion.py`: constrained entries are put into the noisy
trajectory and into the prediction, so they cost nothing and carry no noise, exactly as in planning.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diffplan.config import DiffusionConfig
from diffplan.diffusion.denoiser import Denoiser
from diffplan.diffusion.prediction import to_target


def make_loss_weights(
    horizon: int, transition_dim: int, action_dim: int, config: DiffusionConfig
) -> Float[Tensor, "horizon transition"]:
    """Weights: discounted in time to mean 1, the first action's replaced."""
    discounts = config.loss_discount ** torch.arange(horizon, dtype=torch.float32)
    weights = (discounts / discounts.mean())[:, None].repeat(1, transition_dim)
    weights[0, :action_dim] = config.action_weight
    return weights


def compute_loss(
    network: nn.Module,
    denoiser: Denoiser,
    x_clean: Float[Tensor, "batch horizon transition"],
    noise: Float[Tensor, "batch horizon transition"],
    diffusion_step: Int[Tensor, " batch"],
    mask: Bool[Tensor, "#batch horizon transition"],
    weights: Float[Tensor, "horizon transition"],
    real: Bool[Tensor, "batch horizon"] | None = None,
) -> Float[Tensor, ""]:
    """Mean weighted squared error over the batch.

    Args:
        network: what is trained; the denoiser's network or a wrapper of it (DDP).
        denoiser: gives the schedule and the kind of prediction.
        x_clean: trajectories in model space.
        noise: standard normal.
        diffusion_step: how noisy to make each.
        mask: known entries; one row serves the whole batch.
        weights: weight of each entry.
        real: steps that are no padding; None where all are.

    Returns:
        The loss. Known entries count in the mean with error 0, as in the code release, and so does padding: so the
        gradient of a batch is the mean of the gradients of its parts.
    """
    signal, sigma = denoiser.schedule.signal_and_noise(diffusion_step, x_clean)
    x_noisy = torch.where(mask, x_clean, signal * x_clean + sigma * noise)
    output = network(x_noisy, diffusion_step)
    target = to_target(denoiser.prediction, x_clean, noise, signal, sigma)
    errors = torch.where(mask, 0.0, output - target).square() * weights
    return (errors if real is None else errors * real[:, :, None]).mean()

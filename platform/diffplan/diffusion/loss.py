"""The training objective: weighted squared error of the prediction, with known entries in place.

Source: Janner et al. 2022, eq. 1 and `diffuser/models/diffusion.py`: constrained entries are put into the noisy
trajectory and into the prediction, so they cost nothing and carry no noise, exactly as in planning.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diffplan.config import DiffusionConfig
from diffplan.diffusion.denoiser import Denoiser
from diffplan.diffusion.prediction import Prediction, to_target
from diffplan.errors import ConfigError

SnrWeighting = Literal["none", "snr", "min_snr"]

_MAX_SNR = 5.0  # gamma of Min-SNR; that of Hang et al. 2023, section 4.2


def make_loss_weights(
    horizon: int, transition_dim: int, action_dim: int, config: DiffusionConfig
) -> Float[Tensor, "horizon transition"]:
    """Weight of each entry: discounted in time to mean 1, times that of its column; the first action's is replaced.

    Raises:
        ConfigError: another number of column weights than columns.
    """
    discounts = config.loss_discount ** torch.arange(horizon, dtype=torch.float32)
    weights = (discounts / discounts.mean())[:, None].repeat(1, transition_dim)
    if config.column_weights is not None:
        if len(config.column_weights) != transition_dim:
            raise ConfigError(
                f"diffusion.column_weights: expected {transition_dim} numbers, one for each column of a transition "
                f"(action, then observation), got {len(config.column_weights)}"
            )
        weights = weights * torch.tensor(config.column_weights)
    weights[0, :action_dim] = config.action_weight
    return weights


def make_snr_weights(
    weighting: SnrWeighting, prediction: Prediction, alpha_bar: Float[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Weight of the error of a prediction at each level of noise.

    The kinds of weighting are defined on the error of the clean plan. That of the noise is it times the signal-to-noise
    ratio, that of the velocity times the ratio + 1, so their weights are divided by these.
    Source: Hang et al. 2023 (Min-SNR), eq. 5-7 and section 3.4.
    """
    if weighting == "none":
        return torch.ones_like(alpha_bar)
    snr = alpha_bar / (1 - alpha_bar)
    weights = snr if weighting == "snr" else snr.clamp(max=_MAX_SNR)
    if prediction == "clean":
        return weights
    return weights / (snr if prediction == "noise" else snr + 1)


def compute_loss(
    network: nn.Module,
    denoiser: Denoiser,
    x_clean: Float[Tensor, "batch horizon transition"],
    noise: Float[Tensor, "batch horizon transition"],
    diffusion_step: Int[Tensor, " batch"],
    mask: Bool[Tensor, "#batch horizon transition"],
    weights: Float[Tensor, "horizon transition"],
    real: Bool[Tensor, "batch horizon"] | None = None,
    *,
    condition: Float[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
    snr_weighting: SnrWeighting = "none",
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
        condition: what the network is told of each trajectory, where it takes that; None for nothing.
        snr_weighting: how errors are weighted by the level of noise.

    Returns:
        The loss. Known entries count in the mean with error 0, as in the code release, and so does padding: so the
        gradient of a batch is the mean of the gradients of its parts.
    """
    signal, sigma = denoiser.schedule.signal_and_noise(diffusion_step, x_clean)
    x_noisy = torch.where(mask, x_clean, signal * x_clean + sigma * noise)
    told = {} if condition is None else {"condition": condition}
    output = network(x_noisy, diffusion_step, **told)
    target = to_target(denoiser.prediction, x_clean, noise, signal, sigma)
    errors = torch.where(mask, 0.0, output - target).square() * weights
    if snr_weighting != "none":
        alpha_bar = denoiser.schedule.alpha_bar_on(diffusion_step.device)[diffusion_step]
        row_weights = make_snr_weights(snr_weighting, denoiser.prediction, alpha_bar)
        errors = errors * row_weights.to(errors)[:, None, None]
    return (errors if real is None else errors * real[:, :, None]).mean()

"""The training objective: weighted squared error of the prediction, with fixed entries.

Source: Janner et al. 2022, eq. 1 and `diffuser/models/diffusion.py`: constrained entries are set in the noisy
trajectory and in the prediction, so they have no loss and no noise, as in planning.
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
    """Weight of each entry: time discount with mean 1, times the column weight; that of the first action is replaced.

    Raises:
        ConfigError: the number of column weights is not the number of columns.
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
    """Weight of the error of a prediction at each noise level.

    The weightings are defined on the error of the clean plan. The error of the noise is that error times the
    signal-to-noise ratio, the error of the velocity that error times the ratio + 1; so the weights are divided by these
    factors.
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
    known: Bool[Tensor, "batch columns"] | None = None,
    row_weights: Float[Tensor, " batch"] | None = None,
    snr_weighting: SnrWeighting = "none",
) -> Float[Tensor, ""]:
    """Mean weighted squared error over the batch.

    Args:
        network: the network to train: that of the denoiser, or a wrapper of it (DDP).
        denoiser: has the schedule and the kind of prediction.
        x_clean: trajectories in model space.
        noise: standard normal.
        diffusion_step: noise level of each trajectory.
        mask: known entries; one row is broadcast over the batch.
        weights: weight of each entry.
        real: steps that are not padding; None if there is no padding.
        condition: condition of each trajectory, for a conditioned network; None for no condition.
        known: which columns of the last step each trajectory is told to be known; None if the network is not told.
        row_weights: weight of each trajectory; None if all are equal.
        snr_weighting: weighting of the errors by noise level.

    Returns:
        The loss. Known entries and padding count in the mean with error 0 (the former as in the code release), so the
        gradient of a batch is the mean of the gradients of its parts.
    """
    signal, sigma = denoiser.schedule.signal_and_noise(diffusion_step, x_clean)
    x_noisy = torch.where(mask, x_clean, signal * x_clean + sigma * noise)
    told = {"condition": condition, "known": known}
    told = {name: value for name, value in told.items() if value is not None}
    output = network(x_noisy, diffusion_step, **told)
    target = to_target(denoiser.prediction, x_clean, noise, signal, sigma)
    errors = torch.where(mask, 0.0, output - target).square() * weights
    if snr_weighting != "none":
        alpha_bar = denoiser.schedule.alpha_bar_on(diffusion_step.device)[diffusion_step]
        level_weights = make_snr_weights(snr_weighting, denoiser.prediction, alpha_bar)
        errors = errors * level_weights.to(errors)[:, None, None]
    if row_weights is not None:
        errors = errors * row_weights.to(errors)[:, None, None]
    return (errors if real is None else errors * real[:, :, None]).mean()

"""A denoiser: a network, what it predicts and a noise schedule. Samplers know nothing else of the model."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffplan.config import DiffusionConfig
from diffplan.diffusion.prediction import Prediction, to_clean
from diffplan.diffusion.schedule import NoiseSchedule, make_schedule


class Denoiser(nn.Module):
    """Estimates the clean trajectory in a noisy one.

    Args:
        network: maps (x_noisy, diffusion_step) to a prediction of the same shape.
        schedule: the noise schedule.
        prediction: what the network predicts.
        clip: largest absolute value of an estimate in model space; None for no limit.
    """

    def __init__(
        self, network: nn.Module, schedule: NoiseSchedule, prediction: Prediction, clip: float | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule
        self.prediction: Prediction = prediction
        self.clip = clip

    @classmethod
    def make(cls, network: nn.Module, config: DiffusionConfig) -> Denoiser:
        """A denoiser from a config."""
        schedule = make_schedule(config.schedule, config.num_diffusion_steps)
        return cls(network, schedule, config.prediction, 1.0 if config.clip_denoised else None)

    def forward(
        self, x_noisy: Float[Tensor, "batch horizon transition"], diffusion_step: int
    ) -> Float[Tensor, "batch horizon transition"]:
        """The denoised trajectories, at one diffusion step for all, in model space."""
        steps = torch.full((len(x_noisy),), diffusion_step, device=x_noisy.device)
        signal, sigma = self.schedule.signal_and_noise(steps, x_noisy)
        denoised = to_clean(self.prediction, self.network(x_noisy, steps), x_noisy, signal, sigma)
        return denoised if self.clip is None else denoised.clamp(-self.clip, self.clip)

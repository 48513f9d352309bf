"""A denoiser: a network, what it predicts and a noise schedule. Samplers know nothing else of the model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffplan.config import DiffusionConfig
from diffplan.diffusion.prediction import Prediction, to_clean
from diffplan.diffusion.schedule import NoiseSchedule, make_schedule


class Denoiser(nn.Module):
    """Estimates the clean trajectory in a noisy one.

    Args:
        network: maps (x_noisy, diffusion_step) to a prediction of the same shape; it is given the step once for the
            whole batch, int[1]. Takes `lengths` and `condition` where it can serve ragged batches and conditions.
        schedule: the noise schedule.
        prediction: what the network predicts.
        clip: largest absolute value of an estimate in model space; None for no limit.
        options: further keyword arguments of the network, the same in every pass.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        prediction: Prediction,
        clip: float | None = None,
        options: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule
        self.prediction: Prediction = prediction
        self.clip = clip
        self.options = dict(options or {})

    @classmethod
    def make(cls, network: nn.Module, config: DiffusionConfig) -> Denoiser:
        """A denoiser from a config."""
        schedule = make_schedule(config.schedule, config.num_diffusion_steps)
        return cls(network, schedule, config.prediction, 1.0 if config.clip_denoised else None)

    def with_options(self, **options: object) -> Denoiser:
        """The same model, whose network is given these keyword arguments in every pass."""
        return Denoiser(self.network, self.schedule, self.prediction, self.clip, {**self.options, **options})

    def forward(
        self,
        x_noisy: Float[Tensor, "batch horizon transition"],
        diffusion_step: int,
        lengths: Int[Tensor, " batch"] | None = None,
        condition: Float[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch horizon transition"]:
        """The denoised trajectories, in model space.

        Args:
            x_noisy: noisy trajectories in model space.
            diffusion_step: how noisy they are, all alike.
            lengths: steps of each trajectory where they differ.
            condition: what the network is told of each beside, where it was trained to be told; None for nothing.
        """
        return self.limit(self.estimate(x_noisy, diffusion_step, lengths, condition))

    def limit(self, denoised: Float[Tensor, "batch horizon transition"]) -> Float[Tensor, "batch horizon transition"]:
        """Estimates clipped where the model clips them."""
        return denoised if self.clip is None else denoised.clamp(-self.clip, self.clip)

    def estimate(
        self,
        x_noisy: Float[Tensor, "batch horizon transition"],
        diffusion_step: int,
        lengths: Int[Tensor, " batch"] | None = None,
        condition: Float[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch horizon transition"]:
        """The denoised trajectories before any clipping; see `forward`."""
        steps = torch.full((1,), diffusion_step, device=x_noisy.device)
        alpha_bar = self.schedule.alpha_bar_at(diffusion_step)
        told = dict(self.options)
        if lengths is not None:
            told["lengths"] = lengths
        if condition is not None:
            told["condition"] = condition
        output = self.network(x_noisy, steps, **told)
        return to_clean(self.prediction, output, x_noisy, alpha_bar**0.5, (1 - alpha_bar) ** 0.5)

"""A denoiser: a network, its kind of prediction and a noise schedule. Samplers depend on nothing else of the model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffplan.config import DiffusionConfig
from diffplan.diffusion.prediction import Prediction, to_clean
from diffplan.diffusion.schedule import NoiseSchedule, make_schedule


class Denoiser(nn.Module):
    """Estimates the clean trajectory from a noisy one.

    Args:
        network: maps (x_noisy, diffusion_step) to a prediction of the same shape; the step is int[1],
            one for the whole batch. Takes `lengths` for ragged batches and `condition`, if it supports them.
        schedule: the noise schedule.
        prediction: the kind of prediction of the network.
        clip: largest absolute value of an estimate in model space; None for no limit.
        options: further keyword arguments for every pass of the network.
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
        """The same model, with these keyword arguments for every pass of the network."""
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
            diffusion_step: noise level of all trajectories.
            lengths: steps of each trajectory if they differ.
            condition: condition of each trajectory, for a conditioned network; None for no condition.
        """
        return self.limit(self.estimate(x_noisy, diffusion_step, lengths, condition))

    def limit(self, denoised: Float[Tensor, "batch horizon transition"]) -> Float[Tensor, "batch horizon transition"]:
        """Estimates, clipped if the model clips."""
        return denoised if self.clip is None else denoised.clamp(-self.clip, self.clip)

    def estimate(
        self,
        x_noisy: Float[Tensor, "batch horizon transition"],
        diffusion_step: int,
        lengths: Int[Tensor, " batch"] | None = None,
        condition: Float[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch horizon transition"]:
        """The denoised trajectories before clipping; see `forward`."""
        steps = torch.full((1,), diffusion_step, device=x_noisy.device)
        alpha_bar = self.schedule.alpha_bar_at(diffusion_step)
        told = dict(self.options)
        if lengths is not None:
            told["lengths"] = lengths
        if condition is not None:
            told["condition"] = condition
        output = self.network(x_noisy, steps, **told)
        return to_clean(self.prediction, output, x_noisy, alpha_bar**0.5, (1 - alpha_bar) ** 0.5)

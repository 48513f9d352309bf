"""Samplers: from noise to trajectories, over any denoiser.

A sampler is a function. All share the transition of `_step`, which is DDPM's at eta 1 and DDIM's at eta 0.
Source: Ho et al. 2020, Alg. 2; Song et al. 2021 (DDIM), eq. 12.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffplan.diffusion.constraints import Constraints
from diffplan.diffusion.denoiser import Denoiser
from diffplan.diffusion.guidance import Guidance


@dataclass(frozen=True)
class SamplingState:
    """What a callback sees after each denoising step.

    Attributes:
        index: number of the step in the run, from 0.
        diffusion_step: the diffusion step that was denoised.
        x_noisy: the trajectories after the step, in model space.
        denoised: the estimate of the clean trajectories during it.
    """

    index: int
    diffusion_step: int
    x_noisy: Float[Tensor, "batch horizon transition"]
    denoised: Float[Tensor, "batch horizon transition"]


Callback = Callable[[SamplingState], None]


def sample_ddpm(
    denoiser: Denoiser,
    constraints: Constraints,
    generator: torch.Generator,
    *,
    guidance: Guidance | None = None,
    temperature: float = 1.0,
    callback: Callback | None = None,
) -> Float[Tensor, "batch horizon transition"]:
    """Ancestral sampling through all diffusion steps; see `sample_ddim` for the arguments."""
    return _sample(
        denoiser, constraints, generator, denoiser.schedule.num_diffusion_steps, 1.0, guidance, temperature, callback
    )


def sample_ddim(
    denoiser: Denoiser,
    constraints: Constraints,
    generator: torch.Generator,
    num_sampling_steps: int,
    *,
    guidance: Guidance | None = None,
    temperature: float = 1.0,
    callback: Callback | None = None,
) -> Float[Tensor, "batch horizon transition"]:
    """Deterministic sampling through some of the diffusion steps.

    Args:
        denoiser: the model.
        constraints: known entries, put in place before the first and after every step; they set the shape.
        generator: source of the noise.
        num_sampling_steps: denoising steps, at most the model's diffusion steps.
        guidance: a guide and its strength.
        temperature: scale of the initial noise and of any noise added later.
        callback: called after each step.

    Returns:
        Trajectories in model space.
    """
    return _sample(denoiser, constraints, generator, num_sampling_steps, 0.0, guidance, temperature, callback)


@torch.no_grad()
def _sample(
    denoiser: Denoiser,
    constraints: Constraints,
    generator: torch.Generator,
    num_sampling_steps: int,
    eta: float,
    guidance: Guidance | None,
    temperature: float,
    callback: Callback | None,
) -> Tensor:
    values = constraints.values

    def draw() -> Tensor:
        return temperature * torch.randn(values.shape, generator=generator, device=generator.device).to(values)

    x = constraints.project(draw())
    for index, (step, next_step) in enumerate(denoiser.schedule.sampling_steps(num_sampling_steps)):
        denoised = constraints.project(denoiser(x, step))
        mean, std, variance = _step(denoiser, x, denoised, step, next_step, eta)
        if guidance is not None:
            mean = guidance.shift(mean, variance)
        if std > 0:
            mean = mean + std * draw()
        x = constraints.project(mean)
        if callback is not None:
            callback(SamplingState(index, step, x, denoised))
    return x


def _step(
    denoiser: Denoiser, x: Tensor, denoised: Tensor, step: int, next_step: int, eta: float
) -> tuple[Tensor, float, float]:
    """Mean and standard deviation of the next trajectory, and the posterior variance that scales guides."""
    alpha_bar, next_alpha_bar = denoiser.schedule.alpha_bar_at(step), denoiser.schedule.alpha_bar_at(next_step)
    # The variance of q(x_next | x, x_clean); Ho et al. 2020, eq. 7.
    variance = (1 - next_alpha_bar) / (1 - alpha_bar) * (1 - alpha_bar / next_alpha_bar)
    std = eta * variance**0.5
    noise = (x - alpha_bar**0.5 * denoised) / (1 - alpha_bar) ** 0.5
    direction = max(1 - next_alpha_bar - std**2, 0.0) ** 0.5
    return next_alpha_bar**0.5 * denoised + direction * noise, std, variance

"""How much signal and noise each diffusion step holds.

x_noisy = sqrt(alpha_bar) x_clean + sqrt(1 - alpha_bar) noise, with alpha_bar falling over diffusion steps 0 … N - 1.
Tables are float64; values are cast to the type of what they multiply.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class NoiseSchedule:
    """A variance-preserving noise schedule.

    Attributes:
        alpha_bar: share of signal variance at each diffusion step, float64, descending in (0, 1).
    """

    alpha_bar: Float[Tensor, " diffusion_steps"]

    @property
    def num_diffusion_steps(self) -> int:
        """Levels of noise."""
        return len(self.alpha_bar)

    def signal_and_noise(
        self, diffusion_step: Int[Tensor, " batch"], like: Float[Tensor, "batch *any"]
    ) -> tuple[Float[Tensor, "batch *ones"], Float[Tensor, "batch *ones"]]:
        """Factors of the clean trajectory and of the noise at each step, shaped to multiply `like`."""
        alpha_bar = self.alpha_bar.to(diffusion_step.device)[diffusion_step]
        shape = (-1, *([1] * (like.dim() - 1)))
        return alpha_bar.sqrt().to(like).view(shape), (1 - alpha_bar).sqrt().to(like).view(shape)

    def add_noise(
        self,
        x_clean: Float[Tensor, "batch *any"],
        noise: Float[Tensor, "batch *any"],
        diffusion_step: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch *any"]:
        """The forward process q(x_noisy | x_clean). Source: Ho et al. 2020, eq. 4."""
        signal, sigma = self.signal_and_noise(diffusion_step, x_clean)
        return signal * x_clean + sigma * noise

    def sampling_steps(self, num_sampling_steps: int) -> list[tuple[int, int]]:
        """Pairs (step, next step) from the noisiest down, evenly spaced; the last next step is -1, meaning clean."""
        if not 1 <= num_sampling_steps <= self.num_diffusion_steps:
            raise ValueError(
                f"num_sampling_steps: expected 1 to {self.num_diffusion_steps} (the steps of the model), "
                f"got {num_sampling_steps}"
            )
        grid = torch.linspace(self.num_diffusion_steps - 1, 0, num_sampling_steps, dtype=torch.float64).round()
        steps = [int(step) for step in grid]
        return list(zip(steps, [*steps[1:], -1], strict=True))

    def alpha_bar_at(self, diffusion_step: int) -> float:
        """alpha_bar of a step; 1 for step -1."""
        return 1.0 if diffusion_step < 0 else float(self.alpha_bar[diffusion_step])


def make_cosine_schedule(num_diffusion_steps: int, offset: float = 0.008, max_beta: float = 0.999) -> NoiseSchedule:
    """The cosine schedule.

    Source: Nichol and Dhariwal 2021, eq. 17, on the grid of Janner et al. 2022 (`cosine_beta_schedule`), which spaces
    N + 1 points over [0, N + 1] rather than [0, N].
    """
    grid_size = num_diffusion_steps + 1
    points = torch.linspace(0, grid_size, grid_size, dtype=torch.float64)
    cumulative = torch.cos((points / grid_size + offset) / (1 + offset) * math.pi / 2) ** 2
    betas = (1 - cumulative[1:] / cumulative[:-1]).clamp(0, max_beta)
    return NoiseSchedule(torch.cumprod(1 - betas, dim=0))


def make_schedule(kind: str, num_diffusion_steps: int) -> NoiseSchedule:
    """A schedule from its name in the config."""
    if kind != "cosine":
        raise ValueError(f"schedule: expected 'cosine', got {kind!r}")
    return make_cosine_schedule(num_diffusion_steps)

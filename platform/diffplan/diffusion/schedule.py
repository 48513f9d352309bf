"""Noise schedules: signal and noise at each diffusion step.

x_noisy = sqrt(alpha_bar) x_clean + sqrt(1 - alpha_bar) noise, with alpha_bar falling over diffusion steps 0 … N - 1.
Tables are float64; values are cast to the type of the tensor that they multiply.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Spacing = Literal["uniform", "log_snr"]


@dataclass(frozen=True)
class NoiseSchedule:
    """A variance-preserving noise schedule.

    Attributes:
        alpha_bar: share of signal variance at each diffusion step, float64, descending in (0, 1).
    """

    alpha_bar: Float[Tensor, " diffusion_steps"]
    _copies: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    """`alpha_bar` on each device, copied on first use."""

    def alpha_bar_on(self, device: torch.device) -> Float[Tensor, " diffusion_steps"]:
        """`alpha_bar` on a device, copied there once."""
        if device not in self._copies:
            self._copies[device] = self.alpha_bar.to(device)
        return self._copies[device]

    @property
    def num_diffusion_steps(self) -> int:
        """Number of noise levels."""
        return len(self.alpha_bar)

    def signal_and_noise(
        self, diffusion_step: Int[Tensor, " batch"], like: Float[Tensor, "batch *any"]
    ) -> tuple[Float[Tensor, "batch *ones"], Float[Tensor, "batch *ones"]]:
        """Factors of the clean trajectory and of the noise at each step, shaped to multiply `like`."""
        alpha_bar = self.alpha_bar_on(diffusion_step.device)[diffusion_step]
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

    def sampling_steps(
        self, num_sampling_steps: int, spacing: Spacing = "uniform", first: int | None = None
    ) -> list[int]:
        """Diffusion steps to denoise at, from the noisiest down to 0.

        Args:
            num_sampling_steps: number of steps.
            spacing: `uniform` spaces them evenly; `log_snr` evenly in log(signal / noise), as Lu et al. 2022 propose
                for few steps.
            first: the noisiest step; None for that of the schedule.

        Raises:
            ValueError: more steps than the schedule has, or a first step outside the schedule.
        """
        first = self.num_diffusion_steps - 1 if first is None else first
        if not 0 <= first < self.num_diffusion_steps:
            raise ValueError(f"first: expected a diffusion step from 0 to {self.num_diffusion_steps - 1}, got {first}")
        if not 1 <= num_sampling_steps <= first + 1:
            raise ValueError(
                f"num_sampling_steps: expected 1 to {first + 1} (the diffusion steps of the model up to the first), "
                f"got {num_sampling_steps}"
            )
        if spacing == "uniform":
            grid = torch.linspace(first, 0, num_sampling_steps, dtype=torch.float64).round()
            return [int(step) for step in grid]
        log_snr = self.log_snr[: first + 1]
        wanted = torch.linspace(float(log_snr[-1]), float(log_snr[0]), num_sampling_steps, dtype=torch.float64)
        steps = (wanted[:, None] - log_snr[None]).abs().argmin(dim=1).tolist()
        for i in range(1, num_sampling_steps):  # no step twice
            steps[i] = min(steps[i], steps[i - 1] - 1)
        return [max(step, num_sampling_steps - 1 - i) for i, step in enumerate(steps)]

    @property
    def log_snr(self) -> Float[Tensor, " diffusion_steps"]:
        """log(signal / noise) of each diffusion step, half the logarithm of the ratio of their variances."""
        return 0.5 * (self.alpha_bar.log() - torch.log1p(-self.alpha_bar))

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


def make_linear_schedule(num_diffusion_steps: int, first_beta: float = 1e-4, last_beta: float = 0.02) -> NoiseSchedule:
    """Betas that rise linearly: those of Ho et al. 2020, section 4, for 1000 steps, and scaled for fewer."""
    scale = 1000 / num_diffusion_steps
    # Built from the last step, so that a schedule of one step has the noisiest.
    betas = torch.linspace(scale * last_beta, scale * first_beta, num_diffusion_steps, dtype=torch.float64).flip(0)
    return NoiseSchedule(torch.cumprod(1 - betas.clamp(0, 0.999), dim=0))


def make_edm_schedule(
    num_diffusion_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> NoiseSchedule:
    """The noise levels of EDM: sigma^(1/rho) rises evenly from `sigma_min` to `sigma_max`.

    EDM denoises x_clean + sigma noise; here that is scaled to unit variance, so alpha_bar = 1 / (1 + sigma²).
    With `velocity` prediction the network's input, output and skip factors are then those of EDM at sigma_data = 1.
    Source: Karras et al. 2022, eq. 5 and table 1.
    """
    # Built from the last step, so that a schedule of one step has the noisiest.
    roots = torch.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), num_diffusion_steps, dtype=torch.float64)
    return NoiseSchedule(1 / (1 + roots.flip(0) ** (2 * rho)))


_SCHEDULES = {"cosine": make_cosine_schedule, "linear": make_linear_schedule, "edm": make_edm_schedule}


def make_schedule(kind: str, num_diffusion_steps: int) -> NoiseSchedule:
    """A schedule from its name in the config."""
    if kind not in _SCHEDULES:
        raise ValueError(f"schedule: expected one of {', '.join(_SCHEDULES)}, got {kind!r}")
    return _SCHEDULES[kind](num_diffusion_steps)

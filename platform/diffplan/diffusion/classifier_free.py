"""Classifier-free guidance: a denoiser that strengthens or weakens the effect of its condition.

Source: Ho and Salimans 2022, eq. 6, on estimates of the clean trajectory: without + scale (with - without). Ajay et al.
2023 (Decision Diffuser) plan with it. The result is a denoiser, so samplers need no special case.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffplan.diffusion.denoiser import Denoiser
from diffplan.diffusion.schedule import NoiseSchedule


class ClassifierFreeDenoiser:
    """A denoiser for given conditions.

    Args:
        denoiser: a model whose network takes conditions.
        condition: return or task label of each trajectory.
        scale: 0 ignores the condition, 1 follows it, above 1 exaggerates it.
    """

    def __init__(self, denoiser: Denoiser, condition: Float[Tensor, " batch"], scale: float) -> None:
        self._denoiser = denoiser
        self._condition = condition
        self._scale = scale

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule."""
        return self._denoiser.schedule

    def __call__(
        self,
        x_noisy: Float[Tensor, "batch horizon transition"],
        diffusion_step: int,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch horizon transition"]:
        """The denoised trajectories; the network runs on twice the batch unless the scale is 0 or 1."""
        if self._scale in (0, 1):
            return self._denoiser(x_noisy, diffusion_step, lengths, self._condition if self._scale else None)
        withheld = torch.full_like(self._condition, torch.nan)
        both = self._denoiser.estimate(
            torch.cat([x_noisy, x_noisy]),
            diffusion_step,
            None if lengths is None else torch.cat([lengths, lengths]),
            torch.cat([self._condition, withheld]),
        )
        with_condition, without = both.chunk(2)
        # Clip last: a combination of two estimates within the limits can exceed them.
        return self._denoiser.limit(without + self._scale * (with_condition - without))

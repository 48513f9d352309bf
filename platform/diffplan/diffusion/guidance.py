"""Guides: differentiable scores that bend plans while they are denoised.

A guide J maximises. At each denoising step the mean of the next, less noisy plan is moved along the gradient, scaled by
the variance of that step: mean + guidance_scale * variance * ∇J(mean). Source: Janner et al. 2022, eq. 3 and Alg. 1.
Plans reach a guide in environment units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Guide(Protocol):
    """A differentiable score of plans."""

    def score(self, plans: Float[Tensor, "batch horizon transition"]) -> Float[Tensor, " batch"]:
        """Scores, to be maximised, of plans in environment units."""
        ...


@dataclass(frozen=True)
class GoalGuide:
    """Prefers plans that are near the goal sooner: minus the mean distance to the goal over the plan.

    Attributes:
        columns: columns of a transition that hold the position.
        goals: a position for each plan, in environment units.
    """

    columns: Sequence[int]
    goals: Float[Tensor, "batch columns"]

    def score(self, plans: Float[Tensor, "batch horizon transition"]) -> Float[Tensor, " batch"]:
        """Minus the mean distance over the steps of each plan, in units of position."""
        offsets = plans[:, :, list(self.columns)] - self.goals[:, None].to(plans)
        # The square root has no gradient at 0, where the plan ends; a small constant gives it one.
        return -(offsets.square().sum(dim=-1) + 1e-6).sqrt().mean(dim=1)


@dataclass(frozen=True)
class Guidance:
    """How a guide acts in a sampler.

    Attributes:
        guide: the score.
        unnormalize: takes plans from model space to environment units.
        scale: strength; with 0 the guide is not even evaluated.
        num_guide_steps: gradient steps in each denoising step.
    """

    guide: Guide
    unnormalize: Callable[[Tensor], Tensor]
    scale: float
    num_guide_steps: int = 1

    def shift(
        self, mean: Float[Tensor, "batch horizon transition"], variance: float
    ) -> Float[Tensor, "batch horizon transition"]:
        """The mean of a denoising step, moved towards higher scores."""
        if self.scale == 0 or variance == 0:
            return mean
        for _ in range(self.num_guide_steps):
            with torch.enable_grad():
                leaf = mean.detach().requires_grad_(True)
                total = self.guide.score(self.unnormalize(leaf)).sum()
                (gradient,) = torch.autograd.grad(total, leaf)
            mean = mean + self.scale * variance * gradient
        return mean

"""Guidance: guides change plans during denoising.

Guidance maximises the score J of a guide. The three places where its gradient can be taken, with sources:

* `noisy`: the mean of each denoising step is moved along ∇J(mean), scaled by the variance of the step; Janner et al.
  2022, eq. 3 and Alg. 1.
* `denoised`: the estimate of the clean plan is moved along ∇J(estimate), scaled by the share of noise in the noisy
  plan; no derivative of the network is needed. He et al. 2023 (manifold preserving guided diffusion), Alg. 1.
* `network`: the mean is moved along ∇J(estimate(noisy plan)) with respect to the noisy plan, through the network; Chung
  et al. 2023 (diffusion posterior sampling), Alg. 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffplan.errors import PlanningError
from diffplan.layout import Layout

Target = Literal["noisy", "denoised", "network"]

_REPAIRED = 2e-5
"""Largest violation of a repaired plan, in the units of the limit; below the tolerance for rounding."""
_REPAIR_STEPS = 100
"""Maximum number of repair steps."""
_OVER_RELAXATION = 1.1
"""Factor on repair steps: they go slightly past the limit, so that they end within it."""


@dataclass(frozen=True)
class PlanBatch:
    """Plans for a guide: differentiable and in environment units.

    All plans have one horizon, unless the guide supports several (`takes_lengths`).

    Attributes:
        transitions: the plans.
        normalized: the plans in model space, the input of learned guides.
        layout: columns of a transition.
        position_columns: observation columns with the position.
        velocity_columns: observation columns with its time derivative, in the same order.
        step_seconds: seconds between two steps; None if not known.
        diffusion_step: noise level of the plans; -1 for clean plans.
        goals: goal values at the end of each plan; None without goals.
        goal_columns: observation columns that goals give values for; None for the positions.
        lengths: steps of each plan, for guides that support plans of several horizons; None for all steps. The
            padding behind a plan has finite values without a meaning.
    """

    transitions: Float[Tensor, "batch horizon transition"]
    normalized: Float[Tensor, "batch horizon transition"]
    layout: Layout
    position_columns: tuple[int, ...]
    velocity_columns: tuple[int, ...]
    step_seconds: float | None
    diffusion_step: int = -1
    goals: Float[Tensor, "batch goal"] | None = None
    lengths: Int[Tensor, " batch"] | None = None
    goal_columns: tuple[int, ...] | None = None

    @property
    def observations(self) -> Float[Tensor, "batch horizon observation"]:
        """Observations at every step."""
        return self.transitions[:, :, self.layout.observations]

    @property
    def actions(self) -> Float[Tensor, "batch horizon action"]:
        """Actions at every step; no columns if plans have observations only."""
        return self.transitions[:, :, self.layout.actions]

    @property
    def flags(self) -> Float[Tensor, "batch horizon"] | None:
        """1 while the episode goes on and -1 after its end, at every step; None where plans have no such flag."""
        return self.transitions[:, :, self.layout.flag] if self.layout.has_flag else None

    @property
    def positions(self) -> Float[Tensor, "batch horizon position"]:
        """Positions at every step."""
        return self.transitions[:, :, self.layout.observation_columns(self.position_columns)]

    @property
    def velocities(self) -> Float[Tensor, "batch horizon position"]:
        """Velocities at every step, in units per second."""
        return self.transitions[:, :, self.layout.observation_columns(self.velocity_columns)]

    @property
    def toward_goals(self) -> Float[Tensor, "batch horizon goal"]:
        """The goal columns, at every step."""
        columns = self.position_columns if self.goal_columns is None else self.goal_columns
        return self.transitions[:, :, self.layout.observation_columns(columns)]

    @property
    def seconds(self) -> float:
        """Seconds between two steps; raises `PlanningError` if not known."""
        if self.step_seconds is None:
            raise PlanningError(
                "guide: expected known seconds of a step, which it asks for, got none; set env.step_seconds in training"
            )
        return self.step_seconds

    @property
    def times(self) -> Float[Tensor, " horizon"]:
        """Time of every step, in seconds from the first; raises `PlanningError` if not known."""
        return self.seconds * torch.arange(self.transitions.shape[1], device=self.transitions.device)

    def path(self, points_per_step: int = 4) -> Float[Tensor, "batch points position"]:
        """Positions along the path, at the steps and between them, so that no obstacle is skipped.

        Interpolated by cubics through the positions and velocities of the steps; linearly without velocities.
        """
        positions = self.positions
        fractions = torch.arange(points_per_step, device=positions.device).to(positions) / points_per_step
        s = fractions[None, None, :, None]
        before, after = positions[:, :-1, None], positions[:, 1:, None]
        if self.velocity_columns:
            leaving, arriving = (
                self.seconds * v for v in (self.velocities[:, :-1, None], self.velocities[:, 1:, None])
            )
            between = hermite(s, before, after, leaving, arriving)
        else:
            between = before + s * (after - before)
        return torch.cat([between.flatten(1, 2), positions[:, -1:]], dim=1)

    def ends(self, points_per_step: int = 1) -> Int[Tensor, " batch"] | None:
        """Index of the last point of each plan in `path` (or of its last step); None if no plan is padded."""
        return None if self.lengths is None else (self.lengths - 1) * points_per_step

    def within(self, points_per_step: int = 1) -> Bool[Tensor, "batch points"] | None:
        """Points of `path` (or steps) that belong to each plan; None if all do."""
        ends = self.ends(points_per_step)
        if ends is None:
            return None
        num_points = (self.transitions.shape[1] - 1) * points_per_step + 1
        return torch.arange(num_points, device=ends.device) <= ends[:, None]


def hermite(s: Any, before: Any, after: Any, leaving: Any, arriving: Any) -> Any:
    """The cubic with given end values and slopes at s in [0, 1], for tensors or NumPy arrays."""
    rest = 1 - s
    return (
        before * (rest * rest * (1 + 2 * s))
        + after * (s * s * (3 - 2 * s))
        + leaving * (s * rest * rest)
        - arriving * (s * s * rest)
    )


@runtime_checkable
class Guide(Protocol):
    """A differentiable score of plans.

    A guide with an attribute `takes_lengths` that is true gets plans of several horizons in one batch, with
    `PlanBatch.lengths`; any other guide is called once for each horizon, which takes longer.
    """

    def score(self, plans: PlanBatch) -> Float[Tensor, " batch"]:
        """Scores, to be maximised."""
        ...


def find_moving(guide: Guide) -> Guide | None:
    """The part of a guide that has a gradient; None if all of it only ranks plans.

    A guide says by an attribute `has_gradient` that is false that it has none; a sum has `moving`.
    """
    if hasattr(guide, "moving"):
        return guide.moving  # pyright: ignore[reportAttributeAccessIssue]
    return guide if getattr(guide, "has_gradient", True) else None


def takes_lengths(guide: Guide) -> bool:
    """Whether a guide supports plans of several horizons in one batch."""
    return bool(getattr(guide, "takes_lengths", False))


@runtime_checkable
class LimitingGuide(Guide, Protocol):
    """A guide with limits that a plan satisfies or violates."""

    def violation(self, plans: PlanBatch) -> Float[Tensor, " batch"]:
        """Violation of the limits by each plan; 0 if it satisfies them."""
        ...


@dataclass(frozen=True)
class Guidance:
    """A guide and its settings in a sampler.

    Attributes:
        guide: the score.
        view: makes the plans for the guide from rows of the batch: (x in model space, rows or None for all,
            diffusion step) -> plans of one horizon.
        scale: strength; with 0 the guide is not evaluated.
        num_guide_steps: gradient steps in each denoising step (one if the gradient goes through the network).
        target: where the gradient is taken.
        scale_by_variance: whether the gradient is also scaled by the variance of the denoising step.
        max_gradient: gradients of a plan are scaled down to this norm, in model space; None for no limit.
        stop_step: the guide is off below this diffusion step.
        start_step: it is off above this one; None: it is on from the first.
    """

    guide: Guide
    view: Callable[[Tensor, Tensor | None, int], PlanBatch]
    scale: float
    num_guide_steps: int = 1
    target: Target = "noisy"
    scale_by_variance: bool = True
    max_gradient: float | None = None
    stop_step: int = 0
    start_step: int | None = None

    def acts_on(self, target: Target, diffusion_step: int) -> bool:
        """Whether the gradient is taken at this target in this denoising step."""
        within = diffusion_step >= self.stop_step and (self.start_step is None or diffusion_step <= self.start_step)
        return self.target == target and self.scale != 0 and within

    def move(
        self,
        x: Float[Tensor, "batch horizon transition"],
        variance: float,
        diffusion_step: int,
        lengths: Int[Tensor, " batch"] | None = None,
        project: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> Float[Tensor, "batch horizon transition"]:
        """The plans after the gradient steps. What is fixed stays fixed in each, so the next one counts on it.

        Source: Janner et al. 2022, Alg. 1 (the conditions are applied after each step of the guide in its code).

        Args:
            x: plans in model space.
            variance: variance of the denoising step; with 0, plans are clean and stay unchanged.
            diffusion_step: noise level of x.
            lengths: steps of each plan if they differ.
            project: applies the constraints to all plans.
        """
        moving = find_moving(self.guide)
        if variance == 0 or moving is None:
            return x
        for _ in range(self.num_guide_steps):
            leaf = x.detach()
            with torch.enable_grad():
                leaf.requires_grad_(True)
                total = self._evaluate(moving, moving.score, leaf, lengths, diffusion_step).sum()
                gradient = self._differentiate(total, leaf)
            x = project(x + self.factor(variance) * gradient)
        return x

    def factor(self, variance: float) -> float:
        """Factor on the gradient."""
        return self.scale * (variance if self.scale_by_variance else 1.0)

    def through(
        self, denoise: Callable[[Tensor], Tensor], x: Tensor, diffusion_step: int, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The denoised plans, and the gradient of their score with respect to the noisy plans x."""
        leaf = x.detach()
        with torch.enable_grad():
            leaf.requires_grad_(True)
            denoised = denoise(leaf)
            gradient = self._differentiate(self.score(denoised, -1, lengths).sum(), leaf)
        return denoised.detach(), gradient

    def score(self, x: Tensor, diffusion_step: int, lengths: Tensor | None = None) -> Float[Tensor, " batch"]:
        """Scores of plans in model space."""
        return self._evaluate(self.guide, self.guide.score, x, lengths, diffusion_step)

    def violation(self, x: Tensor, lengths: Tensor | None = None) -> Float[Tensor, " batch"]:
        """Violation of the limits of the guide by clean plans; 0 if it has no limits."""
        guide = self.guide
        if not getattr(guide, "limiting", True) or not isinstance(guide, LimitingGuide):
            return x.new_zeros(len(x))
        return self._evaluate(guide, guide.violation, x, lengths, -1)

    def _evaluate(
        self,
        guide: Guide,
        function: Callable[[PlanBatch], Tensor],
        x: Tensor,
        lengths: Tensor | None,
        diffusion_step: int,
    ) -> Float[Tensor, " batch"]:
        """Values of a function of a guide for each plan; padding is hidden from it."""
        if lengths is None:
            return function(self.view(x, None, diffusion_step))
        if takes_lengths(guide):
            behind = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
            own = x.masked_fill(behind[:, :, None], 0.0)
            return function(replace(self.view(own, None, diffusion_step), lengths=lengths))
        result = x.new_zeros(len(x))
        distinct: Sequence[int] = torch.unique(lengths).tolist()
        for length in distinct:
            rows = (lengths == length).nonzero()[:, 0]
            of_length = function(self.view(x[rows, :length], rows, diffusion_step))
            result = result.index_put((rows,), of_length.to(x.dtype))
        return result

    def repair(
        self,
        x: Float[Tensor, "batch horizon transition"],
        project: Callable[[Tensor], Tensor],
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch horizon transition"]:
        """Move violating clean plans by the least change into the limits of the guide; other plans stay unchanged.

        Guidance moves plans towards their limits but often ends slightly outside. Here each violating plan is moved to
        the nearest plan that satisfies the linearised limits; this repeats until it satisfies the limits. A plan for
        which this fails, or whose violation is NaN, is returned unchanged. Source of the step: Polyak 1969.

        Args:
            x: clean plans in model space.
            project: applies the constraints to all plans.
            lengths: steps of each plan if they differ.
        """
        if not isinstance(self.guide, LimitingGuide):
            return x
        moved = x
        for _ in range(_REPAIR_STEPS):
            leaf = moved.detach()
            with torch.enable_grad():
                leaf.requires_grad_(True)
                violation = self.violation(leaf, lengths)
                wrong = violation > _REPAIRED
                if not wrong.any():
                    return moved
                gradient = _gradient(violation[wrong].sum(), leaf)
            squares = gradient.square().sum(dim=(1, 2)).clamp(min=1e-12)
            factors = _OVER_RELAXATION * violation.detach() / squares
            # A NaN in one plan must not affect the others.
            moved = torch.where(wrong[:, None, None], project(moved - factors[:, None, None] * gradient), moved)
        with torch.no_grad():
            wrong = self.violation(moved, lengths) > _REPAIRED
        return torch.where(wrong[:, None, None], x, moved)

    def _differentiate(self, total: Tensor, leaf: Tensor) -> Tensor:
        gradient = _gradient(total, leaf)
        if self.max_gradient is not None:
            norms = gradient.flatten(1).norm(dim=1).clamp(min=1e-12)
            gradient = gradient * (self.max_gradient / norms).clamp(max=1.0)[:, None, None]
        return gradient


def _gradient(total: Tensor, leaf: Tensor) -> Tensor:
    """The gradient with respect to plans; zero if `total` does not depend on them."""
    if not total.requires_grad:
        return torch.zeros_like(leaf)
    (gradient,) = torch.autograd.grad(total, leaf, allow_unused=True)
    return torch.zeros_like(leaf) if gradient is None else gradient

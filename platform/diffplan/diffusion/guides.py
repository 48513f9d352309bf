"""Predefined guides: goals, zones and limits for plans, in environment units.

A guide scores each plan, higher is better; a guide with a limit also computes the violation of each plan. Scores are
means over the steps of a plan, so that weights mean the same at every horizon; scores of zones are sums. Guides of
positions also score the path between steps. They raise `PlanningError`, a `ValueError`, for plans that they cannot
score.

All guides except functions and networks support plans of several horizons in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from diffplan.diffusion.guidance import Guide, LimitingGuide, PlanBatch, find_moving, takes_lengths
from diffplan.diffusion.point_reductions import last_differences, last_points, max_points, mean_points, sum_points
from diffplan.errors import PlanningError

_POINTS_SCORED = 4
"""Points per step at which zones are scored."""
_POINTS_CHECKED = 16
"""Points per step at which limits are checked: more than for scores, because only the deepest point counts."""


@dataclass(frozen=True)
class GoalDistance:
    """Reach the goal soon: minus the mean distance of the steps of a plan to its goal, in the goal columns."""

    takes_lengths: ClassVar[bool] = True

    def score(self, plans: PlanBatch) -> Float[Tensor, " batch"]:
        """Scores, in units of length."""
        if plans.goals is None:
            raise PlanningError("guide goal_distance: expected plans with goals, got plans without; give goals to plan")
        values = plans.toward_goals
        squares = (values - plans.goals.to(values)[:, None]).square().sum(dim=-1)
        return -mean_points((squares + 1e-6).sqrt(), plans.within())  # keeps the gradient finite at the goal


class _Zone:
    """A zone that positions must stay out of; subclasses compute the distance of points from it."""

    takes_lengths: ClassVar[bool] = True
    margin: float

    def distance(self, points: Float[Tensor, "batch points position"]) -> Float[Tensor, "batch points"]:
        """Distances to the zone, negative inside."""
        raise NotImplementedError

    def score(self, plans: PlanBatch) -> Float[Tensor, " batch"]:
        """Minus the squared depth in zone and margin, summed over the steps: a longer detour must not dilute it."""
        depth = torch.relu(self.margin - self.distance(plans.path(_POINTS_SCORED)))
        return -sum_points(depth.square(), plans.within(_POINTS_SCORED)) / _POINTS_SCORED

    def violation(self, plans: PlanBatch) -> Float[Tensor, " batch"]:
        """Depth of the deepest point of the path, in units of length; the margin does not count."""
        return max_points(torch.relu(-self.distance(plans.path(_POINTS_CHECKED))), plans.within(_POINTS_CHECKED))


@dataclass(frozen=True)
class KeepOut(_Zone):
    """Stay out of a disc or ball.

    Attributes:
        center: the centre.
        radius: the radius.
        margin: distance from the zone within which the score is reduced without a violation.

    Raises:
        ValueError: a radius or margin below 0.
    """

    center: Sequence[float]
    radius: float
    margin: float = 0.1

    def __post_init__(self) -> None:
        _require(self.radius >= 0, "keep_out", "a radius of at least 0", self.radius)
        _require(self.margin >= 0, "keep_out", "a margin of at least 0", self.margin)

    def distance(self, points: Float[Tensor, "batch points position"]) -> Float[Tensor, "batch points"]:
        """Distances to the disc, negative inside."""
        return _distances(points, self.center, "keep_out") - self.radius


@dataclass(frozen=True)
class KeepOutBox(_Zone):
    """Stay out of an axis-aligned box.

    Attributes:
        low: the lowest corner.
        high: the highest corner.
        margin: distance from the zone within which the score is reduced without a violation.

    Raises:
        ValueError: corners in the wrong order, or a margin below 0.
    """

    low: Sequence[float]
    high: Sequence[float]
    margin: float = 0.1

    def __post_init__(self) -> None:
        spans = len(self.low) == len(self.high) and all(a < b for a, b in zip(self.low, self.high, strict=True))
        _require(spans, "keep_out_box", "corners low < high on every axis", f"{self.low} and {self.high}")
        _require(self.margin >= 0, "keep_out_box", "a margin of at least 0", self.margin)

    def distance(self, points: Float[Tensor, "batch points position"]) -> Float[Tensor, "batch points"]:
        """Distances to the box, negative inside."""
        low, high = (_vector(points, corner, "keep_out_box") for corner in (self.low, self.high))
        beyond = (points - (low + high) / 2).abs() - (high - low) / 2
        outside = torch.linalg.vector_norm(torch.relu(beyond), dim=-1)
        return outside + beyond.amax(dim=-1).clamp(max=0)


@dataclass(frozen=True)
class TargetRegion:
    """Be in a disc or ball: at the end, at any time, or all the time.

    Attributes:
        center: the centre.
        radius: the radius.
        at: time in the region; with `any` only the nearest point of the path is scored.

    Raises:
        ValueError: a radius below 0.
    """

    center: Sequence[float]
    radius: float
    at: Literal["end", "any", "all"] = "end"
    takes_lengths: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _require(self.radius >= 0, "target_region", "a radius of at least 0", self.radius)

    def score(self, plans: PlanBatch) -> Float[Tensor, " batch"]:
        """Minus the squared distance to the region: at the end, of the nearest point, or the mean along the path."""
        outside = self._outside(plans.path(_POINTS_SCORED))
        if self.at == "all":
            return -mean_points(outside.square(), plans.within(_POINTS_SCORED))
        return -self._nearest(outside, plans, _POINTS_SCORED).square()

    def violation(self, plans: PlanBatch) -> Float[Tensor, " batch"]:
        """Distance to the region: at the end, of the nearest point, or of the farthest; in units of length."""
        outside = self._outside(plans.path(_POINTS_CHECKED))
        if self.at == "all":
            return max_points(outside, plans.within(_POINTS_CHECKED))
        return self._nearest(outside, plans, _POINTS_CHECKED)

    def _nearest(
        self, outside: Float[Tensor, "batch points"], plans: PlanBatch, points_per_step: int
    ) -> Float[Tensor, " batch"]:
        """The distance of the last point, or of the nearest one."""
        if self.at == "end":
            return last_points(outside, plans.ends(points_per_step))
        within = plans.within(points_per_step)
        return (outside if within is None else outside.masked_fill(~within, torch.inf)).amin(dim=1)

    def _outside(self, points: Float[Tensor, "batch points position"]) -> Float[Tensor, "batch points"]:
        return torch.relu(_distances(points, self.center, "target_region") - self.radius)


@dataclass(frozen=True)
class KeepIn(TargetRegion):
    """Stay in a disc or ball all the time; see `TargetRegion`."""

    at: Literal["end", "any", "all"] = "all"


@dataclass(frozen=True)
class SpeedLimit:
    """Stay below a speed limit.

    Attributes:
        max_speed: largest Euclidean norm of a velocity, in units per second. If plans have no velocities, those between
            steps are used.

    Raises:
        ValueError: a limit below 0.
    """

    max_speed: float
    takes_lengths: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _require(self.max_speed >= 0, "speed_limit", "a speed of at least 0", self.max_speed)

    def score(self, plans: PlanBatch) -> Float[Tensor, " batch"]:
        """Minus the mean squared excess."""
        excess = self._excess(plans)
        return -mean_points(excess.square(), last_differences(excess, plans.within()))

    def violation(self, plans: PlanBatch) -> Float[Tensor, " batch"]:
        """The largest excess, in units per second."""
        # A plan of one step may have no velocity, and the maximum of nothing is undefined.
        excess = self._excess(plans)
        within = last_differences(excess, plans.within())
        return max_points(F.pad(excess, (0, 1)), None if within is None else F.pad(within, (0, 1)))

    def _excess(self, plans: PlanBatch) -> Float[Tensor, "batch steps"]:
        velocities = plans.velocities if plans.velocity_columns else plans.positions.diff(dim=1) / plans.seconds
        return torch.relu(torch.linalg.vector_norm(velocities, dim=-1) - self.max_speed)


@dataclass(frozen=True)
class Smoothness:
    """Minus the mean squared acceleration.

    Accelerations are differences of the velocities, or second differences of the positions without velocities.
    """

    takes_lengths: ClassVar[bool] = True

    def score(self, plans: PlanBatch) -> Float[Tensor, " batch"]:
        """Scores, in (units per second²)²; 0 for plans too short to accelerate."""
        if plans.velocity_columns:
            accelerations = plans.velocities.diff(dim=1) / plans.seconds
        else:
            accelerations = plans.positions.diff(n=2, dim=1) / plans.seconds**2
        squares = accelerations.square().sum(dim=-1)
        return -mean_points(squares, last_differences(squares, plans.within()))


@dataclass(frozen=True)
class Function:
    """Any differentiable function of plans as a guide.

    Attributes:
        function: computes the scores, a tensor with one number per plan.
        violation_function: computes the violations; None for a guide without a limit.
    """

    function: Callable[[PlanBatch], Any]
    violation_function: Callable[[PlanBatch], Any] | None = None

    def score(self, plans: PlanBatch) -> Float[Tensor, " batch"]:
        """Scores by the function.

        Raises:
            ValueError: the result is not one number per plan.
        """
        return _one_per_plan(self.function, self.function(plans), plans)

    def violation(self, plans: PlanBatch) -> Float[Tensor, " batch"]:
        """Violations by the violation function; 0 without one. Raises as `score` does."""
        if self.violation_function is None:
            return plans.transitions.new_zeros(len(plans.transitions))
        return _one_per_plan(self.violation_function, self.violation_function(plans), plans)


@dataclass(frozen=True)
class Value:
    """A learned value of noisy plans.

    Source: Janner et al. 2022, section 3.2 and Alg. 1, where J is a network trained on noisy trajectories.

    Attributes:
        network: maps plans in model space and the diffusion step of each to one number per plan. Clean plans are
            passed with step 0, the lowest noise level of its training.
    """

    network: Callable[..., Any]

    def score(self, plans: PlanBatch) -> Float[Tensor, " batch"]:
        """Values, in the units of the training targets.

        Raises:
            ValueError: the output is not one number per plan.
        """
        x = plans.normalized
        steps = torch.full((len(x),), max(plans.diffusion_step, 0), device=x.device)
        return _one_per_plan(self.network, self.network(x, steps), plans)


@dataclass(frozen=True)
class WeightedSum:
    """A sum of guides.

    Attributes:
        terms: weights and guides.
    """

    terms: tuple[tuple[float, Guide], ...]

    @property
    def takes_lengths(self) -> bool:
        """Whether all terms support plans of several horizons in one batch."""
        return all(takes_lengths(guide) for _, guide in self.terms)

    @cached_property
    def moving(self) -> WeightedSum | None:
        """The terms that have a gradient; None if there are none."""
        parts = [(weight, find_moving(guide)) for weight, guide in self.terms]
        terms = tuple((weight, part) for weight, part in parts if part is not None)
        return self if terms == self.terms else WeightedSum(terms) if terms else None

    @cached_property
    def limiting(self) -> tuple[LimitingGuide, ...]:
        """The terms that have limits; guidance asks for no violation where there are none."""
        return tuple(guide for _, guide in self.terms if isinstance(guide, LimitingGuide))

    def score(self, plans: PlanBatch) -> Float[Tensor, " batch"]:
        """The weighted sum of the scores."""
        total = plans.transitions.new_zeros(len(plans.transitions))
        for weight, guide in self.terms:
            total = total + weight * guide.score(plans)
        return total

    def violation(self, plans: PlanBatch) -> Float[Tensor, " batch"]:
        """The unweighted sum of the violations: a plan satisfies all limits or it does not."""
        total = plans.transitions.new_zeros(len(plans.transitions))
        for guide in self.limiting:
            total = total + guide.violation(plans)
        return total


def weighted_sum(*terms: Any) -> WeightedSum:
    """The sum of guides and of pairs (weight, guide); plain functions of plans are guides too.

    Raises:
        ValueError: a term is neither.
    """
    pairs = (term if isinstance(term, tuple) else (1.0, term) for term in terms)
    return WeightedSum(tuple((float(weight), as_guide(guide)) for weight, guide in pairs))


def as_guide(guide: Any) -> Guide:
    """A guide unchanged, or a function of plans as a guide.

    Raises:
        ValueError: the argument is neither.
    """
    if isinstance(guide, type):
        raise ValueError(f"guide: expected an object, got the class {guide.__name__}; call it")
    if isinstance(guide, Guide):
        return guide
    if callable(guide):
        return Function(guide)
    raise ValueError(f"guide: expected an object with `score` or a function of plans, got {type(guide).__name__}")


def _require(holds: bool, guide: str, expected: str, got: object) -> None:
    if not holds:
        raise ValueError(f"{guide}: expected {expected}, got {got}")


def _one_per_plan(function: object, result: Any, plans: PlanBatch) -> Tensor:
    num_plans = len(plans.transitions)
    if isinstance(result, Tensor) and result.shape == (num_plans,):
        return result
    got = f"shape {list(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
    name = getattr(function, "__name__", type(function).__name__)
    raise PlanningError(f"guide {name}: expected a tensor of one number per plan, shape [{num_plans}], got {got}")


def _vector(points: Tensor, values: Sequence[float], guide: str) -> Tensor:
    """Coordinates as a tensor like the points; raises unless their number is the dimension of the points."""
    if len(values) != points.shape[-1]:
        raise PlanningError(
            f"guide {guide}: expected {points.shape[-1]} coordinates, those of a position, got {list(values)}"
        )
    return points.new_tensor(list(values))


def _distances(
    points: Float[Tensor, "batch points position"], center: Sequence[float], guide: str
) -> Float[Tensor, "batch points"]:
    return torch.linalg.vector_norm(points - _vector(points, center, guide), dim=-1)

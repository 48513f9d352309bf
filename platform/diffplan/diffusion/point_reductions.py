"""Numbers of plans from numbers of their steps, or of points along their paths; padding behind a plan is left out."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor


def sum_points(
    values: Float[Tensor, "batch points"], within: Bool[Tensor, "batch points"] | None
) -> Float[Tensor, " batch"]:
    """Sums over the points that belong to each plan; None: all."""
    return (values if within is None else values.masked_fill(~within, 0.0)).sum(dim=1)


def mean_points(
    values: Float[Tensor, "batch points"], within: Bool[Tensor, "batch points"] | None
) -> Float[Tensor, " batch"]:
    """Means over the points that belong to each plan, 0 without points."""
    num = max(values.shape[1], 1) if within is None else within.sum(dim=1).clamp(min=1)
    return sum_points(values, within) / num


def max_points(
    values: Float[Tensor, "batch points"], within: Bool[Tensor, "batch points"] | None
) -> Float[Tensor, " batch"]:
    """Maxima of non-negative values over the points that belong to each plan."""
    return (values if within is None else values.masked_fill(~within, 0.0)).amax(dim=1)


def last_points(values: Float[Tensor, "batch points"], ends: Int[Tensor, " batch"] | None) -> Float[Tensor, " batch"]:
    """The values of the last points."""
    return values[:, -1] if ends is None else values.gather(1, ends[:, None])[:, 0]


def last_differences(
    differences: Float[Tensor, "batch differences"], within: Bool[Tensor, "batch steps"] | None
) -> Bool[Tensor, "batch differences"] | None:
    """Differences between steps that belong to each plan: those that end at a step of the plan."""
    return None if within is None else within[:, within.shape[1] - differences.shape[1] :]

"""What a caller may demand of plans: values at one time, and bounds; in environment units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from diffplan.errors import PlanningError


@dataclass(frozen=True)
class Fixed:
    """Fixed values of observation columns at one time of the plan, such as a way-point or a final velocity.

    At most one of `step`, `seconds` and `fraction` sets the time. With none of them the planner chooses it: such
    way-points are passed in the order given, before the goal.

    Attributes:
        values: float[columns], or float[batch, columns] for one in each environment.
        columns: observation columns; None for the positions.
        step: step of the plan; negative counts from its end.
        seconds: time from now, rounded to a step of the plan.
        fraction: share of the plan, 0 for its first and 1 for its last step, rounded to a step.
        per_second: values are what the columns change by in each second since the present observation, so that a
            position with the value 2 moves at 2 units per second on average up to this time, which must be set.
    """

    values: Sequence[float] | Sequence[Sequence[float]] | np.ndarray
    columns: Sequence[int] | None = None
    step: int | None = None
    seconds: float | None = None
    fraction: float | np.ndarray | None = None
    per_second: bool = False

    def __post_init__(self) -> None:
        if sum(when is not None for when in (self.step, self.seconds, self.fraction)) > 1:
            raise PlanningError("Fixed: expected at most one of step, seconds and fraction, got several")
        if self.step is not None and not isinstance(self.step, int | np.integer):
            raise PlanningError(f"Fixed: expected a whole number as step, got {self.step}")
        if self.fraction is not None and not (np.min(self.fraction) >= 0 and np.max(self.fraction) <= 1):
            raise PlanningError(f"Fixed: expected a fraction from 0 to 1, got {self.fraction}")
        if self.seconds is not None and not 0 <= self.seconds < np.inf:
            raise PlanningError(f"Fixed: expected seconds >= 0, got {self.seconds}")
        if self.per_second and not self.is_timed:
            raise PlanningError(
                "Fixed: expected a time (step, seconds or fraction) where values are per second, got none"
            )

    @property
    def is_timed(self) -> bool:
        """Whether the time is set, rather than left to the planner."""
        return any(when is not None for when in (self.step, self.seconds, self.fraction))

    @property
    def fractions(self) -> np.ndarray | None:
        """One fraction for each environment, float[batch]; None if all share one, or if there is none."""
        return None if self.fraction is None or np.ndim(self.fraction) == 0 else np.asarray(self.fraction)


@dataclass(frozen=True)
class Bounds:
    """Bounds on columns of the observation, such as a speed limit or half of a room.

    Attributes:
        low: lower bounds, one for all columns or one for each; -inf for none.
        high: upper bounds; inf for none.
        columns: observation columns; None for the positions.
        first_step: the first step of the plan that they hold for. Step 0 is the present observation, so bounds never
            hold for it.
        last_step: the last one; None for the end of the plan.
    """

    low: float | Sequence[float] = -np.inf
    high: float | Sequence[float] = np.inf
    columns: Sequence[int] | None = None
    first_step: int = 1
    last_step: int | None = None

    def __post_init__(self) -> None:
        if self.first_step < 1 or (self.last_step is not None and self.last_step < self.first_step):
            raise PlanningError(
                f"Bounds: expected 1 <= first_step <= last_step, got {self.first_step} and {self.last_step}"
            )

    @property
    def is_everywhere(self) -> bool:
        """Whether they hold for the whole plan."""
        return self.first_step == 1 and self.last_step is None


Constraint = Fixed | Bounds


def _columns(
    columns: Sequence[int] | None, positions: tuple[int, ...], observation_dim: int, what: str
) -> tuple[int, ...]:
    chosen = tuple(positions if columns is None else columns)
    if columns is None and not positions:
        raise PlanningError(f"{what}: expected columns, for no positions are known in this environment; give columns")
    if not chosen or len(set(chosen)) != len(chosen) or not all(0 <= c < observation_dim for c in chosen):
        raise PlanningError(
            f"{what}: expected distinct observation columns from 0 to {observation_dim - 1}, got {chosen}"
        )
    return chosen


def check_fixed(fixed: Fixed, positions: tuple[int, ...], num: int, observation_dim: int) -> Fixed:
    """The same with columns, and float32 values for each of `num` environments; raises `PlanningError`."""
    columns = _columns(fixed.columns, positions, observation_dim, "Fixed")
    try:
        values = np.asarray(fixed.values, dtype=np.float32)
    except (TypeError, ValueError):
        raise PlanningError("Fixed: expected numbers, as many in each environment, got something else") from None
    if values.ndim == 1:
        values = np.tile(values, (num, 1))
    if values.shape != (num, len(columns)):
        raise PlanningError(
            f"Fixed: expected values of shape ({len(columns)},) or ({num}, {len(columns)}), "
            f"got {np.asarray(fixed.values).shape}"
        )
    if not np.isfinite(values).all():
        raise PlanningError("Fixed: expected finite numbers, got NaN or infinity")
    if fixed.fractions is not None and fixed.fractions.shape != (num,):
        raise PlanningError(f"Fixed: expected one fraction or {num} of them, got shape {fixed.fractions.shape}")
    return replace(fixed, values=values, columns=columns)


def check_bounds(bounds: Bounds, positions: tuple[int, ...], observation_dim: int) -> Bounds:
    """The same with columns; raises `PlanningError` for bounds that no number keeps."""
    columns = _columns(bounds.columns, positions, observation_dim, "Bounds")
    for name, limits in (("low", bounds.low), ("high", bounds.high)):
        if np.ndim(limits) > 1 or (np.ndim(limits) == 1 and np.shape(limits) != (len(columns),)):
            raise PlanningError(f"Bounds: expected {name} for {len(columns)} columns, got shape {np.shape(limits)}")
        if np.isnan(limits).any():
            raise PlanningError(f"Bounds: expected numbers as {name}, got NaN")
    with np.errstate(over="ignore"):
        low, high = (np.asarray(limit, dtype=np.float32) for limit in (bounds.low, bounds.high))
    if (low == np.inf).any() or (high == -np.inf).any():
        raise PlanningError(f"Bounds: expected bounds that some number keeps, got {bounds.low} and {bounds.high}")
    if (np.asarray(bounds.low) > np.asarray(bounds.high)).any():
        raise PlanningError(f"Bounds: expected low <= high, got {bounds.low} and {bounds.high}")
    return replace(bounds, columns=columns)

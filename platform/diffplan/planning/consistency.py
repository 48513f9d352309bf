"""How consistent a plan is with itself and with the data; the planner takes the shortest consistent horizon.

A plan with too few steps still ends on its goal, because the constraint puts it there. But its positions then move
faster than its own velocities say. The shortest horizon without this error is the earliest arrival that the model
considers feasible.

The error means a missing acceleration: the cubic through two steps of a plan, with their velocities, needs the
acceleration (v' - v) / Δt ± 6 e / Δt at its ends, where e is the speed error of the step. So e bounds how far a plan
exceeds the acceleration that its velocities show. `diffplan calibrate` reports e of windows of the data for comparison.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from diffplan.config import PlanningConfig
from diffplan.planning.companions.support import Support
from diffplan.planning.model import PlanningModel


@dataclass(frozen=True)
class Consistency:
    """How consistent plans are.

    Attributes:
        speed_errors: largest speed error of each plan in units per second, float64[plans].
        departures: largest distance of each plan from the data in units of the positions, float64[plans]; None if
            there is no limit on it.
        consistent: whether each plan keeps the limits, bool[plans].
    """

    speed_errors: np.ndarray
    departures: np.ndarray | None
    consistent: np.ndarray


def find_speed_limit(settings: PlanningConfig) -> float:
    """Largest speed error of a consistent plan; infinity for no limit."""
    limit = settings.horizon.max_speed_error
    return math.inf if limit is None else float(limit)


def check_consistency(
    model: PlanningModel,
    observations: np.ndarray,
    lengths: np.ndarray,
    max_speed_errors: np.ndarray,
    support: Support | None,
    max_departure: float,
) -> Consistency:
    """Measure plans and compare them with their limits.

    Args:
        model: columns and times of the plans.
        observations: float[plans, horizon, observation_dim] in environment units.
        lengths: steps of each plan, int[plans].
        max_speed_errors: largest speed error of a consistent plan, float[plans].
        support: positions that the data have visited; None if not known: departures are then not measured.
        max_departure: largest departure of a consistent plan, unless its start or goal departs further; 0 for no limit.
    """
    env = model.env
    errors = compute_speed_errors(observations, env.position_columns, env.velocity_columns, model.step_seconds, lengths)
    consistent, departures = errors <= max_speed_errors, None
    if max_departure and support is not None:
        departures, of_ends = support.departures(observations, env, model.step_seconds, lengths)
        consistent &= departures <= np.maximum(max_departure, of_ends)
    return Consistency(errors, departures, consistent)


def compute_speed_errors(
    observations: np.ndarray,
    position_columns: tuple[int, ...],
    velocity_columns: tuple[int, ...],
    step_seconds: float | None,
    lengths: np.ndarray | None = None,
) -> np.ndarray:
    """Largest |Δposition/Δtime - mean velocity| over the steps and columns of each plan.

    Args:
        observations: float[plans, horizon, observation_dim] in environment units.
        position_columns: columns that hold the position.
        velocity_columns: columns that hold its time derivative.
        step_seconds: seconds between two steps of the plan; needed where there are velocities.
        lengths: steps of each plan where they differ, int[plans].

    Returns:
        float[plans] in units per second; 0 where there are no velocities, so that every plan is consistent: the errors
        are then not known.
    """
    if not velocity_columns:
        return np.zeros(len(observations))
    assert step_seconds is not None  # known where velocities are
    positions = observations[:, :, list(position_columns)]
    velocities = observations[:, :, list(velocity_columns)]
    moved = np.diff(positions, axis=1) / step_seconds
    mean_velocities = (velocities[:, 1:] + velocities[:, :-1]) / 2
    errors = np.abs(moved - mean_velocities).max(axis=2)
    if lengths is not None:
        errors = np.where(np.arange(1, observations.shape[1])[None] < lengths[:, None], errors, 0.0)
    return errors.max(axis=1)

"""Interpolation of plans: the planned observation at every environment step."""

from __future__ import annotations

from typing import Literal

import numpy as np

from diffplan.config import EnvConfig
from diffplan.diffusion.guidance import hermite
from diffplan.types import Plan

Interpolation = Literal["linear", "hermite"]


def interpolate(plan: Plan, env: EnvConfig, env_steps: np.ndarray, kind: Interpolation = "linear") -> np.ndarray:
    """Observations of a plan at given environment steps from its start.

    Args:
        plan: the plan.
        env: which observation columns are positions and velocities.
        env_steps: float[times], from 0; beyond the end of the plan its last step holds.
        kind: `linear` joins steps by straight lines in every column. `hermite` joins positions by the cubics that have
            the planned velocities at both ends, and takes the velocities from them; other columns, and all columns
            where there are no velocities, stay linear.

    Returns:
        float64[times, observation_dim].
    """
    observations = plan.observations.astype(np.float64)
    if plan.offsets is None:
        place = np.clip(np.asarray(env_steps, dtype=np.float64) / plan.stride, 0, plan.horizon - 1)
    else:
        place = np.interp(env_steps, plan.env_steps, np.arange(plan.horizon))
    before = np.minimum(place.astype(int), max(plan.horizon - 2, 0))
    s = (place - before)[:, None]
    first, last = observations[before], observations[np.minimum(before + 1, plan.horizon - 1)]
    result = first + s * (last - first)
    if kind == "hermite" and env.velocity_columns:
        assert env.step_seconds is not None  # known where velocities are
        seconds = plan.stride * env.step_seconds
        positions, velocities = list(env.position_columns), list(env.velocity_columns)
        start, end = first[:, positions], last[:, positions]
        leaving, arriving = first[:, velocities], last[:, velocities]
        result[:, positions] = hermite(s, start, end, seconds * leaving, seconds * arriving)
        # The derivative of the cubic.
        result[:, velocities] = (
            6 * s * (1 - s) * (end - start) / seconds + (1 - s) * (1 - 3 * s) * leaving - s * (2 - 3 * s) * arriving
        )
    return result

"""Warm starts: the remaining part of a plan that was followed for a while, to replan from.

Source: Janner et al. 2022, section 5.4 (warm-starting).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffplan.planning.interpolation import interpolate
from diffplan.planning.model import PlanningModel
from diffplan.types import Plan


def keep_rest(
    previous: Sequence[Plan],
    elapsed_env_steps: np.ndarray,
    model: PlanningModel,
    shortest: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The rest of plans, as plans of the same stride.

    Args:
        previous: the plan that was followed in each environment.
        elapsed_env_steps: environment steps since it was made, at least 0, int[batch].
        model: columns and stride of the plans.
        shortest: fewest steps of a rest, which keeps the time of arrival of its plan. None: plans keep their horizons,
            and their last step is repeated at the end.

    Returns:
        Transitions float32[batch, horizon, transition_dim] in environment units, 0 after the end of a plan, and the
        horizon of each, int[batch].
    """
    layout, stride = model.layout, model.stride
    lengths = np.array([plan.horizon for plan in previous])
    if shortest is not None:
        lengths = np.maximum(lengths - np.asarray(elapsed_env_steps) // stride, shortest)
    rest = np.zeros((len(previous), int(lengths.max()), layout.transition_dim), dtype=np.float32)
    offsets = None if model.offsets is None else np.array([0, *model.offsets])
    for i, (plan, elapsed, length) in enumerate(zip(previous, elapsed_env_steps, lengths, strict=True)):
        last = int(plan.env_steps[-1])
        if offsets is not None:
            times = elapsed + offsets
        elif shortest is None:
            times = elapsed + stride * np.arange(length)
        else:
            times = np.linspace(elapsed, max(last, elapsed), length)
        rest[i, :length, layout.observations] = interpolate(plan, model.env, times, "hermite")
        if plan.actions is not None:
            steps = np.searchsorted(plan.env_steps, times, side="right") - 1
            rest[i, :length, layout.actions] = plan.actions[steps]
        if plan.flags is not None:
            rest[i, :length, layout.flag] = np.interp(times, plan.env_steps, plan.flags)
    return rest, lengths

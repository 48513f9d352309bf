"""Warm starts: the remaining part of a plan that was followed for a while, to replan from.

Source: Janner et al. 2022, section 5.4 (warm-starting).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffplan.config import PlanningConfig
from diffplan.errors import PlanningError
from diffplan.planning.interpolation import interpolate
from diffplan.planning.model import PlanningModel
from diffplan.types import Plan


def check_previous(previous: Sequence[Plan], elapsed_env_steps: np.ndarray, num: int) -> None:
    """Raise `PlanningError` unless there are a plan and elapsed steps of at least 0 for each observation."""
    if not len(previous) == len(elapsed_env_steps) == num:
        raise PlanningError(
            f"replan: expected {num} plans and elapsed steps, one for each observation, got {len(previous)} and "
            f"{len(elapsed_env_steps)}"
        )
    if np.min(elapsed_env_steps, initial=0) < 0:
        raise PlanningError(f"replan: expected elapsed steps of at least 0, got {np.min(elapsed_env_steps)}")


def choose_steps(model: PlanningModel, settings: PlanningConfig, warm_start: float) -> list[int]:
    """The diffusion steps of a warm start, descending.

    Args:
        model: the diffusion model.
        settings: number and spacing of the steps from noise.
        warm_start: share of the diffusion steps that the rest is noised to.

    Raises:
        PlanningError: a share that is not in (0, 1].
    """
    if not 0 < warm_start <= 1:
        raise PlanningError(f"warm_start: expected a share of the noise in (0, 1], got {warm_start}")
    first = max(round(warm_start * model.num_diffusion_steps) - 1, 0)
    num_steps = min(max(round(warm_start * settings.sampling.num_steps), 1), first + 1)
    return model.denoiser.schedule.sampling_steps(num_steps, settings.sampling.step_spacing, first)


def keep_rest(
    previous: Sequence[Plan], elapsed_env_steps: np.ndarray, model: PlanningModel, *, has_goals: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The rest of plans, as plans of the same stride or the same offsets.

    A plan that ends on a goal gets shorter and keeps its time of arrival. Another one, and one whose steps are not
    evenly spaced, keeps its horizon, and its last step is repeated at the end.

    Args:
        previous: the plan that was followed in each environment.
        elapsed_env_steps: environment steps since it was made, at least 0, int[batch].
        model: columns and stride of the plans.
        has_goals: whether plans end on a goal, if the model can.

    Returns:
        Transitions float32[batch, horizon, transition_dim] in environment units, 0 after the end of a plan, and the
        horizon of each, int[batch].
    """
    layout, stride = model.layout, model.stride
    relative = layout.observation_columns(model.relative_columns)
    keeps_arrival = has_goals and model.end_columns and model.offsets is None
    shortest = model.shortest_horizon if keeps_arrival else None
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
        rest[i, :length, relative] -= rest[i, :1, relative]
        if plan.actions is not None:
            steps = np.searchsorted(plan.env_steps, times, side="right") - 1
            rest[i, :length, layout.actions] = plan.actions[steps]
        if plan.flags is not None:
            rest[i, :length, layout.flag] = np.interp(times, plan.env_steps, plan.flags)
    return rest, lengths

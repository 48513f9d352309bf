"""Whether a model can plan as its settings say."""

from __future__ import annotations

import math

from diffplan.config import PlanningConfig
from diffplan.errors import PlanningError
from diffplan.planning.model import PlanningModel


def check_settings(
    model: PlanningModel, settings: PlanningConfig, *, has_horizon_model: bool, has_inverse_dynamics: bool
) -> None:
    """Raises `PlanningError` for settings that a model with these companions cannot serve."""
    shortest = model.shortest_horizon
    if settings.min_horizon < shortest:
        raise PlanningError(
            f"planning.min_horizon: expected at least {shortest}, the shortest plan that this network can hold, "
            f"got {settings.min_horizon}"
        )
    steps = model.num_diffusion_steps
    if settings.num_sampling_steps > steps:
        raise PlanningError(
            f"planning.num_sampling_steps: expected at most {steps}, the diffusion steps of this model, "
            f"got {settings.num_sampling_steps}"
        )
    if settings.horizon_rule == "predict" and not has_horizon_model:
        raise PlanningError(
            "planning.horizon_rule: expected scan, for this checkpoint has no horizon model; fit one with "
            "`diffplan calibrate`"
        )
    if settings.controller == "inverse_dynamics" and not has_inverse_dynamics:
        raise PlanningError(
            "planning.controller: expected tracking or actions, for this checkpoint has no inverse dynamics"
        )
    if settings.controller == "actions" and not model.layout.action_dim:
        raise PlanningError(
            "planning.controller: expected tracking or inverse_dynamics, for plans of this model hold no actions; "
            "train with --windows.columns actions_observations"
        )
    if settings.controller == "actions":
        for name, value, needed in (("pace", settings.pace, 1), ("max_lag", settings.max_lag, 0)):
            if value != needed:
                raise PlanningError(
                    f"planning.{name}: expected {needed} with planning.controller actions, which take as long as "
                    f"planned, got {value}"
                )
    kind = model.condition
    for name, value, needed in (("target_return", settings.target_return, "returns"), ("task", settings.task, "task")):
        if value is not None and kind != needed:
            raise PlanningError(
                f"planning.{name}: expected none, for the network was trained with network.condition {kind}, "
                f"got {value}"
            )
    if settings.target_return is not None:
        if not math.isfinite(settings.target_return):
            raise PlanningError(f"planning.target_return: expected a finite number, got {settings.target_return}")
        if model.return_range is None:
            raise PlanningError(
                "planning.target_return: expected none, for the checkpoint does not say which returns its network was "
                "told; train it again"
            )
    if settings.task is not None and not 0 <= settings.task < model.num_tasks:
        raise PlanningError(
            f"planning.task: expected 0 to {model.num_tasks - 1}, the tasks of this model, got {settings.task}"
        )

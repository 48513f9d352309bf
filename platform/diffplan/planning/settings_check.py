"""Checks whether a model supports its planner settings."""

from __future__ import annotations

import math

from diffplan.config import Actions, HeadControl, InverseDynamics, PlanningConfig, Receding, Targets
from diffplan.errors import PlanningError
from diffplan.planning.model import PlanningModel
from diffplan.planning.selection import AVERAGES


def check_settings(
    model: PlanningModel,
    settings: PlanningConfig,
    *,
    has_horizon_model: bool,
    has_inverse_dynamics: bool,
    has_action_heads: bool,
) -> None:
    """Raise `PlanningError` for settings that a model with these companions does not support."""
    shortest = model.shortest_horizon
    if settings.horizon.min < shortest:
        raise PlanningError(
            f"planning.horizon.min: expected at least {shortest}, the shortest plan that this network can hold, "
            f"got {settings.horizon.min}"
        )
    steps = model.num_diffusion_steps
    if settings.sampling.num_steps > steps:
        raise PlanningError(
            f"planning.sampling.num_steps: expected at most {steps}, the diffusion steps of this model, "
            f"got {settings.sampling.num_steps}"
        )
    if settings.horizon.rule == "predict" and not has_horizon_model:
        raise PlanningError(
            "planning.horizon.rule: expected scan, for this checkpoint has no horizon model; fit one with "
            "`diffplan calibrate`"
        )
    if isinstance(settings.controller, InverseDynamics) and model.relative_columns:
        raise PlanningError(
            "planning.controller: expected another than inverse_dynamics, for it compares observations with plans, "
            f"which count columns {list(model.relative_columns)} from their first step (windows.relative_columns)"
        )
    if isinstance(settings.controller, InverseDynamics) and not has_inverse_dynamics:
        raise PlanningError(
            "planning.controller: expected tracking or actions, for this checkpoint has no inverse dynamics"
        )
    if isinstance(settings.controller, HeadControl) and not has_action_heads:
        raise PlanningError(
            "planning.controller: expected inverse_dynamics or actions, for this checkpoint has no action heads; fit "
            "them with `diffplan calibrate`"
        )
    if isinstance(settings.controller, HeadControl) and settings.replanning != Receding(
        interval=1, warm_start=getattr(settings.replanning, "warm_start", 0.0)
    ):
        raise PlanningError(
            "planning.replanning: expected receding with interval 1, for the action of an action head is for one step, "
            f"got {settings.replanning}"
        )
    if isinstance(settings.controller, Actions) and not model.layout.action_dim:
        raise PlanningError(
            "planning.controller: expected tracking or inverse_dynamics, for plans of this model hold no actions; "
            "train with --windows.columns actions_observations"
        )
    if settings.selection.refine is not None and not model.known_columns:
        raise PlanningError(
            "planning.selection.refine: expected none, for this model has no columns that can be fixed at the end of a "
            "plan; train with --windows.known_columns"
        )
    if settings.selection.refine is not None and settings.selection.rule in AVERAGES:
        raise PlanningError(
            "planning.selection.rule: expected consistency or guide with planning.selection.refine, for an average of "
            f"drafts has no end of its own, got {settings.selection.rule}"
        )
    if isinstance(settings.controller, Targets):
        _check_targets(model, settings.controller)
    kind = model.condition
    asked = settings.condition
    for name, value, needed in (("target_return", asked.target_return, "returns"), ("task", asked.task, "task")):
        if value is not None and kind != needed:
            raise PlanningError(
                f"planning.condition.{name}: expected none, for the network was trained with network.condition {kind}, "
                f"got {value}"
            )
    if asked.target_return is not None:
        if not math.isfinite(asked.target_return):
            raise PlanningError(
                f"planning.condition.target_return: expected a finite number, got {asked.target_return}"
            )
        if model.return_range is None:
            raise PlanningError(
                "planning.condition.target_return: expected none, for the checkpoint does not say which returns its "
                "network was told; train it again"
            )
    if asked.task is not None and not 0 <= asked.task < model.num_tasks:
        raise PlanningError(
            f"planning.condition.task: expected 0 to {model.num_tasks - 1}, the tasks of this model, got {asked.task}"
        )


def _check_targets(model: PlanningModel, controller: Targets) -> None:
    columns, num = controller.columns, model.layout.observation_dim
    if not columns or max(columns) >= num:
        raise PlanningError(
            f"planning.controller.columns: expected an observation column from 0 to {num - 1} for each column of an "
            f"action, got {list(columns)}"
        )
    if relative := sorted(set(columns) & set(model.relative_columns)):
        raise PlanningError(
            f"planning.controller.columns: expected columns with values as observed, got {relative}, which plans count "
            "from their first step (windows.relative_columns)"
        )

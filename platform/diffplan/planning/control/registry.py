"""Controllers by name or import path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffplan.config import EnvConfig, InverseDynamics, PlanningConfig, Targets, Tracking
from diffplan.errors import ConfigError, unknown_name
from diffplan.importing import is_import_path, load_object
from diffplan.planning.control.controllers import (
    ActionController,
    ActionHeadController,
    Controller,
    InverseDynamicsController,
    TrackingController,
)
from diffplan.planning.control.target_controller import TargetController

PredictActions = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(observations, next observations) -> actions, all in environment units, float[batch, …]."""


@dataclass(frozen=True)
class ControllerContext:
    """What a controller may use to make its actions.

    Attributes:
        env: which observation columns are positions and velocities, as far as known.
        settings: how to plan and act.
        inverse_dynamics: predicts actions; None if the checkpoint has no such companion.
        action_low: lower bounds of the actions, -inf for none.
        action_high: upper bounds of the actions, inf for none.
    """

    env: EnvConfig
    settings: PlanningConfig
    inverse_dynamics: PredictActions | None = None
    action_low: np.ndarray | float = -1.0
    action_high: np.ndarray | float = 1.0


MakeController = Callable[[ControllerContext], Controller]
"""A function, or a class, that makes a controller."""


def _make_tracking(context: ControllerContext) -> Controller:
    settings = context.settings.controller
    assert isinstance(settings, Tracking)
    return TrackingController(
        context.env,
        settings.position_gain,
        settings.velocity_gain,
        context.action_low,
        context.action_high,
        settings.interpolation,
        settings.pace,
        settings.max_lag,
    )


def _make_inverse_dynamics(context: ControllerContext) -> Controller:
    assert context.inverse_dynamics is not None  # the planner refuses these settings without the companion
    settings = context.settings.controller
    assert isinstance(settings, InverseDynamics)
    return InverseDynamicsController(
        context.env,
        context.inverse_dynamics,
        context.action_low,
        context.action_high,
        settings.interpolation,
        settings.pace,
        settings.max_lag,
    )


def _make_actions(context: ControllerContext) -> Controller:
    return ActionController(context.env, context.action_low, context.action_high)


def _make_targets(context: ControllerContext) -> Controller:
    settings = context.settings.controller
    assert isinstance(settings, Targets)
    return TargetController(
        context.env,
        settings.columns,
        context.action_low,
        context.action_high,
        settings.interpolation,
        settings.pace,
        settings.max_lag,
    )


def _make_action_head(context: ControllerContext) -> Controller:
    return ActionHeadController(context.action_low, context.action_high)


CONTROLLERS: dict[str, MakeController] = {
    "tracking": _make_tracking,
    "inverse_dynamics": _make_inverse_dynamics,
    "actions": _make_actions,
    "targets": _make_targets,
    "action_head": _make_action_head,
}
"""The built-in controllers; tasks add their own."""


def list_missing(controller: object) -> list[str]:
    """Methods that a controller, or a class of controllers, must have and this one does not."""
    return [name for name in ("reset", "replace", "act", "has_ended") if not hasattr(controller, name)]


def make_controller(
    name_or_path: str, context: ControllerContext, controllers: Mapping[str, MakeController] | None = None
) -> Controller:
    """A controller by its name or its import path, such as `my_module:MyController`.

    Args:
        name_or_path: a name in `CONTROLLERS` or of the task, or the import path of a function or class that makes one.
        context: passed to the controller's factory.
        controllers: controllers of the task by name.

    Raises:
        ConfigError: no controller of that name (the message suggests the nearest), nothing that can be imported there,
            or it does not make a controller.
        PlanningError: the controller does not support this environment or model.
    """
    known = {**CONTROLLERS, **(controllers or {})}
    if name_or_path in known:
        return known[name_or_path](context)
    if not is_import_path(name_or_path):
        raise ConfigError(unknown_name("planning.controller", name_or_path, known))
    make = load_object(name_or_path, "planning.controller")
    if not callable(make):
        raise ConfigError(
            f"planning.controller: expected a class or a function of a ControllerContext at {name_or_path}, got "
            f"{type(make).__name__}"
        )
    controller: Any = make(context)
    missing = list_missing(controller)
    if missing:
        raise ConfigError(
            f"planning.controller: expected a controller from {name_or_path}, got {type(controller).__name__} without "
            f"{', '.join(missing)}; PlanFollower in diffplan.planning.control.controllers has all but the actions"
        )
    return controller

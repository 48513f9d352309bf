"""Planners from checkpoint directories, with the companions that were fitted to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from diffplan.checkpoint import Checkpoint, load_checkpoint, load_companion, save_companion
from diffplan.config import PlanningConfig
from diffplan.diffusion.denoiser import Denoiser
from diffplan.errors import CheckpointError
from diffplan.networks.factory import make_network
from diffplan.planning.action_model import ActionModel
from diffplan.planning.horizon_model import HorizonModel
from diffplan.planning.planner import Planner

HORIZON_MODEL, INVERSE_DYNAMICS = "horizon_model", "inverse_dynamics"
"""Names of the companions."""


def load_planner(path: str | Path, settings: PlanningConfig | None = None, *, companions: bool = True) -> Planner:
    """A planner from a checkpoint directory.

    Args:
        path: the checkpoint.
        settings: how to plan; None for the settings of the checkpoint's config.
        companions: whether to load the small models that `diffplan calibrate` fitted, where there are any.

    Raises:
        CheckpointError: no checkpoint there, or a damaged one.
        PlanningError: settings that the model cannot serve.
    """
    checkpoint = load_checkpoint(path)
    network = make_network(checkpoint.layout.transition_dim, checkpoint.config.network)
    try:
        network.load_state_dict(checkpoint.weights)
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: the weights belong to another network ({first}); train it again") from None
    action_model = _load_action_model(checkpoint) if companions else None
    return Planner(
        checkpoint.config,
        checkpoint.layout,
        Denoiser.make(network, checkpoint.config.diffusion),
        checkpoint.normalizer,
        settings,
        horizon_model=_load_horizon_model(checkpoint) if companions else None,
        inverse_dynamics=None if action_model is None else action_model.predict,
        return_range=checkpoint.return_range,
    )


def save_horizon_model(path: str | Path, model: HorizonModel) -> None:
    """Add a horizon model to a checkpoint."""
    save_companion(path, HORIZON_MODEL, model.state_dict(), {"horizons": list(model.horizons)})


def save_action_model(path: str | Path, model: ActionModel) -> None:
    """Add inverse dynamics to a checkpoint."""
    save_companion(path, INVERSE_DYNAMICS, model.state_dict(), {})


def _load_horizon_model(checkpoint: Checkpoint) -> HorizonModel | None:
    found = load_companion(checkpoint.path, HORIZON_MODEL)
    if found is None:
        return None
    weights, settings = found
    goal_dim = len(checkpoint.config.env.position_columns)
    return _filled(
        lambda: HorizonModel(
            checkpoint.layout.observation_dim, goal_dim, tuple(settings["horizons"]), len(weights["layers.0.bias"])
        ),
        weights,
        checkpoint,
    )


def _load_action_model(checkpoint: Checkpoint) -> ActionModel | None:
    found = load_companion(checkpoint.path, INVERSE_DYNAMICS)
    if found is None:
        return None
    weights, _ = found
    return _filled(
        lambda: ActionModel(
            checkpoint.layout.observation_dim, len(weights["action_center"]), len(weights["network.layers.0.bias"])
        ),
        weights,
        checkpoint,
    )


Model = TypeVar("Model", bound=torch.nn.Module)


def _filled(make: Callable[[], Model], weights: dict[str, torch.Tensor], checkpoint: Checkpoint) -> Model:
    try:
        model = make()
        model.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(
            f"{checkpoint.path}: a companion belongs to another model ({first}); run `diffplan calibrate` again"
        ) from None
    return model.eval()

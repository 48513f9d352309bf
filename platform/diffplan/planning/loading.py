"""Planners from checkpoint directories, with the companions that were fitted to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from diffplan.checkpoint import Checkpoint, load_checkpoint, load_companion, save_companion
from diffplan.config import PlanningConfig
from diffplan.diffusion.denoiser import Denoiser
from diffplan.diffusion.guidance import Guide
from diffplan.diffusion.guides import Value
from diffplan.errors import CheckpointError, ConfigError, PlanningError, describe_error
from diffplan.networks.factory import make_network
from diffplan.networks.policy_network import PolicyNetwork
from diffplan.networks.recorded import record_passes
from diffplan.networks.value_network import ValueNetwork
from diffplan.planning.cloned_policy import ClonedPolicy
from diffplan.planning.companions.action_head import READS, ActionHead, ActionHeads, find_steps
from diffplan.planning.companions.action_model import ActionModel
from diffplan.planning.companions.horizon_model import HorizonModel
from diffplan.planning.companions.support import Support
from diffplan.planning.companions.value_model import JUDGES, LearnedValue, ValueModel
from diffplan.planning.planner import Planner

Model = TypeVar("Model", bound=torch.nn.Module)
HORIZON_MODEL, INVERSE_DYNAMICS, SUPPORT, VALUE = "horizon_model", "inverse_dynamics", "support", "value"
ACTION_HEADS = "action_heads"
"""Names of the companions."""


def load_planner(
    path: str | Path,
    settings: PlanningConfig | None = None,
    *,
    companions: bool = True,
    device: torch.device | str = "cpu",
) -> Planner:
    """A planner from a checkpoint directory.

    Args:
        path: the checkpoint.
        settings: how to plan; None for the settings of the checkpoint's config.
        companions: whether to load the small models that `diffplan calibrate` fitted, where there are any.
        device: where the model denoises, such as `cuda`. The companions stay on the CPU.

    Raises:
        ConfigError: no such device on this machine.
        CheckpointError: no checkpoint there, or a damaged one.
        PlanningError: settings that the model does not support.
    """
    device = _find_device(device)
    checkpoint = _load(path, "diffusion")
    network = _trained(
        lambda: make_network(
            checkpoint.layout.transition_dim,
            checkpoint.config.network,
            checkpoint.config.windows.max_horizon,
            len(checkpoint.config.windows.known_columns),
        ),
        checkpoint,
    )
    settings = checkpoint.config.planning if settings is None else settings
    value = _choose_value(settings.guidance.value, checkpoint, device, companions=companions)
    action_model = _load_action_model(checkpoint) if companions else None
    return Planner(
        checkpoint.config,
        checkpoint.layout,
        Denoiser.make(record_passes(network, device), checkpoint.config.diffusion),
        checkpoint.normalizer,
        settings,
        horizon_model=_load_horizon_model(checkpoint) if companions else None,
        inverse_dynamics=None if action_model is None else action_model.predict,
        support=_load_support(checkpoint) if companions else None,
        return_range=checkpoint.return_range,
        value=value,
        action_heads=_load_action_heads(checkpoint) if companions else None,
        device=device,
    )


def _find_device(device: torch.device | str) -> torch.device:
    """A device that tensors can be made on."""
    try:
        return torch.zeros(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises the latter
        first = str(error).splitlines()[0]
        raise ConfigError(
            f"device: expected one of this machine, such as cpu or cuda, got {device} ({first})"
        ) from None


def load_policy(path: str | Path) -> ClonedPolicy:
    """A policy from the checkpoint of a run with `training.objective` `behavior_cloning`.

    Raises:
        CheckpointError: no checkpoint there, a damaged one, or one of another objective.
    """
    checkpoint = _load(path, "behavior_cloning")
    layout, config = checkpoint.layout, checkpoint.config
    goal_columns = config.goal_columns
    network = _trained(
        lambda: PolicyNetwork(layout.observation_dim, len(goal_columns), layout.action_dim, config.network.hidden_dim),
        checkpoint,
    )
    return ClonedPolicy(network, layout, checkpoint.normalizer, goal_columns, config.windows.relative_columns)


def load_action_model(path: str | Path) -> ActionModel:
    """Inverse dynamics from the checkpoint of a run with `training.objective` `inverse_dynamics`.

    `save_action_model` makes it a companion of a diffuser.

    Raises:
        CheckpointError: no checkpoint there, a damaged one, or one of another objective.
    """
    checkpoint = _load(path, "inverse_dynamics")
    layout = checkpoint.layout
    network = _trained(
        lambda: ActionModel(layout.observation_dim, layout.action_dim, checkpoint.config.network.hidden_dim),
        checkpoint,
    )
    return network.in_environment_units(layout, checkpoint.normalizer)


def _choose_value(value: str | None, diffuser: Checkpoint, device: torch.device, *, companions: bool) -> Guide | None:
    """The value of `planning.guidance.value`: fitted by `diffplan calibrate`, or from another checkpoint."""
    if value is None:
        return None
    if value not in JUDGES:
        return _load_value(value, diffuser, device)
    if not companions:
        return None
    windows = diffuser.config.windows
    if windows.offsets is not None and value in ("actions", "observations"):
        raise PlanningError(
            "planning.value: expected last or plan, for plans of this model have steps that are not evenly spaced, got "
            f"{value}"
        )
    if value == "plan" and windows.min_horizon != windows.max_horizon:
        raise PlanningError(
            "planning.value: expected observations or last, for plans of this model have several horizons, got plan"
        )
    if value == "actions" and (diffuser.layout.action_dim == 0 or windows.stride > 1):
        raise PlanningError(
            "planning.value: expected observations, for plans of this model do not hold the action of every "
            "environment step, got actions"
        )
    model = _load_value_model(diffuser)
    if model is None:
        raise PlanningError(
            f"planning.value: expected none, for this checkpoint has no value, got {value}; fit one with "
            f"`diffplan calibrate {diffuser.path}`"
        )
    if value == "plan" and model.offsets is None:
        raise PlanningError(
            "planning.value: expected actions, observations or last, for the value of this checkpoint was fitted "
            f"without whole plans, got plan; run `diffplan calibrate {diffuser.path} --planning.guidance.value plan`"
        )
    return LearnedValue(model.requires_grad_(False).to(device), value)


def _load_value(path: str | Path, diffuser: Checkpoint, device: torch.device) -> Value:
    """A value function that fits a diffuser: it has the same columns, model space and noise schedule."""
    checkpoint = _load(path, "value")
    for name, own, other in (
        ("columns", checkpoint.layout, diffuser.layout),
        ("normalization", checkpoint.normalizer.to_json(), diffuser.normalizer.to_json()),
        ("noise schedule", _noise(checkpoint), _noise(diffuser)),
    ):
        if own != other:
            raise CheckpointError(
                f"planning.value: expected the {name} of {diffuser.path}, got others at {path}; train both on the same "
                "snapshot of a dataset with the same windows and diffusion"
            )
    network = _trained(lambda: ValueNetwork(checkpoint.layout.transition_dim, checkpoint.config.network), checkpoint)
    return Value(network.requires_grad_(False).to(device))


def _noise(checkpoint: Checkpoint) -> tuple[str, int]:
    return checkpoint.config.diffusion.schedule, checkpoint.config.diffusion.num_diffusion_steps


def _load(path: str | Path, objective: str) -> Checkpoint:
    """A checkpoint of a run with a given objective."""
    checkpoint = load_checkpoint(path)
    got = checkpoint.config.training.objective
    if got != objective:
        raise CheckpointError(
            f"{path}: expected a checkpoint of training.objective {objective}, got {got}; take another, or train one"
        )
    return checkpoint


def save_horizon_model(path: str | Path, model: HorizonModel) -> None:
    """Add a horizon model to a checkpoint."""
    save_companion(path, HORIZON_MODEL, model.state_dict(), {"horizons": list(model.horizons)})


def save_action_model(path: str | Path, model: ActionModel) -> None:
    """Add inverse dynamics to a checkpoint."""
    save_companion(path, INVERSE_DYNAMICS, model.state_dict(), {})


def save_action_heads(path: str | Path, heads: ActionHeads) -> None:
    """Add action heads to a checkpoint."""
    save_companion(path, ACTION_HEADS, heads.state_dict(), {})


def save_support(path: str | Path, support: Support) -> None:
    """Add the support of the data to a checkpoint."""
    save_companion(path, SUPPORT, {"points": torch.from_numpy(support.points)}, {})


def save_value(path: str | Path, model: ValueModel) -> None:
    """Add a value to a checkpoint."""
    settings = {
        "discount": model.discount,
        "stride": model.stride,
        "offsets": None if model.offsets is None else list(model.offsets),
        "has_flags": model.has_flags,
    }
    save_companion(path, VALUE, model.state_dict(), settings)


def _load_value_model(checkpoint: Checkpoint) -> ValueModel | None:
    found = load_companion(checkpoint.path, VALUE)
    if found is None:
        return None
    weights, settings = found
    model = _filled(lambda: ValueModel.from_weights(weights, **settings), weights, checkpoint)
    layout, windows = checkpoint.layout, checkpoint.config.windows
    stride = windows.stride if windows.offsets is None else 1
    sizes = len(model.observation_center), model.stride, model.judges_actions
    wanted = layout.observation_dim, stride, layout.action_dim > 0
    if sizes != wanted or layout.action_dim not in (0, len(model.action_center)):
        raise CheckpointError(
            f"{checkpoint.path}: a companion belongs to another model (a value of plans of other columns or strides); "
            "run `diffplan calibrate` again"
        )
    return model


def _load_support(checkpoint: Checkpoint) -> Support | None:
    found = load_companion(checkpoint.path, SUPPORT)
    if found is None:
        return None
    points = found[0].get("points", torch.zeros(0))
    if points.ndim != 2 or points.shape[1] != len(checkpoint.config.env.position_columns) or not len(points):
        raise CheckpointError(
            f"{checkpoint.path}: a companion belongs to another model (places of shape {tuple(points.shape)}); run "
            "`diffplan calibrate` again"
        )
    return Support(points.numpy())


def _load_horizon_model(checkpoint: Checkpoint) -> HorizonModel | None:
    found = load_companion(checkpoint.path, HORIZON_MODEL)
    if found is None:
        return None
    weights, settings = found
    goal_columns = checkpoint.config.goal_value_columns
    return _filled(
        lambda: HorizonModel(
            checkpoint.layout.observation_dim,
            goal_columns,
            tuple(settings["horizons"]),
            len(weights["layers.0.bias"]),
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


def _load_action_heads(checkpoint: Checkpoint) -> ActionHeads | None:
    found = load_companion(checkpoint.path, ACTION_HEADS)
    if found is None:
        return None
    weights, horizon = found[0], checkpoint.config.windows.max_horizon

    def make() -> ActionHeads:
        heads = {}
        for reads in READS:
            own = {name.removeprefix(f"{reads}."): value for name, value in weights.items() if name.startswith(reads)}
            heads[reads] = ActionHead.from_weights(own, find_steps(reads, horizon))
        return ActionHeads(heads)

    heads = _filled(make, weights, checkpoint)
    if len(heads.find("next").observation_center) != checkpoint.layout.observation_dim:
        raise CheckpointError(
            f"{checkpoint.path}: a companion belongs to another model (action heads of other observations); run "
            "`diffplan calibrate` again"
        )
    return heads


def _trained(make: Callable[[], Model], checkpoint: Checkpoint) -> Model:
    """A network with the weights of a checkpoint."""
    try:
        return _fill(make, checkpoint.weights)
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{checkpoint.path}: the weights belong to another network ({describe_error(error)}); train it again"
        ) from None


def _filled(make: Callable[[], Model], weights: dict[str, torch.Tensor], checkpoint: Checkpoint) -> Model:
    """A companion with its weights."""
    try:
        return _fill(make, weights)
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(
            f"{checkpoint.path}: a companion belongs to another model ({describe_error(error)}); run "
            "`diffplan calibrate` again"
        ) from None


def _fill(make: Callable[[], Model], weights: dict[str, torch.Tensor]) -> Model:
    """A network with weights; raises `ValueError` or `RuntimeError` if they are not its own.

    Their shapes are compared with those of a network without memory first, because a config may ask for any size.
    """
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in make().state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            raise ValueError(f"{name}: expected {expected.get(name, 'none')}, got {found.get(name, 'none')}")
    network = make()
    network.load_state_dict(weights)
    return network.eval()

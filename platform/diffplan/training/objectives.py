"""Training objectives: the network, the windows and the loss. The loop depends only on this interface.

* `diffusion`: a denoiser of trajectories (Janner et al. 2022, eq. 1).
* `value`: the discounted return from the first step of a noisy trajectory, a guide for plans (section 3.2).
* `inverse_dynamics`: the action between two observations, for plans without actions (Ajay et al. 2023, eq. 8).
* `behavior_cloning`: the action of the data on the way to a later observation, a baseline.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffplan.config import Config, WindowConfig
from diffplan.data.windows.conditions import Conditions
from diffplan.diffusion.constraints import endpoint_mask
from diffplan.diffusion.denoiser import Denoiser
from diffplan.diffusion.loss import compute_loss, make_loss_weights
from diffplan.diffusion.schedule import make_schedule
from diffplan.diffusion.value_loss import compute_value_loss
from diffplan.layout import Layout
from diffplan.networks.factory import make_network
from diffplan.networks.policy_network import PolicyNetwork
from diffplan.networks.value_network import ValueNetwork
from diffplan.planning.companions.action_model import ActionModel
from diffplan.training.batch import SamplesWindows, TrainingBatch
from diffplan.training.conditions import make_reader_conditions


class Objective(Protocol):
    """See the module."""

    windows: WindowConfig
    """The windows of the training examples."""
    conditions: Conditions
    """The conditions that readers return with the windows."""
    recordable: bool
    """Whether passes launch the same kernels for every batch of a shape, so that they can be recorded."""

    def make_network(self, layout: Layout) -> nn.Module:
        """A network with fresh weights."""
        ...

    def prepare(self, network: nn.Module, batches: SamplesWindows) -> None:
        """Set statistics of the data that are not trained, before the first step."""
        ...

    def compute_loss(self, model: nn.Module, layout: Layout, batch: TrainingBatch) -> Tensor:
        """Loss of a batch, all on one device; `model` is the network or a wrapper of it."""
        ...


class DiffusionObjective:
    """Fits a denoiser; see `compute_loss` of `diffplan.diffusion.loss`."""

    def __init__(self, config: Config) -> None:
        self.windows = config.windows
        self.conditions = make_reader_conditions(config)
        self.recordable = True
        self._config = config
        self._fixed: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def make_network(self, layout: Layout) -> nn.Module:
        """The network of the config."""
        network = make_network(
            layout.transition_dim, self._config.network, self.windows.max_horizon, len(self.windows.known_columns)
        )
        self.denoiser = Denoiser.make(network, self._config.diffusion)
        return network

    def prepare(self, network: nn.Module, batches: SamplesWindows) -> None:
        """Nothing."""

    def compute_loss(self, model: nn.Module, layout: Layout, batch: TrainingBatch) -> Tensor:
        """Weighted squared error of the prediction."""
        mask, weights = self._get_fixed(layout, batch.x_clean.shape[1], batch.x_clean.device)
        known = None
        if batch.known is not None:
            columns = layout.observation_columns(self.windows.known_columns)
            known = batch.known[:, None].expand(-1, len(columns))
            mask = mask.repeat(len(known), 1, 1)
            mask[:, -1, columns] = known
        return compute_loss(
            model,
            self.denoiser,
            batch.x_clean,
            batch.noise,
            batch.diffusion_step,
            mask,
            weights,
            batch.mask,
            condition=batch.condition,
            known=known,
            row_weights=batch.weight,
            snr_weighting=self._config.diffusion.snr_weighting,
        )

    def _get_fixed(self, layout: Layout, horizon: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mask of the known entries of a trajectory, and the weights of all entries; cached for each horizon."""
        if (horizon, device) not in self._fixed:
            known = _known(self._config, layout, horizon)
            weights = make_loss_weights(horizon, layout.transition_dim, layout.action_dim, self._config.diffusion)
            self._fixed[horizon, device] = known.to(device), weights.to(device)
        return self._fixed[horizon, device]


class ValueObjective:
    """Fits a value function to returns, normalised by `TrainingBatches.return_range`."""

    def __init__(self, config: Config) -> None:
        training = config.training
        self.windows = config.windows
        self.conditions = Conditions(
            returns_to_go=True, discount=training.discount, termination_penalty=training.termination_penalty
        )
        self.recordable = self.windows.padding not in (
            "short",
            "end",
        )  # else values depend on lengths, read by the host
        self._config = config
        self._known: dict[tuple[int, torch.device], Tensor] = {}
        self._schedule = make_schedule(config.diffusion.schedule, config.diffusion.num_diffusion_steps)

    def make_network(self, layout: Layout) -> nn.Module:
        """The value network of Janner et al. 2022."""
        return ValueNetwork(layout.transition_dim, self._config.network)

    def prepare(self, network: nn.Module, batches: SamplesWindows) -> None:
        """Nothing."""

    def compute_loss(self, model: nn.Module, layout: Layout, batch: TrainingBatch) -> Tensor:
        """Squared error of the values of noisy trajectories."""
        assert batch.target is not None
        key = horizon, device = batch.x_clean.shape[1], batch.x_clean.device
        if key not in self._known:
            self._known[key] = _known(self._config, layout, horizon).to(device)
        known = self._known[key]
        return compute_value_loss(
            model, self._schedule, batch.x_clean, batch.noise, batch.diffusion_step, known, batch.target, batch.mask
        )


class InverseDynamicsObjective:
    """Fits inverse dynamics to neighbouring environment steps; the error is in standard deviations of actions."""

    def __init__(self, config: Config) -> None:
        self.windows = _pairs(config)
        self.conditions = Conditions()
        self.recordable = True
        self._hidden_dim = config.network.hidden_dim

    def make_network(self, layout: Layout) -> nn.Module:
        """A network for actions in model space."""
        return ActionModel(layout.observation_dim, layout.action_dim, self._hidden_dim)

    def prepare(self, network: nn.Module, batches: SamplesWindows) -> None:
        """Measure the scale of changes of observations in one step; the network normalises changes by it."""
        assert isinstance(network, ActionModel)
        x = batches.sample(_NUM_MEASURED, 2)[:, :, batches.layout.observations]
        network.change_scale.copy_((x[:, 1] - x[:, 0]).std(dim=0).clamp(min=1e-6))

    def compute_loss(self, model: nn.Module, layout: Layout, batch: TrainingBatch) -> Tensor:
        """Mean squared error of the actions."""
        observations, actions = batch.x_clean[:, :, layout.observations], batch.x_clean[:, 0, layout.actions]
        return F.mse_loss(model(observations[:, 0], observations[:, 1]), actions)


class BehaviorCloningObjective:
    """Fits a policy to the actions of the data, conditioned on later observations if plans have goals."""

    def __init__(self, config: Config) -> None:
        self.windows = _pairs(config)
        self._goal_columns = config.goal_columns
        self.conditions = Conditions(goal="future" if self._goal_columns else "none")
        self.recordable = True
        self._hidden_dim = config.network.hidden_dim

    def make_network(self, layout: Layout) -> nn.Module:
        """A perceptron."""
        return PolicyNetwork(layout.observation_dim, len(self._goal_columns), layout.action_dim, self._hidden_dim)

    def prepare(self, network: nn.Module, batches: SamplesWindows) -> None:
        """Nothing."""

    def compute_loss(self, model: nn.Module, layout: Layout, batch: TrainingBatch) -> Tensor:
        """Mean squared error of the actions, in standard deviations."""
        observations, actions = batch.x_clean[:, 0, layout.observations], batch.x_clean[:, 0, layout.actions]
        # By slices, because an index list would be copied to the device each time.
        goals = None if batch.goal is None else torch.stack([batch.goal[:, c] for c in self._goal_columns], dim=1)
        return F.mse_loss(model(observations, goals), actions)


OBJECTIVES: dict[str, type[Objective]] = {
    "diffusion": DiffusionObjective,
    "value": ValueObjective,
    "inverse_dynamics": InverseDynamicsObjective,
    "behavior_cloning": BehaviorCloningObjective,
}
"""Objectives by their names in the config."""
_NUM_MEASURED = 8192


def make_objective(config: Config) -> Objective:
    """The objective of a config."""
    return OBJECTIVES[config.training.objective](config)  # type: ignore[call-arg]


def _known(config: Config, layout: Layout, horizon: int) -> Tensor:
    """Mask of the entries that are known in planning: the whole first step, and the goal at the last."""
    start = [*range(layout.action_dim, layout.action_dim + layout.observation_dim)]
    if layout.has_flag:
        start.append(layout.flag)
    return endpoint_mask(horizon, layout.transition_dim, start, layout.observation_columns(config.goal_columns))


def _pairs(config: Config) -> WindowConfig:
    """Windows of two neighbouring environment steps, with actions."""
    return dataclasses.replace(
        config.windows,
        min_horizon=2,
        max_horizon=2,
        horizon_multiple=1,
        stride=1,
        offsets=None,
        deltas=False,
        columns="actions_observations",
        normalization="gaussian",
        padding="skip",
    )

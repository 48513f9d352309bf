"""Inverse dynamics in environment units: which action leads from one observation to the next."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from diffplan.data.windows.normalization import Normalizer
from diffplan.layout import Layout
from diffplan.networks.inverse_dynamics import InverseDynamics


class ActionModel(nn.Module):
    """Inverse dynamics, with the scales of observations and actions.

    The network gets the first observation, normalised, and the change to the second in standard deviations of such
    changes, because one step changes an observation by only a small part of its range.

    Args:
        observation_dim: size of an observation.
        action_dim: size of an action.
        hidden_dim: width of the network.
    """

    observation_center: Tensor
    observation_scale: Tensor
    change_scale: Tensor
    action_center: Tensor
    action_scale: Tensor

    def __init__(self, observation_dim: int, action_dim: int, hidden_dim: int = 128) -> None:
        super().__init__()
        self.network = InverseDynamics(observation_dim, action_dim, hidden_dim)
        for name, size in (("observation", observation_dim), ("action", action_dim)):
            self.register_buffer(f"{name}_center", torch.zeros(size))
            self.register_buffer(f"{name}_scale", torch.ones(size))
        self.register_buffer("change_scale", torch.ones(observation_dim))

    def forward(self, observations: Tensor, next_observations: Tensor) -> Tensor:
        """Actions, float[batch, action_dim]."""
        first = (observations - self.observation_center) / self.observation_scale
        change = (next_observations - observations) / self.change_scale
        return self.network(first, change) * self.action_scale + self.action_center

    @torch.no_grad()
    def predict(self, observations: np.ndarray, next_observations: np.ndarray) -> np.ndarray:
        """Actions float32[batch, action_dim] that lead from observations to the next ones."""
        first, second = (torch.from_numpy(np.asarray(a, dtype=np.float32)) for a in (observations, next_observations))
        return self(first, second).numpy()

    @torch.no_grad()
    def in_environment_units(self, layout: Layout, normalizer: Normalizer) -> ActionModel:
        """This model, trained in the model space of a normalizer, as one for environment units; changed in place."""
        center, scale = torch.from_numpy(normalizer.center), torch.from_numpy(normalizer.scale)
        self.observation_center.copy_(center[layout.observations])
        self.observation_scale.copy_(scale[layout.observations])
        self.change_scale.mul_(scale[layout.observations])
        self.action_center.copy_(center[layout.actions])
        self.action_scale.copy_(scale[layout.actions])
        return self.eval()

"""A policy: the action for an observation and, if there is one, a goal."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffplan.networks.layers import Layers


class PolicyNetwork(nn.Module):
    """A multilayer perceptron of three hidden layers.

    Args:
        observation_dim: columns of an observation.
        goal_dim: columns of a goal; 0 for none.
        action_dim: columns of an action.
        hidden_dim: units of a hidden layer.
    """

    def __init__(self, observation_dim: int, goal_dim: int, action_dim: int, hidden_dim: int = 256) -> None:
        super().__init__()
        self.layers = Layers(
            nn.Linear(observation_dim + goal_dim, hidden_dim),
            nn.LayerNorm(hidden_dim),
            nn.Mish(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.LayerNorm(hidden_dim),
            nn.Mish(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.Mish(),
            nn.Linear(hidden_dim, action_dim),
        )

    def forward(
        self, observation: Float[Tensor, "batch observation"], goal: Float[Tensor, "batch goal"] | None = None
    ) -> Float[Tensor, "batch action"]:
        """Actions, all in model space."""
        return self.layers(observation if goal is None else torch.cat([observation, goal], dim=-1))

"""Inverse dynamics: the action between two observations, for planners whose plans have observations only.

Source: Ajay et al. 2023, section 3.2, equation 8; layer normalisation is an addition.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class InverseDynamics(nn.Module):
    """A multilayer perceptron of two hidden layers.

    Args:
        observation_dim: columns of an observation.
        action_dim: columns of an action.
        hidden_dim: units of a hidden layer.
    """

    def __init__(self, observation_dim: int, action_dim: int, hidden_dim: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * observation_dim, hidden_dim),
            nn.LayerNorm(hidden_dim),
            nn.Mish(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.LayerNorm(hidden_dim),
            nn.Mish(),
            nn.Linear(hidden_dim, action_dim),
        )

    def forward(
        self, observation: Float[Tensor, "*batch observation"], next_observation: Float[Tensor, "*batch observation"]
    ) -> Float[Tensor, "*batch action"]:
        """The action between two observations, all in model space."""
        return self.layers(torch.cat([observation, next_observation], dim=-1))

"""Action heads: the action at the first step of a plan, from its first observation and later ones.

With the next observation alone this is inverse dynamics. The observation at the end of a plan tells less of the present
action, but it is planned with less relative error, so the action changes less from one plan to the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from diffplan.networks.layers import Layers

Reads = Literal["next", "far", "all"]
READS: tuple[Reads, ...] = ("next", "far", "all")
NOISE = {"next": 0.2, "far": 0.3, "all": 0.3}
"""Noise on the planned observations in training, in standard deviations of their changes: plans are not exact."""


def find_steps(reads: Reads, horizon: int) -> tuple[int, ...]:
    """The plan steps that a head reads."""
    return {"next": (1,), "far": (horizon - 1,), "all": tuple(range(1, horizon))}[reads]


class ActionHead(nn.Module):
    """Predicts actions; everything is in environment units.

    Args:
        observation_dim: size of an observation.
        action_dim: size of an action.
        steps: plan steps that it reads, ascending.
        hidden_dim: width of the network.
    """

    observation_center: Tensor
    observation_scale: Tensor
    change_center: Tensor
    change_scale: Tensor
    action_center: Tensor
    action_scale: Tensor

    def __init__(self, observation_dim: int, action_dim: int, steps: Sequence[int], hidden_dim: int = 256) -> None:
        super().__init__()
        self.steps = list(steps)
        for name, shape in (
            ("observation", (observation_dim,)),
            ("change", (len(self.steps), observation_dim)),
            ("action", (action_dim,)),
        ):
            self.register_buffer(f"{name}_center", torch.zeros(shape))
            self.register_buffer(f"{name}_scale", torch.ones(shape))
        sizes = [(1 + len(self.steps)) * observation_dim, hidden_dim, hidden_dim]
        hidden = [layer for i, o in pairwise(sizes) for layer in (nn.Linear(i, o), nn.LayerNorm(o), nn.SiLU())]
        self.network = Layers(*hidden, nn.Linear(hidden_dim, action_dim))

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor], steps: Sequence[int]) -> ActionHead:
        """A head with the layer sizes of these weights. It does not load them.

        Raises:
            KeyError: these are not weights of a head.
        """
        return cls(
            len(weights["observation_center"]), len(weights["action_center"]), steps, len(weights["network.0.bias"])
        )

    def normalize(self, observations: Tensor) -> Tensor:
        """First observations and changes of plans as the network takes them, float[batch, (1 + steps) * size].

        Args:
            observations: float[batch, horizon, observation_dim].
        """
        first = observations[:, 0]
        changes = (observations[:, self.steps] - first[:, None] - self.change_center) / self.change_scale
        return torch.cat([(first - self.observation_center) / self.observation_scale, changes.flatten(1)], dim=1)

    def forward(self, observations: Tensor) -> Tensor:
        """Actions float[batch, action_dim] for plans float[batch, horizon, observation_dim]."""
        return self.network(self.normalize(observations)) * self.action_scale + self.action_center

    @torch.no_grad()
    def predict(self, observations: np.ndarray) -> np.ndarray:
        """Actions float32[batch, action_dim] for plans float32[batch, horizon, observation_dim]."""
        return self(torch.from_numpy(observations)).numpy()


class ActionHeads(nn.ModuleDict):
    """The heads of a model, by what they read."""

    def find(self, reads: Reads) -> ActionHead:
        """The head that reads these observations."""
        head = self[reads]
        assert isinstance(head, ActionHead)
        return head

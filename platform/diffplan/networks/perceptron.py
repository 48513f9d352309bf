"""A residual perceptron over a whole trajectory, for plans of one short horizon.

A trajectory of few steps that are far apart has no order in time that convolutions or attention could use, and its
perceptron takes a tenth of their time.

Source: Hansen-Estruch et al. 2023 (IDQL), section 5.1 and appendix (the residual network with layer normalisation).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diffplan.config import NetworkConfig
from diffplan.networks.blocks import SinusoidalEmbedding
from diffplan.networks.condition import ConditionEmbedding
from diffplan.networks.layers import Layers


class PerceptronDenoiser(nn.Module):
    """Denoises trajectories of one horizon; its initial prediction is 0.

    Args:
        transition_dim: columns of a transition.
        config: sizes; `dim` and `depth` are used.
        horizon: steps of a trajectory.
        num_known: columns that it is told of whether they are known at the last step.
    """

    def __init__(self, transition_dim: int, config: NetworkConfig, horizon: int, num_known: int = 0) -> None:
        super().__init__()
        dim = config.dim
        self.horizon = horizon
        self.min_horizon = config.min_horizon
        self.embedding = Layers(SinusoidalEmbedding(dim), nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.num_known = num_known
        self.to_hidden = nn.Linear(horizon * transition_dim + num_known, dim)
        self.blocks = nn.ModuleList(
            Layers(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim)) for _ in range(config.depth)
        )
        self.to_output = Layers(nn.LayerNorm(dim), nn.SiLU(), nn.Linear(dim, horizon * transition_dim))
        last = self.to_output[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.condition = ConditionEmbedding(config, dim)

    def forward(
        self,
        x: Float[Tensor, "batch horizon transition"],
        diffusion_step: Int[Tensor, " #batch"],
        *,
        lengths: Int[Tensor, " batch"] | None = None,
        condition: Float[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
        known: Bool[Tensor, "part columns"] | None = None,
    ) -> Float[Tensor, "batch horizon transition"]:
        """Predict for noisy trajectories.

        Args:
            x: noisy trajectories in model space, of the network's horizon.
            diffusion_step: noise level of each trajectory; one number if all are equal.
            lengths: None, for all trajectories have one horizon.
            condition: return or task of each trajectory; see `ConditionEmbedding`.
            known: which columns are known at the last step, of the trajectories, or of a part that the batch repeats;
                None for none of them.

        Returns:
            The prediction of the network, in model space.

        Raises:
            ValueError: another horizon, or the network does not take this condition.
        """
        if x.shape[1] != self.horizon or lengths is not None:
            raise ValueError(f"horizon: expected {self.horizon} steps, the only horizon of this network, got others")
        embedding = self.condition(self.embedding(diffusion_step), condition)
        inputs = x.flatten(1)
        if self.num_known:
            flags = x.new_zeros(1, self.num_known) if known is None else known.to(x)
            inputs = torch.cat([inputs, flags.repeat(len(x) // len(flags), 1)], dim=1)
        hidden = self.to_hidden(inputs) + embedding
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.to_output(hidden).unflatten(1, x.shape[1:])

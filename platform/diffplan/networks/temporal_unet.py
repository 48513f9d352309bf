"""The temporal U-Net of Janner et al. 2022.

Source: Janner et al. 2022, appendix C; layer for layer that of `diffuser/models/temporal.py` of its code release, with
one addition: a horizon that the levels do not divide is padded inside and cropped again, so any horizon from
`min_horizon` up can be planned.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diffplan.config import NetworkConfig
from diffplan.networks.blocks import Conv1dBlock, LinearAttention, ResidualTemporalBlock, SinusoidalEmbedding


class TemporalUnet(nn.Module):
    """A U-Net of 1-d convolutions over the time of a trajectory.

    Each level has two residual blocks, optionally linear attention, and halves the length (the last does not). Two
    blocks follow in the middle; then each level doubles the length again and is joined with its counterpart.

    Args:
        transition_dim: columns of a transition.
        config: sizes.
    """

    def __init__(self, transition_dim: int, config: NetworkConfig) -> None:
        super().__init__()
        dim = config.dim
        channels = [transition_dim, *(dim * mult for mult in config.dim_mults)]
        levels = list(pairwise(channels))
        self.min_horizon = config.min_horizon

        def attention(size: int) -> nn.Module:
            return LinearAttention(size) if config.attention else nn.Identity()

        self.embedding = nn.Sequential(
            SinusoidalEmbedding(dim), nn.Linear(dim, 4 * dim), nn.Mish(), nn.Linear(4 * dim, dim)
        )
        self.down = nn.ModuleList(
            nn.ModuleList(
                [
                    ResidualTemporalBlock(in_channels, out_channels, dim),
                    ResidualTemporalBlock(out_channels, out_channels, dim),
                    attention(out_channels),
                    nn.Conv1d(out_channels, out_channels, 3, stride=2, padding=1)
                    if index < len(levels) - 1
                    else nn.Identity(),
                ]
            )
            for index, (in_channels, out_channels) in enumerate(levels)
        )
        middle = channels[-1]
        self.middle_first = ResidualTemporalBlock(middle, middle, dim)
        self.middle_attention = attention(middle)
        self.middle_second = ResidualTemporalBlock(middle, middle, dim)
        self.up = nn.ModuleList(
            nn.ModuleList(
                [
                    ResidualTemporalBlock(2 * out_channels, in_channels, dim),
                    ResidualTemporalBlock(in_channels, in_channels, dim),
                    attention(in_channels),
                    nn.ConvTranspose1d(in_channels, in_channels, 4, stride=2, padding=1),
                ]
            )
            for in_channels, out_channels in reversed(levels[1:])
        )
        self.final = nn.Sequential(Conv1dBlock(channels[1], channels[1]), nn.Conv1d(channels[1], transition_dim, 1))

    def forward(
        self, x: Float[Tensor, "batch horizon transition"], diffusion_step: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch horizon transition"]:
        """Predict for noisy trajectories.

        Args:
            x: noisy trajectories in model space, of a horizon of at least `min_horizon`.
            diffusion_step: how noisy each is.

        Returns:
            What the network was trained to predict, in model space.

        Raises:
            ValueError: the horizon is too short.
        """
        horizon = x.shape[1]
        if horizon < self.min_horizon:
            raise ValueError(f"horizon: expected at least {self.min_horizon} for this network, got {horizon}")
        hidden = x.transpose(1, 2)
        padding = -horizon % self.min_horizon
        if padding:
            hidden = F.pad(hidden, (0, padding), mode="replicate")
        embedding = self.embedding(diffusion_step)
        skips = []
        for first, second, attention, downsample in self.down:  # type: ignore[misc]
            hidden = attention(second(first(hidden, embedding), embedding))
            skips.append(hidden)
            hidden = downsample(hidden)
        hidden = self.middle_attention(self.middle_first(hidden, embedding))
        hidden = self.middle_second(hidden, embedding)
        for first, second, attention, upsample in self.up:  # type: ignore[misc]
            hidden = torch.cat([hidden, skips.pop()], dim=1)
            hidden = upsample(attention(second(first(hidden, embedding), embedding)))
        return self.final(hidden)[:, :, :horizon].transpose(1, 2)


def count_parameters(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)

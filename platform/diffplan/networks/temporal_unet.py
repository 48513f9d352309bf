"""The temporal U-Net of Janner et al. 2022.

Source: Janner et al. 2022, appendix C; layer for layer that of `diffuser/models/temporal.py` of its code release, with
three additions: a horizon that is not divisible by the levels is padded inside and cropped again, so any horizon from
`min_horizon` up is possible; a batch may have trajectories of different lengths; and there may be a condition.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffplan.config import NetworkConfig
from diffplan.networks.blocks import (
    Conv1dBlock,
    LinearAttention,
    NoAttention,
    ResidualTemporalBlock,
    SinusoidalEmbedding,
    as_images,
    mish,
)
from diffplan.networks.condition import ConditionEmbedding
from diffplan.networks.packing import Conv1d, Packing, Packings, Upsample1d
from diffplan.networks.ragged import check_lengths, repeat_last_step


class TemporalUnet(nn.Module):
    """A U-Net of 1-d convolutions over the time of a trajectory.

    Each level has two residual blocks, optionally linear attention, and halves the length (the last does not). Two
    blocks follow in the middle; then each level doubles the length again and is joined with its counterpart.

    Args:
        transition_dim: columns of a transition.
        config: sizes.
    """

    takes_packings = True

    def __init__(self, transition_dim: int, config: NetworkConfig) -> None:
        super().__init__()
        dim = config.dim
        channels = [transition_dim, *(dim * mult for mult in config.dim_mults)]
        levels = list(pairwise(channels))
        self.min_horizon = config.min_horizon

        def attention(size: int) -> nn.Module:
            return LinearAttention(size) if config.attention else NoAttention()

        self.embedding = nn.Sequential(
            SinusoidalEmbedding(dim), nn.Linear(dim, 4 * dim), nn.Mish(), nn.Linear(4 * dim, dim)
        )
        self.condition = ConditionEmbedding(config, dim)
        self.down = nn.ModuleList(
            nn.ModuleList(
                [
                    ResidualTemporalBlock(in_channels, out_channels, dim),
                    ResidualTemporalBlock(out_channels, out_channels, dim),
                    attention(out_channels),
                    Conv1d(out_channels, out_channels, 3, stride=2) if index < len(levels) - 1 else nn.Identity(),
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
                    Upsample1d(in_channels),
                ]
            )
            for in_channels, out_channels in reversed(levels[1:])
        )
        self.final = nn.Sequential(Conv1dBlock(channels[1], channels[1]), Conv1d(channels[1], transition_dim, 1))

    def forward(
        self,
        x: Float[Tensor, "batch horizon transition"],
        diffusion_step: Int[Tensor, " #batch"],
        *,
        lengths: Int[Tensor, " batch"] | None = None,
        condition: Float[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
        packing: Packing | None = None,
        packings: Packings | None = None,
    ) -> Float[Tensor, "batch horizon transition"]:
        """Predict for noisy trajectories.

        Args:
            x: noisy trajectories in model space, of a horizon of at least `min_horizon`.
            diffusion_step: noise level of each trajectory; one number if all are equal.
            lengths: steps of each trajectory, at least `min_horizon`; the padding behind them has no effect. None for
                all steps.
            condition: return or task of each trajectory; see `ConditionEmbedding`.
            packing: `Packing.filled` of these lengths, with the horizon as `longest`; skips all checks, so that nothing
                waits for a GPU.
            packings: cache of the packing of these lengths, for other passes over the same trajectories.

        Returns:
            The prediction of the network, in model space; undefined in the padding.

        Raises:
            ValueError: a trajectory is too short, or the network does not take this condition.
        """
        horizon = x.shape[1]
        if packing is None:
            check_lengths(horizon, lengths, self.min_horizon)
        embedding = mish(self.condition(self.embedding(diffusion_step), condition))
        if packing is not None and len(embedding) > 1:
            embedding = torch.cat([embedding, embedding[-1:]])  # for the filling of the batch
        if lengths is not None:
            packing = (packings or Packings()).of(lengths, self.min_horizon) if packing is None else packing
            hidden = packing.pack(repeat_last_step(x, lengths, packing.longest))
        else:
            padding = -horizon % self.min_horizon
            hidden = as_images(torch.cat([x, x[:, -1:].expand(-1, padding, -1)], dim=1) if padding else x)
        skips = []
        for first, second, attention, downsample in self.down:  # type: ignore[misc]
            hidden = attention(second(first(hidden, embedding, packing), embedding, packing), packing)
            skips.append((hidden, packing))
            if isinstance(downsample, Conv1d):
                hidden = downsample(hidden, packing)
                packing = None if packing is None else packing.halved
        hidden = self.middle_attention(self.middle_first(hidden, embedding, packing), packing)
        hidden = self.middle_second(hidden, embedding, packing)
        for first, second, attention, upsample in self.up:  # type: ignore[misc]
            skipped, packing = skips.pop()
            hidden = torch.cat([hidden, skipped], dim=1)
            hidden = attention(second(first(hidden, embedding, packing), embedding, packing), packing)
            hidden = upsample(hidden, packing)
        packing = skips.pop()[1]
        for layer in self.final:
            hidden = layer(hidden, packing)
        if packing is None:
            return hidden[:, :, 0, :horizon].transpose(1, 2)
        return packing.pad(hidden, horizon)[: len(x)]

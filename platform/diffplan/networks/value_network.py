"""The value network of Janner et al. 2022: the value of a noisy trajectory, for guidance by its gradient.

Source: Janner et al. 2022, section 3.2 and appendix C; the layers are those of `ValueFunction` in
`diffuser/models/temporal.py` of its code release. Deviations: the coarsest level is averaged over its steps instead
of flattened, so that one network supports every horizon (the release has a fixed horizon, and fails from 64 up, because
it computes another flattened size); and narrow levels have fewer normalisation groups, because a group of one channel
at one step is always 0.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffplan.config import NetworkConfig
from diffplan.networks.blocks import ResidualTemporalBlock, SinusoidalEmbedding, as_images, mish
from diffplan.networks.packing import Conv1d, Packing
from diffplan.networks.ragged import check_lengths

_MIN_GROUP_CHANNELS = 4


class ValueNetwork(nn.Module):
    """The descending half of a U-Net, two more blocks that halve the channels, and a perceptron.

    Each level and each of the two blocks halves the length, rounded up.

    Args:
        transition_dim: columns of a transition.
        config: sizes; `dim` and `dim_mults` are used.
    """

    min_horizon = 2

    def __init__(self, transition_dim: int, config: NetworkConfig) -> None:
        super().__init__()
        dim = config.dim
        channels = [transition_dim, *(dim * mult for mult in config.dim_mults)]
        middle = channels[-1]
        narrow = [middle, middle // 2, middle // 4]

        def block(in_channels: int, out_channels: int) -> ResidualTemporalBlock:
            return ResidualTemporalBlock(in_channels, out_channels, dim, num_groups=_num_groups(out_channels))

        def downsample(size: int) -> Conv1d:
            return Conv1d(size, size, 3, stride=2)

        self.embedding = nn.Sequential(
            SinusoidalEmbedding(dim), nn.Linear(dim, 4 * dim), nn.Mish(), nn.Linear(4 * dim, dim)
        )
        self.levels = nn.ModuleList(
            nn.ModuleList([block(inputs, outputs), block(outputs, outputs), downsample(outputs)])
            for inputs, outputs in pairwise(channels)
        )
        self.narrowing = nn.ModuleList(
            nn.ModuleList([block(inputs, outputs), downsample(outputs)]) for inputs, outputs in pairwise(narrow)
        )
        hidden_dim = max(narrow[-1] // 2, dim)  # as in the release at its sizes, where one step is left to flatten
        self.head = nn.Sequential(nn.Linear(narrow[-1] + dim, hidden_dim), nn.Mish(), nn.Linear(hidden_dim, 1))

    def forward(
        self,
        x: Float[Tensor, "batch horizon transition"],
        diffusion_step: Int[Tensor, " batch"],
        *,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """The values of noisy trajectories; differentiable with respect to them.

        Args:
            x: noisy trajectories in model space, of a horizon of at least 2.
            diffusion_step: noise level of each trajectory.
            lengths: steps of each trajectory, at least 2; the padding behind them has no effect. None for all steps.

        Raises:
            ValueError: a trajectory is too short.
        """
        check_lengths(x.shape[1], lengths, self.min_horizon)
        packing = None if lengths is None else Packing(lengths)
        hidden = as_images(x) if packing is None else packing.pack(x)
        embedding = self.embedding(diffusion_step)
        activated = mish(embedding)
        for *blocks, downsample in [*self.levels, *self.narrowing]:  # type: ignore[misc]
            for block in blocks:
                hidden = block(hidden, activated, packing)
            hidden = downsample(hidden, packing)
            packing = None if packing is None else packing.halved
        pooled = (
            hidden.mean(dim=(2, 3)) if packing is None else packing.sum(hidden) / packing.lengths[:, None].to(hidden)
        )
        return self.head(torch.cat([pooled, embedding], dim=-1))[:, 0]


def _num_groups(channels: int) -> int:
    """Number of groups: 8 as in the U-Net, or the largest smaller power of 2 whose groups are wide enough."""
    groups = 8
    while groups > 1 and (channels % groups or channels // groups < _MIN_GROUP_CHANNELS):
        groups //= 2
    return groups

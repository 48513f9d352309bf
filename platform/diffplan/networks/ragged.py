"""Batches of trajectories of different lengths, padded at the end to one horizon.

The output for a row must not depend on the other rows, so padding must not affect a valid step. Padding may have any
value, even NaN: it is replaced on entry, because values that are later multiplied by 0 must be finite.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def check_lengths(horizon: int, lengths: Int[Tensor, " batch"] | None, min_horizon: int) -> None:
    """Raise for trajectories that are too short for a network.

    Args:
        horizon: steps of the batch, padding included.
        lengths: valid steps of each row; None for all steps.
        min_horizon: shortest trajectory that the network supports.

    Raises:
        ValueError: a trajectory is too short, or longer than the batch.
    """
    if horizon < min_horizon:
        raise ValueError(f"horizon: expected at least {min_horizon} for this network, got {horizon}")
    if lengths is None:
        return
    shortest, longest = (int(bound) for bound in lengths.aminmax())
    if shortest < min_horizon or longest > horizon:
        got = shortest if shortest < min_horizon else longest
        raise ValueError(f"lengths: expected at least {min_horizon} and at most the horizon {horizon}, got {got}")


def valid_steps(lengths: Int[Tensor, " batch"], horizon: int) -> Bool[Tensor, "batch horizon"]:
    """Mask of the valid steps of each row."""
    return torch.arange(horizon, device=lengths.device) < lengths[:, None]


def repeat_last_step(
    x: Float[Tensor, "batch horizon transition"], lengths: Int[Tensor, " batch"], width: int
) -> Float[Tensor, "batch width transition"]:
    """Each row with its last valid step repeated up to a width; the padding has no effect and no gradient."""
    index = torch.minimum(torch.arange(width, device=x.device), lengths[:, None] - 1)
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))

"""Windows from flat memory: one gather per batch, of contiguous pieces for stride 1."""

from __future__ import annotations

import torch
from torch import Tensor


def gather_windows(flat: Tensor, starts: Tensor, horizon: int, size: int, stride: int = 1) -> Tensor:
    """Windows that begin at elements of a flat array of rows.

    Args:
        flat: [elements], consecutive rows of `size` elements.
        starts: int64[windows], the first element of each window.
        horizon: rows of a window.
        size: elements of a row.
        stride: rows between two rows of a window.

    Returns:
        [windows, horizon, size]; with stride 1, a copy of one contiguous piece per window.
    """
    if stride == 1:
        width = horizon * size
        pieces = torch.as_strided(flat, (flat.shape[0] - width + 1, width), (1, 1), flat.storage_offset())
        return torch.index_select(pieces, 0, starts).view(-1, horizon, size)
    rows = starts[:, None] + torch.arange(horizon, device=starts.device) * (stride * size)
    return gather_rows(flat, rows, size)


def gather_rows(flat: Tensor, starts: Tensor, size: int) -> Tensor:
    """Rows that begin at the elements `starts` of a flat array, [*starts.shape, size]."""
    rows = torch.as_strided(flat, (flat.shape[0] - size + 1, size), (1, 1), flat.storage_offset())
    return torch.index_select(rows, 0, starts.reshape(-1)).view(*starts.shape, size)


def put_final_observations(x: Tensor, is_final: Tensor | None, final: Tensor, observation: slice) -> Tensor:
    """Windows whose rows past the end of an episode hold its last observation.

    Args:
        x: windows in model space, float[windows, horizon, size].
        is_final: those rows, bool[windows, horizon]; None for none.
        final: the last observation of each window's episode in model space, float[windows, observation_dim].
        observation: columns of the observation; the others, which have no value there, become 0.
    """
    if is_final is None:
        return x
    whole = x.new_zeros(len(x), 1, x.shape[2])
    whole[:, 0, observation] = final
    return torch.where(is_final[:, :, None], whole, x)

"""The map of each column entry through its distribution function, piecewise linear and invertible.

```
level   1 ┤                ,-´     beyond the ends: the slope of the whole range
          │            _,-´
          │     ______/            a knot for each quantile; -1 and 1 at the ends of the data
       -1 ┤  ,-´
          └──┴────────────┴─ value
            min          max
```
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

KNOT_GAP = 1e-6
"""Knots closer than this share of their size are merged."""


@dataclass(frozen=True)
class QuantileMap:
    """`level = 2 * CDF(value) - 1` of each entry, strictly increasing and continuous.

    A repeated knot (an atom of the distribution) is mapped to the middle of its levels, so that the map is continuous.
    Atoms at the ends are the exception: the minimum is always at -1 and the maximum at 1, so that [-1, 1] is the range
    of the data and clipping to it keeps plans within the data. An entry with equal knots is constant: it is at level 0,
    with slope 1.

    Attributes:
        knots: values at equally spaced probabilities from 0 to 1, float32[D, K], K >= 2, no row decreasing.
    """

    knots: np.ndarray

    @classmethod
    def fit(cls, quantiles: np.ndarray, constant: np.ndarray) -> QuantileMap:
        """Fit to quantile tables.

        Knots that are nearly equal in float32 are merged into one atom: the slope between them would be noise, or
        infinite.

        Args:
            quantiles: float64[K, D] in environment units, from the minimum to the maximum, no column decreasing.
            constant: bool[D], entries to treat as constant, whatever their quantiles.
        """
        table = np.where(constant[:, None], (quantiles[:1] + quantiles[-1:]).T / 2, quantiles.T)
        smallest_gap = np.maximum(KNOT_GAP * np.abs(table), 1e-9 * (table[:, -1:] - table[:, :1]))
        knots = table.copy()
        for k in range(1, knots.shape[1]):
            near = knots[:, k] - knots[:, k - 1] <= smallest_gap[:, k]
            knots[near, k] = knots[near, k - 1]
        near_end = table[:, -1:] - knots <= smallest_gap[:, -1:]
        return cls(np.where(near_end, table[:, -1:], knots).astype(np.float32))

    def is_valid(self) -> bool:
        """Whether the knots are finite and ordered, with finite slopes."""
        if self.knots.ndim != 2 or self.knots.shape[1] < 2 or not np.isfinite(self.knots).all():
            return False
        return bool((self.knots[:, 1:] >= self.knots[:, :-1]).all() and np.isfinite(self._tables).all())

    def to_levels(self, values: Any) -> Any:
        """Levels of values [..., D]; takes and returns a NumPy array or a torch tensor."""
        return self._interpolate(values, 0, 1, 2)

    def to_values(self, levels: Any) -> Any:
        """Values of levels [..., D]; the inverse of `to_levels`."""
        return self._interpolate(levels, 1, 0, 3)

    @cached_property
    def _tables(self) -> np.ndarray:
        """Value and level at one end, slope and inverse slope of K + 1 segments; float32[4, D, K + 1].

        Segment i < K ends at knot i; the first and the last segment are beyond the data. The stored ends are the left
        ones (the right one for the first segment), so rows 0 and 1 from their second column on are the knots and their
        levels.
        """
        knots = self.knots.astype(np.float64)
        levels = _levels(self.knots)
        spans, rises = np.diff(knots), np.diff(levels)
        empty = spans == 0
        ranges = knots[:, -1:] - knots[:, :1]
        beyond = np.where(ranges == 0, 1.0, 2.0 / np.where(ranges == 0, 1.0, ranges))
        inner = np.where(empty, beyond, rises / np.where(empty, 1.0, spans))
        slopes = np.concatenate([beyond, inner, beyond], axis=1)
        with np.errstate(over="ignore"):
            return np.stack(
                [
                    np.concatenate([knots[:, :1], knots], axis=1),
                    np.concatenate([levels[:, :1], levels], axis=1),
                    slopes,
                    1.0 / slopes,
                ]
            ).astype(np.float32)

    def _interpolate(self, inputs: Any, from_row: int, to_row: int, slope_row: int) -> Any:
        """Look up the segment of each input and interpolate by its slope."""
        num_entries, width = self._tables.shape[1:]
        if not inputs.ndim or inputs.shape[-1] != num_entries:
            raise ValueError(f"expected {num_entries} entries in the last dimension, got shape {tuple(inputs.shape)}")
        flat = inputs.reshape(-1, num_entries)
        if isinstance(inputs, np.ndarray):
            tables = self._tables
            ends = tables[from_row, :, 1:]
            columns = [ends[d].searchsorted(flat[:, d], side="right") + d * width for d in range(num_entries)]
            segments = np.stack(columns, axis=1)
        else:
            import torch  # loaded already if there is a tensor; other readers of datasets need no torch

            flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
            tables = flat.new_tensor(self._tables)
            ends = tables[from_row, :, 1:].contiguous()
            segments = torch.searchsorted(ends, flat.detach().T.contiguous(), right=True).T
            segments = segments + torch.arange(num_entries, device=flat.device) * width
        start, level, slope = (tables[row].reshape(-1).take(segments) for row in (from_row, to_row, slope_row))
        return (level + (flat - start) * slope).reshape(inputs.shape)


def _levels(knots: np.ndarray) -> np.ndarray:
    """Levels of knots, float64[D, K], equal for equal knots."""
    num_knots = knots.shape[1]
    positions = np.arange(num_knots)
    starts_here = np.diff(knots, axis=1, prepend=np.nan) != 0
    ends_here = np.diff(knots, axis=1, append=np.nan) != 0
    first = np.maximum.accumulate(np.where(starts_here, positions, 0), axis=1)
    last = np.minimum.accumulate(np.where(ends_here, positions, num_knots - 1)[:, ::-1], axis=1)[:, ::-1]
    levels = (first + last) / (num_knots - 1) - 1
    at_minimum, at_maximum = first == 0, last == num_knots - 1
    return np.where(at_minimum & at_maximum, 0.0, np.where(at_minimum, -1.0, np.where(at_maximum, 1.0, levels)))

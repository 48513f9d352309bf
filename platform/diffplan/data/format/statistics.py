"""Mergeable statistics of columns: those of a dataset follow from those of its shards, without reading the data.

Moments merge after Chan et al. 1979; quantile tables merge as a mixture of distributions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

NUM_QUANTILES = 257
LARGEST = 1e150
"""Numbers beyond this count as infinite, because sums of their squares would overflow."""


@dataclass(frozen=True)
class ColumnStatistics:
    """Summary of the finite values of a column with D entries per row.

    Attributes:
        count: finite values of each entry, int64[D].
        mean: float64[D].
        m2: sum of squared deviations from the mean, float64[D].
        minimum: float64[D].
        maximum: float64[D].
        quantiles: values at `NUM_QUANTILES` equally spaced probabilities from 0 to 1, float64[NUM_QUANTILES, D].
        num_nonfinite: values that are NaN or infinite, int64[D].
    """

    count: np.ndarray
    mean: np.ndarray
    m2: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray
    quantiles: np.ndarray
    num_nonfinite: np.ndarray

    @property
    def std(self) -> np.ndarray:
        """Population standard deviation, float64[D]; 0 without values."""
        return np.sqrt(self.m2 / np.maximum(self.count, 1))

    def to_dict(self) -> dict[str, Any]:
        """JSON values; the inverse of `from_dict`."""
        return {name: getattr(self, name).tolist() for name in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ColumnStatistics:
        """Read from JSON values; raises `ValueError`, `TypeError` or `KeyError` if they are no statistics."""
        arrays = {name: np.asarray(values[name]) for name in cls.__dataclass_fields__}
        shape = arrays["mean"].shape
        if len(shape) != 1:
            raise ValueError("the mean of statistics is no list")
        for name, array in arrays.items():
            is_count = name in ("count", "num_nonfinite")
            if array.shape != ((NUM_QUANTILES, *shape) if name == "quantiles" else shape):
                raise ValueError(f"the {name} of statistics has another shape than the mean")
            if array.size and array.dtype.kind not in ("iu" if is_count else "iuf"):
                raise ValueError(f"the {name} of statistics is not of numbers")
            arrays[name] = array.astype(np.int64 if is_count else np.float64)
            if not np.isfinite(array.astype(np.float64)).all() or (is_count and (array < 0).any()):
                raise ValueError(f"the {name} of statistics is out of range")
        if (arrays["minimum"] > arrays["maximum"]).any() or (arrays["m2"] < 0).any():
            raise ValueError("the range or the variance of statistics is negative")
        return cls(**arrays)


def find_finite(values: np.ndarray) -> np.ndarray:
    """Mask of the values that are finite and not beyond `LARGEST`."""
    return np.abs(values) <= LARGEST if values.dtype == np.float64 else np.isfinite(values)


def compute_statistics(values: np.ndarray) -> ColumnStatistics:
    """Statistics of a float array [rows] or [rows, D]; non-finite values are counted and left out."""
    values = values.reshape(len(values), math.prod(values.shape[1:]))
    finite = find_finite(values)
    per_entry = [_entry(values[finite[:, d], d]) for d in range(values.shape[1])]
    count, mean, m2, minimum, maximum, quantiles = zip(*per_entry, strict=True)
    return ColumnStatistics(
        count=np.array(count),
        mean=np.array(mean),
        m2=np.array(m2),
        minimum=np.array(minimum),
        maximum=np.array(maximum),
        quantiles=np.stack(quantiles, axis=1),
        num_nonfinite=(~finite).sum(axis=0),
    )


def _entry(values: np.ndarray) -> tuple[int, float, float, float, float, np.ndarray]:
    if not len(values):
        return 0, 0.0, 0.0, 0.0, 0.0, np.zeros(NUM_QUANTILES)
    ordered = np.sort(values)  # before the conversion to float64, which halves the time
    values = values.astype(np.float64)
    positions = np.linspace(0, len(values) - 1, NUM_QUANTILES)
    mean = values.mean()
    quantiles = np.interp(positions, np.arange(len(values)), ordered)
    return len(values), mean, ((values - mean) ** 2).sum(), float(ordered[0]), float(ordered[-1]), quantiles


def merge_statistics(parts: Iterable[ColumnStatistics]) -> ColumnStatistics:
    """Statistics of the concatenation of columns; moments and extremes are exact, quantiles approximate."""
    parts = list(parts)
    if not parts:
        raise ValueError("expected the statistics of at least one column, got none")
    counts = np.stack([p.count for p in parts])
    total = counts.sum(axis=0)
    weights = counts / np.maximum(total, 1)
    mean = (weights * np.stack([p.mean for p in parts])).sum(axis=0)
    m2 = sum(p.m2 + p.count * (p.mean - mean) ** 2 for p in parts)
    present = counts > 0
    minimum = np.where(present, np.stack([p.minimum for p in parts]), np.inf).min(axis=0)
    maximum = np.where(present, np.stack([p.maximum for p in parts]), -np.inf).max(axis=0)
    return ColumnStatistics(
        count=total,
        mean=mean,
        m2=np.asarray(m2),
        minimum=np.where(total > 0, minimum, 0.0),
        maximum=np.where(total > 0, maximum, 0.0),
        quantiles=np.stack([_merge_quantiles(parts, weights, d) for d in range(len(total))], axis=1),
        num_nonfinite=np.sum([p.num_nonfinite for p in parts], axis=0),
    )


def _merge_quantiles(parts: list[ColumnStatistics], weights: np.ndarray, d: int) -> np.ndarray:
    """Quantiles of the mixture: each part spreads its weight evenly over the intervals of its table.

    The distribution function of the mixture is accumulated over the sorted ends of all intervals, which takes
    O(n log n) time for n parts.
    """
    present = [i for i, part in enumerate(parts) if part.count[d]]
    if not present:
        return np.zeros(NUM_QUANTILES)
    if len(present) == 1:
        return parts[present[0]].quantiles[:, d]
    tables = np.stack([parts[i].quantiles[:, d] for i in present])
    low, high = tables[:, :-1].ravel(), tables[:, 1:].ravel()
    mass = np.repeat(weights[present, d] / (NUM_QUANTILES - 1), NUM_QUANTILES - 1)
    values, places = np.unique(np.concatenate([low, high]), return_inverse=True)
    at_low, at_high = places[: len(low)], places[len(low) :]
    # Repeated values in a table are atoms, and so are intervals too narrow for a slope. A table does not determine the
    # exact mass of an atom; it gets half of both adjacent intervals, or its mass would decrease in every merge.
    narrow = high - low <= max(1e-13 * (values[-1] - values[0]), np.finfo(np.float64).tiny)
    inside = np.pad(narrow.reshape(len(present), -1), ((0, 0), (1, 1)))
    to_low = np.where(narrow, 1.0, 0.5 * inside[:, :-2].ravel())
    to_high = np.where(narrow, 0.0, 0.5 * inside[:, 2:].ravel())
    atoms = np.bincount(at_low, mass * to_low, len(values)) + np.bincount(at_high, mass * to_high, len(values))
    slopes = mass * (1 - to_low - to_high) / np.where(narrow, 1.0, high - low)
    changes = np.bincount(at_low, slopes, len(values)) - np.bincount(at_high, slopes, len(values))
    risen = np.maximum(np.cumsum(changes)[:-1], 0) * np.diff(values)
    right = np.concatenate([[0], np.cumsum(risen)]) + np.cumsum(atoms)
    # Both limits at each value, so that atoms keep their weight. Atoms are extended by more than the rounding error, or
    # quantiles at their edges would be next to them.
    reach = np.where(atoms > 0, 1e-9, 0.0)
    points = np.stack([right - atoms - reach, right + reach], axis=1).ravel() / right[-1]
    return np.interp(np.linspace(0, 1, NUM_QUANTILES), np.maximum.accumulate(points), np.repeat(values, 2))

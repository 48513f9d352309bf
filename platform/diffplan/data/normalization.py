"""Affine maps between environment units and the space that models work in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from diffplan.data.statistics import ColumnStatistics
from diffplan.errors import CheckpointError


@dataclass(frozen=True)
class Normalizer:
    """`normalized = (value - center) / scale`, per column of a transition.

    Attributes:
        center: float32[transition_dim].
        scale: float32[transition_dim], positive.
    """

    center: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, statistics: list[ColumnStatistics], kind: Literal["limits", "gaussian"]) -> Normalizer:
        """Fit to the statistics of columns that lie side by side in a transition.

        `limits` maps the range of each entry to [-1, 1], `gaussian` to mean 0 and standard deviation 1. A constant
        entry is mapped to 0 and back to its value.
        """
        if kind == "limits":
            center = np.concatenate([(s.maximum + s.minimum) / 2 for s in statistics])
            scale = np.concatenate([(s.maximum - s.minimum) / 2 for s in statistics])
        else:
            center = np.concatenate([s.mean for s in statistics])
            scale = np.concatenate([s.std for s in statistics])
        constant = scale <= 1e-6 * np.maximum(np.abs(center), 1.0)
        return cls(center.astype(np.float32), np.where(constant, 1.0, scale).astype(np.float32))

    def normalize(self, values: Any) -> Any:
        """From environment units to model space; takes and returns a NumPy array or a torch tensor."""
        center, scale = self._like(values)
        return (values - center) / scale

    def unnormalize(self, normalized_values: Any) -> Any:
        """From model space to environment units; the inverse of `normalize`."""
        center, scale = self._like(normalized_values)
        return normalized_values * scale + center

    def _like(self, values: Any) -> tuple[Any, Any]:
        if isinstance(values, np.ndarray):
            return self.center, self.scale
        return values.new_tensor(self.center), values.new_tensor(self.scale)

    def to_json(self) -> str:
        """JSON text; the inverse of `from_json`."""
        return json.dumps({"center": self.center.tolist(), "scale": self.scale.tolist()})

    @classmethod
    def from_json(cls, text: str) -> Normalizer:
        """Read from JSON text; raises `CheckpointError` if it is damaged."""
        try:
            values = json.loads(text)
            normalizer = cls(np.asarray(values["center"], np.float32), np.asarray(values["scale"], np.float32))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"normalization.json: expected center and scale, got something else ({error})"
            ) from None
        finite = np.isfinite(normalizer.center).all() and np.isfinite(normalizer.scale).all()
        if normalizer.center.shape != normalizer.scale.shape or not finite or not (normalizer.scale > 0).all():
            raise CheckpointError("normalization.json: expected finite centers and as many positive scales")
        return normalizer

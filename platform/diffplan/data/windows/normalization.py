"""Maps between environment units and model space."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from diffplan.data.format.manifest import Column
from diffplan.data.format.statistics import ColumnStatistics
from diffplan.data.windows.quantile_map import KNOT_GAP, QuantileMap
from diffplan.errors import CheckpointError, DataError
from diffplan.files import parse_json

MIN_SPREAD = 1e-6
"""Standard deviation of a change in model space below which it counts as constant."""
RESOLUTION = 1e-4
"""Coarsest steps of float32 that still describe a column, as a share of its range."""


@dataclass(frozen=True)
class Deltas:
    """Observations of later steps of a window as changes from its first one, normalised for each step.

    Attributes:
        center: mean of each change in model space, float32[horizon - 1, observation_dim].
        scale: its standard deviation, positive, of the same shape.
        observation: columns of the observation in a transition.
    """

    center: np.ndarray
    scale: np.ndarray
    observation: slice

    @classmethod
    def fit(cls, windows: torch.Tensor, observation: slice) -> Deltas:
        """Fit to windows in model space, float[windows, horizon, transition_dim]; changes without spread stay."""
        changes = (windows[:, 1:, observation] - windows[:, :1, observation]).double()
        scale = changes.std(dim=0, correction=0)
        scale = torch.where(scale > MIN_SPREAD, scale, 1.0)
        return cls(changes.mean(dim=0).float().cpu().numpy(), scale.float().cpu().numpy(), observation)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """From normalised windows float[windows, horizon, transition_dim] to those with changes; differentiable."""
        center, scale = x.new_tensor(self.center), x.new_tensor(self.scale)
        first = x[:, :1, self.observation]
        return self._put(x, (x[:, 1:, self.observation] - first - center) / scale)

    def revert(self, x: torch.Tensor) -> torch.Tensor:
        """The inverse of `apply`."""
        center, scale = x.new_tensor(self.center), x.new_tensor(self.scale)
        first = x[:, :1, self.observation]
        return self._put(x, x[:, 1:, self.observation] * scale + center + first)

    def _put(self, x: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
        columns = self.observation
        later = torch.cat([x[:, 1:, : columns.start], later, x[:, 1:, columns.stop :]], dim=2)
        return torch.cat([x[:, :1], later], dim=1)


@dataclass(frozen=True)
class Normalizer:
    """`normalized = (value - center) / scale`, or a map by distribution functions, per column of a transition.

    Attributes:
        center: float32[transition_dim].
        scale: float32[transition_dim], positive.
        quantile_map: replaces the affine map within the range of the data and continues it beyond; None for the affine
            map everywhere.
        deltas: for windows whose later observations are changes from the first one; None for windows whose rows are
            all normalised alike.
    """

    center: np.ndarray
    scale: np.ndarray
    quantile_map: QuantileMap | None = None
    deltas: Deltas | None = None
    _tensors: dict[tuple[torch.device, torch.dtype], tuple[torch.Tensor, torch.Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """Center and scale on each device: a copy to a GPU in every call would wait for the device."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tensors": {}}  # other processes may not have the device

    @classmethod
    def fit(
        cls,
        statistics: Sequence[ColumnStatistics],
        kind: Literal["limits", "gaussian", "quantile"],
        columns: Sequence[Column] = (),
    ) -> Normalizer:
        """Fit to the statistics of the columns of a transition, in order.

        `limits` maps the range of each entry to [-1, 1], `gaussian` to mean 0 and standard deviation 1, `quantile` to
        a uniform distribution over [-1, 1], and linearly beyond, as `limits` does. A constant entry, whose values are
        all equal, is mapped to 0 and back to its value.

        Args:
            statistics: of each column.
            kind: the map.
            columns: the columns, for their names and stored types; taken for float32 if not given.

        Raises:
            ValueError: no such kind.
            DataError: a column has numbers outside the range of float32, the type of models, or its stored type tells
                numbers apart that float32 does not.
        """
        largest = max(np.abs([s.minimum, s.maximum]).max(initial=0.0) for s in statistics)
        if largest > np.finfo(np.float32).max:
            raise DataError(
                f"normalization: expected numbers up to {np.finfo(np.float32).max:.4g}, got {largest:.4g} in the data; "
                "look for it with `diffplan data stats`, and make the dataset again without it"
            )
        if kind == "gaussian":
            center = np.concatenate([s.mean for s in statistics])
            scale = np.concatenate([s.std for s in statistics])
        elif kind in ("limits", "quantile"):
            center = np.concatenate([(s.maximum + s.minimum) / 2 for s in statistics])
            scale = np.concatenate([(s.maximum - s.minimum) / 2 for s in statistics])
        else:
            raise ValueError(f"expected limits, gaussian or quantile, got {kind!r}")
        low, high = (np.concatenate([getattr(s, end) for s in statistics]) for end in ("minimum", "maximum"))
        constant, coarse = low == high, find_coarse(low, high)
        _require_resolution(statistics, kind, columns)
        if kind == "quantile":
            # The ends of merged tables equal the extremes only up to rounding.
            tables = [
                np.vstack([s.minimum, s.quantiles[1:-1].clip(s.minimum, s.maximum), s.maximum]) for s in statistics
            ]
            return cls._of_quantile_map(QuantileMap.fit(np.concatenate(tables, axis=1), constant))
        center = center.astype(np.float32)
        if kind == "limits":  # where steps are coarse, the rounded center lies off the middle
            scale = np.where(coarse, np.maximum(high - center, center - low), scale)
        return cls(center, np.where(constant, 1.0, scale).astype(np.float32))

    @classmethod
    def _of_quantile_map(cls, quantile_map: QuantileMap) -> Normalizer:
        ends = quantile_map.knots[:, [0, -1]].astype(np.float64)
        center, scale = ends.mean(axis=1), (ends[:, 1] - ends[:, 0]) / 2
        return cls(center.astype(np.float32), np.where(scale > 0, scale, 1.0).astype(np.float32), quantile_map)

    @property
    def kind(self) -> Literal["affine", "quantile"]:
        """The form of the map."""
        return "affine" if self.quantile_map is None else "quantile"

    def normalize(self, values: Any) -> Any:
        """From environment units to model space.

        Args:
            values: a NumPy array or a torch tensor, float[..., transition_dim].

        Returns:
            The same kind of array; differentiable for tensors.
        """
        if self.quantile_map is not None:
            return self.quantile_map.to_levels(values)
        center, scale = self._like(values)
        return (values - center) / scale

    def unnormalize(self, normalized_values: Any) -> Any:
        """From model space to environment units; the inverse of `normalize`."""
        if self.quantile_map is not None:
            return self.quantile_map.to_values(normalized_values)
        center, scale = self._like(normalized_values)
        return normalized_values * scale + center

    def normalize_windows(self, windows: torch.Tensor) -> torch.Tensor:
        """Windows or plans, float[windows, horizon, transition_dim], from environment units to model space."""
        x = self.normalize(windows)
        return x if self.deltas is None else self.deltas.apply(x)

    def unnormalize_windows(self, x: torch.Tensor) -> torch.Tensor:
        """The inverse of `normalize_windows`."""
        return self.unnormalize(x if self.deltas is None else self.deltas.revert(x))

    def with_flag(self) -> Normalizer:
        """The same for transitions with a flag as their last column, which stays as it is."""
        return replace(
            self,
            center=np.append(self.center, np.float32(0.0)),
            scale=np.append(self.scale, np.float32(1.0)),
        )

    def _like(self, values: Any) -> tuple[Any, Any]:
        if isinstance(values, np.ndarray):
            return self.center, self.scale
        key = (values.device, values.dtype)
        if key not in self._tensors:
            self._tensors[key] = values.new_tensor(self.center), values.new_tensor(self.scale)
        return self._tensors[key]

    def to_json(self) -> str:
        """JSON text; the inverse of `from_json`."""
        if self.quantile_map is not None:
            return json.dumps({"kind": "quantile", "knots": self.quantile_map.knots.tolist()})
        record = {"kind": "affine", "center": self.center.tolist(), "scale": self.scale.tolist()}
        if self.deltas is not None:
            columns = self.deltas.observation
            record["deltas"] = {
                "center": self.deltas.center.tolist(),
                "scale": self.deltas.scale.tolist(),
                "columns": [columns.start, columns.stop],
            }
        return json.dumps(record)

    @classmethod
    def from_json(cls, text: str) -> Normalizer:
        """Read from JSON text, `affine` without a kind; raises `CheckpointError` if it is damaged."""
        try:
            values = parse_json(text)
        except ValueError as error:
            raise CheckpointError(f"normalization.json: expected JSON, got something else ({error})") from None
        if not isinstance(values, dict):
            raise CheckpointError(f"normalization.json: expected an object, got a {type(values).__name__}")
        kind = values.pop("kind", "affine")
        deltas = values.pop("deltas", None)
        names = {"affine": {"center", "scale"}, "quantile": {"knots"}}.get(kind) if isinstance(kind, str) else None
        if names is None:
            raise CheckpointError(f"normalization.json: expected the kind affine or quantile, got {str(kind)[:40]!r}")
        if set(values) != names:
            raise CheckpointError(
                f"normalization.json: expected {' and '.join(sorted(names))}, "
                f"got {', '.join(sorted(values))[:80] or 'nothing'}"
            )
        if kind == "quantile":
            quantile_map = QuantileMap(_read_numbers(values, "knots"))
            if not quantile_map.is_valid():
                raise CheckpointError(
                    "normalization.json: expected two or more finite knots, in order, for each column entry, "
                    "got others; copy the whole checkpoint again"
                )
            return cls._of_quantile_map(quantile_map)
        center, scale = _read_numbers(values, "center"), _read_numbers(values, "scale")
        finite = np.isfinite(center).all() and np.isfinite(scale).all()
        if center.ndim != 1 or center.shape != scale.shape or not finite or not (scale > 0).all():
            raise CheckpointError("normalization.json: expected finite centers and as many positive scales")
        return cls(center, scale, deltas=None if deltas is None else _read_deltas(deltas, len(center)))


def find_coarse(minimum: np.ndarray, maximum: np.ndarray) -> np.ndarray:
    """Entries whose range float32 divides into fewer than 1 / `RESOLUTION` steps so far from 0, bool[D].

    An example are positions in metres from a distant origin: near 5 572 094 the steps of float32 are 0.5.
    """
    furthest = np.maximum(np.abs(minimum), np.abs(maximum)).clip(max=1e38).astype(np.float32)
    return np.spacing(furthest).astype(np.float64) > RESOLUTION * (maximum - minimum)


def _require_resolution(statistics: Sequence[ColumnStatistics], kind: str, columns: Sequence[Column]) -> None:
    """Raise `DataError` for numbers that float32, and so the model, cannot tell apart."""
    for number, found in enumerate(statistics):
        name, dtype = (columns[number].name, columns[number].dtype) if columns else (f"column {number}", "float32")
        spans = found.maximum - found.minimum
        is_lost = find_coarse(found.minimum, found.maximum) & (dtype != "float32")
        if kind == "quantile":  # which merges knots that lie as close as this
            is_lost |= spans < 4 * KNOT_GAP * np.maximum(np.abs(found.minimum), np.abs(found.maximum))
        is_lost |= spans < 2 * np.finfo(np.float32).tiny
        if (lost := np.flatnonzero(is_lost & (spans > 0))).size:
            entry = int(lost[0])
            low, high = float(found.minimum[entry]), float(found.maximum[entry])
            cure = "take windows.normalization limits, or " if dtype == "float32" else ""
            raise DataError(
                f"normalization: {name}[{entry}]: expected numbers that float32, the type of models, tells apart, got "
                f"{low!r} to {high!r}, a range of {high - low:.3g} where float32 has steps of "
                f"{np.spacing(np.float32(high)):.3g}; {cure}subtract a constant from it and make the dataset again"
            )


def _read_deltas(values: Any, transition_dim: int) -> Deltas:
    """Deltas from JSON values; raises `CheckpointError` if they are damaged."""
    problem = "normalization.json: expected deltas with center, scale and columns that fit one another"
    if not isinstance(values, dict) or set(values) != {"center", "scale", "columns"}:
        raise CheckpointError(problem)
    center, scale, columns = values["center"], values["scale"], values["columns"]
    if not (isinstance(columns, list) and len(columns) == 2 and all(isinstance(c, int) for c in columns)):
        raise CheckpointError(problem)
    center, scale = _read_numbers(values, "center"), _read_numbers(values, "scale")
    first, stop = columns
    fits = center.ndim == 2 and center.shape == scale.shape and center.shape[1] == stop - first
    if not (fits and 0 <= first < stop <= transition_dim and np.isfinite(center).all() and (scale > 0).all()):
        raise CheckpointError(problem)
    if not np.isfinite(scale).all():
        raise CheckpointError(problem)
    return Deltas(center, scale, slice(first, stop))


def _read_numbers(values: dict[str, Any], name: str) -> np.ndarray:
    """A rectangular array of numbers from JSON values, as float32; infinite where they overflow."""
    try:
        numbers = np.asarray(values[name])
    except (ValueError, OverflowError):  # rows of different lengths
        numbers = np.asarray(None)
    if numbers.dtype.kind not in "fiu":
        raise CheckpointError(f"normalization.json: expected {name} to be rows of numbers, got something else")
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32)

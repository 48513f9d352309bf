"""The support of the data, and how far plans depart from it.

A model may invent shortcuts: it joins two corridors through the wall between them, and such a plan may be consistent
with itself. But there are no data in the wall. Only positions are judged: plans are meant to combine positions with
velocities and directions that the data do not have there.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.spatial import KDTree

from diffplan.config import EnvConfig
from diffplan.diffusion.guidance import hermite

CELLS = 200
"""Cells along the axis with the widest range of positions: each visited cell is one point of the support."""

POINTS_PER_STEP = 4
"""Points at which the path between two plan steps is checked."""


class Support:
    """Positions that data have visited, thinned to one point per cell.

    Args:
        points: float[points, positions], at least one.
    """

    def __init__(self, points: np.ndarray) -> None:
        self.points = np.asarray(points, dtype=np.float32)
        self._tree = KDTree(self.points)

    @classmethod
    def fit(cls, low: np.ndarray, high: np.ndarray, positions: Iterable[np.ndarray]) -> Support:
        """The support of data.

        Args:
            low: least position on each axis, float[positions].
            high: greatest position on each axis.
            positions: the data in parts, float[rows, positions] each; rows that are not finite are skipped.
        """
        low = np.asarray(low, dtype=np.float64)
        spacing = max(float((high - low).max()), 1e-9) / CELLS
        visited = np.zeros((0, len(low)), dtype=np.int32)
        for part in positions:
            known = part[np.isfinite(part).all(axis=1)]
            cells = np.floor((known - low) / spacing).astype(np.int32)
            visited = np.unique(np.concatenate([visited, np.unique(cells, axis=0)]), axis=0)
        return cls(low + (visited + 0.5) * spacing)

    def distances(self, positions: np.ndarray) -> np.ndarray:
        """Distance of each position, float[..., positions], to the nearest point of the support, float64[...]."""
        return self._tree.query(positions)[0]

    def departures(
        self, observations: np.ndarray, env: EnvConfig, step_seconds: float | None, lengths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """How far each plan departs from the data, and how far its start and end do, which are given.

        Args:
            observations: float[plans, horizon, observation_dim] in environment units.
            env: which columns are positions and velocities. Between two steps a plan follows the cubic through both,
                or a straight line if there are no velocities.
            step_seconds: seconds between two steps of a plan; needed where there are velocities.
            lengths: steps of each plan, int[plans].

        Returns:
            The largest distance of a point on the path of each plan, and the larger distance of its first and last
            point, float64[plans] each.
        """
        positions = observations[:, :, list(env.position_columns)].astype(np.float64)
        s = (np.arange(POINTS_PER_STEP) / POINTS_PER_STEP)[:, None]
        before, after = positions[:, :-1, None], positions[:, 1:, None]
        if env.velocity_columns:
            assert step_seconds is not None  # known where velocities are
            slopes = step_seconds * observations[:, :, list(env.velocity_columns)].astype(np.float64)
            ways = hermite(s, before, after, slopes[:, :-1, None], slopes[:, 1:, None])
        else:
            ways = before + s * (after - before)
        counted = np.arange(1, positions.shape[1])[None] < lengths[:, None]
        distances = np.zeros(ways.shape[:3])
        ends = positions[np.arange(len(positions)), lengths - 1]
        found = self.distances(np.concatenate([ends, ways[counted].reshape(-1, ends.shape[1])]))
        last, distances[counted] = found[: len(ends)], found[len(ends) :].reshape(-1, POINTS_PER_STEP)
        way = np.maximum(distances.max(axis=(1, 2), initial=0.0), last)
        return way, np.maximum(distances[:, 0, 0], last)

"""Shortest ways of the ball through a maze, and whether it touches a wall.

The ball's centre must stay `BALL_RADIUS` away from every wall, so it moves among walls that are larger by that radius
and have round corners. A shortest way among them is a chain of straight lines and of arcs around corners. Each quarter
of a circle is replaced by a chain of `_NUM_CHORDS` chords with their ends on it, which makes a way at most 0.0003 per
corner shorter than the exact one; nothing else is approximated, least of all the angle of a line.

Source: Lozano-Pérez & Wesley 1979, "An algorithm for planning collision-free paths among polyhedral obstacles".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from diffplan_envs.maze import BALL_RADIUS, CELL_CENTER_OFFSET, Maze

CONTACT_MARGIN = 0.002
"""MuJoCo makes a contact of a gap up to this wide, in units (the margins of ball and wall in `physics`)."""
_NUM_CHORDS = 8
_CHORD_CLEARANCE = BALL_RADIUS * np.cos(np.pi / 4 / _NUM_CHORDS) - 1e-9
"""How near a wall's corner the chords come."""
_BLOCK_SIZE = 20_000


@dataclass(frozen=True)
class MazePaths:
    """Geometry of a maze for the ball's centre; `make_maze_paths` shares one for each maze.

    Attributes:
        maze: the maze.
    """

    maze: Maze

    @cached_property
    def walls(self) -> np.ndarray:
        """The walls, each run of a row as one box, float64[num_walls, 2 (low, high), 2]."""
        boxes = []
        for i, row in enumerate(self.maze.walls):
            edges = np.flatnonzero(np.diff(np.concatenate([[False], row, [False]]).astype(int)))
            boxes += [[(i, first), (i + 1, last)] for first, last in edges.reshape(-1, 2)]
        return np.array(boxes, dtype=np.float64) + CELL_CENTER_OFFSET - 0.5

    def clearances(self, positions: np.ndarray) -> np.ndarray:
        """Distance of positions float[..., 2] from the nearest wall, float64[...]; 0 in a wall. In units."""
        offsets = self._offsets(np.asarray(positions, dtype=np.float64))
        return np.sqrt((offsets**2).sum(axis=-1).min(axis=-1))

    def touches_wall(self, positions: np.ndarray) -> np.ndarray:
        """Whether a ball at positions float[..., 2] touches a wall, bool[...].

        It is much smaller than a cell, so that of the cells around its own only the three on its side can be near.
        """
        reach = BALL_RADIUS + CONTACT_MARGIN
        from_corner = np.asarray(positions, dtype=np.float64) - (CELL_CENTER_OFFSET - 0.5)
        cells = np.floor(from_corner).astype(int)
        inside = from_corner - cells - 0.5
        sides = np.where(inside < 0, -1, 1)
        gaps = 0.5 - np.abs(inside)
        near = gaps <= reach
        walls = np.pad(self.maze.walls, 3)  # nothing stands beyond the maze
        (i, j), (side_i, side_j) = np.moveaxis(cells + 3, -1, 0), np.moveaxis(sides, -1, 0)
        i, j = np.clip(i, 1, walls.shape[0] - 2), np.clip(j, 1, walls.shape[1] - 2)
        touches = walls[i, j] | (near[..., 0] & walls[i + side_i, j]) | (near[..., 1] & walls[i, j + side_j])
        return touches | (((gaps**2).sum(axis=-1) <= reach**2) & walls[i + side_i, j + side_j])

    def shortest_lengths(self, starts: np.ndarray, goals: np.ndarray, goal_radius: float = 0.0) -> np.ndarray:
        """Length of the shortest way of the ball's centre from a start until it is within a distance of a goal.

        A position in contact with a wall, or pressed into it, counts as the nearest one beside it.

        Args:
            starts: float[num, 2], in units.
            goals: float[num, 2], in units.
            goal_radius: the way ends this far from the goal, as the crow flies. (Where the wall's edge itself crosses
                that circle and a way could end just there, the way found may be longer by a few hundredths.)

        Returns:
            float64[num], in units; 0 where the start is so near already, infinity where no way leads there.

        Raises:
            ValueError: `starts` and `goals` are not both [num, 2].
        """
        starts, goals = np.asarray(starts, dtype=np.float64), np.asarray(goals, dtype=np.float64)
        if starts.ndim != 2 or starts.shape[1] != 2 or starts.shape != goals.shape:
            raise ValueError(f"starts, goals: expected two of [num, 2], got {starts.shape} and {goals.shape}")
        near = np.linalg.norm(starts - goals, axis=1) <= goal_radius
        starts, goals = self._beside_walls(starts), goals if goal_radius else self._beside_walls(goals)
        unique_goals, which = np.unique(goals, axis=0, return_inverse=True)
        which = which.reshape(-1)
        inside = np.linalg.norm(self.corners - unique_goals[:, None], axis=2) < goal_radius  # [num_goals, num_corners]
        lengths = self._last_legs(starts, goals, goal_radius, inside[which])
        first = self._legs(starts[:, None], self.corners[None])  # [num, num_corners]
        shape = (len(unique_goals), *self.corners.shape)
        last = self._last_legs(
            np.broadcast_to(self.corners, shape).reshape(-1, 2),
            np.broadcast_to(unique_goals[:, None], shape).reshape(-1, 2),
            goal_radius,
            (inside[:, None] & self._find_approaches(2 * goal_radius)).reshape(shape[0] * shape[1], shape[1]),
        ).reshape(shape[:2])
        to_goal = (self._corner_lengths[None] + last[:, None]).min(axis=2, initial=np.inf)  # from each corner
        around = (first + to_goal[which]).min(axis=1, initial=np.inf)
        return np.where(near, 0.0, np.minimum(lengths, around))

    @cached_property
    def corners(self) -> np.ndarray:
        """Where a shortest way may bend, float64[num_corners, 2]: ends of the chords around the walls' corners."""
        walls = self.maze.walls
        angles = np.linspace(0.0, np.pi / 2, _NUM_CHORDS + 1)
        arc = BALL_RADIUS * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        found = [np.empty((0, 2))]
        for i, j in np.argwhere(walls):
            for side in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
                row, column = i + side[0], j + side[1]
                inside = 0 <= row < walls.shape[0] and 0 <= column < walls.shape[1]
                if inside and not (walls[row, j] or walls[i, column] or walls[row, column]):
                    corner = np.array([i, j]) + CELL_CENTER_OFFSET + 0.5 * np.array(side)
                    found.append(corner + arc * side)
        return np.concatenate(found)

    @cached_property
    def _corner_lengths(self) -> np.ndarray:
        """Shortest ways between corners, float64[num_corners, num_corners]."""
        lengths = self._legs(self.corners[:, None], self.corners[None])
        for k in range(len(lengths)):  # Floyd-Warshall
            np.minimum(lengths, lengths[:, k, None] + lengths[None, k], out=lengths)
        return lengths

    def _find_approaches(self, distance: float) -> np.ndarray:
        """From which corner one may come so near to which, bool[num_corners, num_corners].

        A line from corner to corner that is blocked before it is within `distance` of the second leads into no circle
        of half that radius that the second lies in.
        """
        if distance not in self._approaches:
            starts, ends = np.broadcast_arrays(self.corners[:, None], self.corners[None])
            gaps = np.linalg.norm(starts - ends, axis=2, keepdims=True)
            share = np.maximum(1.0 - distance / np.maximum(gaps, 1e-300), 0.0)
            self._approaches[distance] = np.isfinite(self._legs(starts, starts + (ends - starts) * share))
        return self._approaches[distance]

    @cached_property
    def _approaches(self) -> dict[float, np.ndarray]:
        return {}

    def _last_legs(self, starts: np.ndarray, goals: np.ndarray, goal_radius: float, towards: np.ndarray) -> np.ndarray:
        """Lengths of straight lines float[num, 2] that end at the goals' circles; infinity where walls are in between.

        A line may run towards the goal, or towards a corner inside the circle, and ends where it meets the circle.

        Args:
            starts: float[num, 2].
            goals: float[num, 2].
            goal_radius: radius of the circles.
            towards: which corners inside the circle to try, bool[num, num_corners].
        """
        rest = np.linalg.norm(goals - starts, axis=1)
        fraction = np.where(rest > goal_radius, goal_radius / np.maximum(rest, 1e-300), 1.0)[:, None]
        lengths = self._legs(starts, goals + (starts - goals) * fraction)
        rows, corners = np.nonzero(towards)
        rows, corners = rows[rest[rows] > goal_radius], corners[rest[rows] > goal_radius]
        way, to_start = self.corners[corners] - starts[rows], starts[rows] - goals[rows]
        square, half = (way**2).sum(axis=1), (way * to_start).sum(axis=1)
        root = np.sqrt(half**2 - square * ((to_start**2).sum(axis=1) - goal_radius**2))
        legs = self._legs(starts[rows], starts[rows] + way * ((-half - root) / square)[:, None])
        np.minimum.at(lengths, rows, legs)
        return lengths

    def _legs(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Lengths of straight lines between float[..., 2], infinity where the ball would pass through a wall."""
        starts, ends = np.broadcast_arrays(starts, ends)
        flat = starts.reshape(-1, 2), ends.reshape(-1, 2)
        blocks = [
            self._clear(flat[0][first : first + _BLOCK_SIZE], flat[1][first : first + _BLOCK_SIZE])
            for first in range(0, len(flat[0]), _BLOCK_SIZE)
        ]
        clear = np.concatenate([np.empty(0, dtype=bool), *blocks]).reshape(starts.shape[:-1])
        return np.where(clear, np.linalg.norm(ends - starts, axis=-1), np.inf)

    def _clear(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Whether straight lines float[num, 2] stay clear of the walls, bool[num].

        A box with round corners is the union of the box made longer, the box made wider, and a disc at each corner.
        Lines are compared only with boxes and discs that they come near, which are few.
        """
        low, high = np.minimum(starts, ends), np.maximum(starts, ends)
        rows, boxes = _near(low, high, self.walls[:, 0] - BALL_RADIUS, self.walls[:, 1] + BALL_RADIUS)
        clear = np.ones(len(starts), dtype=bool)
        clear[rows[self._crosses(self.walls[boxes], starts[rows], ends[rows] - starts[rows])]] = False
        left = np.flatnonzero(clear)
        rows, corners = _near(low[left], high[left], self._box_corners - BALL_RADIUS, self._box_corners + BALL_RADIUS)
        rows = left[rows]
        ways, offsets = ends[rows] - starts[rows], self._box_corners[corners] - starts[rows]
        square = np.maximum((ways**2).sum(axis=1), 1e-300)
        along = np.clip((offsets * ways).sum(axis=1) / square, 0.0, 1.0)
        gaps = ((offsets - along[:, None] * ways) ** 2).sum(axis=1)
        clear[rows[gaps < _CHORD_CLEARANCE**2]] = False
        return clear

    @staticmethod
    def _crosses(boxes: np.ndarray, starts: np.ndarray, ways: np.ndarray) -> np.ndarray:
        """Whether lines float[num, 2] pass through boxes float[num, 2, 2] made longer or wider by the ball's radius."""
        crosses = np.zeros(len(starts), dtype=bool)
        still = ways == 0
        inverse = 1.0 / np.where(still, 1.0, ways)
        for axis in (0, 1):
            low, high = boxes[:, 0].copy(), boxes[:, 1].copy()
            low[:, axis] -= BALL_RADIUS - 1e-9
            high[:, axis] += BALL_RADIUS - 1e-9
            to_low, to_high = (low - starts) * inverse, (high - starts) * inverse
            beside = np.where((starts <= low) | (starts >= high), np.inf, -np.inf)
            enter = np.where(still, beside, np.minimum(to_low, to_high))
            leave = np.where(still, np.inf, np.maximum(to_low, to_high))
            enter, leave = np.maximum(enter[:, 0], enter[:, 1]), np.minimum(leave[:, 0], leave[:, 1])
            crosses |= np.maximum(enter, 0.0) < np.minimum(leave, 1.0) - 1e-12
        return crosses

    @cached_property
    def _box_corners(self) -> np.ndarray:
        x, y = self.walls[:, :, 0], self.walls[:, :, 1]
        return np.unique(np.stack([x[:, [0, 0, 1, 1]], y[:, [0, 1, 0, 1]]], axis=-1).reshape(-1, 2), axis=0)

    def _offsets(self, positions: np.ndarray) -> np.ndarray:
        """Vectors to positions from the nearest point of each wall, float64[..., num_walls, 2]."""
        positions = positions[..., None, :]
        return positions - np.clip(positions, self.walls[:, 0], self.walls[:, 1])

    def _beside_walls(self, positions: np.ndarray) -> np.ndarray:
        """Positions float[num, 2], those in contact with walls moved to where the ball just fits beside them."""
        positions = positions.copy()
        for _ in range(2):  # twice: in the corner between two walls
            offsets = self._offsets(positions)
            distances = np.sqrt((offsets**2).sum(axis=-1))
            for k in range(len(self.walls)):
                pressed = (distances[:, k] < BALL_RADIUS) & (distances[:, k] > 0)
                scale = BALL_RADIUS / np.where(pressed, distances[:, k], 1.0) - 1.0
                positions += np.where(pressed, scale, 0.0)[:, None] * offsets[:, k]
        return positions


def _near(
    low: np.ndarray, high: np.ndarray, other_low: np.ndarray, other_high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which boxes float[num, 2] overlap which others float[others, 2]: indices of both of each pair."""
    apart = np.zeros((len(low), len(other_low)), dtype=bool)
    for axis in (0, 1):
        apart |= low[:, axis, None] > other_high[:, axis]
        apart |= high[:, axis, None] < other_low[:, axis]
    first, second = np.nonzero(~apart)
    return first, second


@lru_cache(maxsize=64)
def make_maze_paths(maze: Maze) -> MazePaths:
    """The geometry of a maze, made once for each."""
    return MazePaths(maze)

"""The physical limit of Maze2D: the largest return that any policy can reach from a start.

A time-optimal control problem: steps outside the goal's circle are to be few, forces and speeds are limited on each
axis, walls stop the ball. It is solved by dynamic programming, backwards from the goal, on a lattice of states.

The lattice. Time goes in ticks of `_STEPS_TO_TOP_SPEED / num_speeds` steps (3 for the default). In a tick the force of
an axis is full, none or full the other way, so its speed goes from one of 2 `num_speeds` + 1 levels to a neighbour or
stays; a ball at level i that goes to level k advances by i + k lattice spacings, and by one more at top speed, where
D4RL clips before a step, not after. Positions, levels and time fit together: nothing is interpolated, and a chain of
states is a motion of the ball. A set of states is a bit for each position in one (long) Python integer for each pair of
levels, so that the states from which a set can be reached are found by shifts and bitwise or, first along one axis,
then along the other.

What is not exact: (1) ticks in place of steps, corrected by the mean; (2) damping (5 % of the force at top speed) helps
to brake and hinders to speed up, and is left out of both; (3) a ball that hits a wall stops there and rebounds with
`_RESTITUTION` of its speed; MuJoCo's rebounds with 0 to 0.24 of it; (4) a tick's end must be free, its middle may cut a
wall's corner by less than the ball's radius; (5) sliding around a wall's round corner is no move of the lattice.

Accuracy, measured by `benchmarks/maze2d_limits.py` (docs/results/maze2d_limits.json) on UMaze, Medium and Large: with
no wall in the way within 1.5 steps or 2 % of the closed form; bang-bang forces that follow the lattice's table, run in
the true environment, fall 1.4, 3.5 and 6.3 steps short of the limit in the mean, so the true one is no lower than
that; no episode of theirs or of the waypoint controller was above by more than 1.4 steps; a lattice of 10 speeds in
place of 7 moves the mean by less than half a step.

Source: Canny, Donald, Reif & Xavier 1988, "On the complexity of kinodynamic planning", for the lattice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from diffplan_envs.maze import BALL_RADIUS, CELL_CENTER_OFFSET, Maze
from diffplan_envs.physics import MAX_SPEED, STEP_SECONDS
from diffplan_envs.task import GOAL_RADIUS

_MASS = 1000 * 4 / 3 * math.pi * BALL_RADIUS**3
SPEED_GAIN = 100 * STEP_SECONDS / (_MASS + STEP_SECONDS)
"""Speed gained in a step of full force, units per second (gear 100, damping 1, MuJoCo's implicit damping)."""
SPEED_KEPT = _MASS / (_MASS + STEP_SECONDS)
"""Part of the speed that damping leaves after a step."""
TOP_ADVANCE = STEP_SECONDS * (SPEED_KEPT * MAX_SPEED + SPEED_GAIN)
"""The furthest the ball moves along an axis in a step, in units: it is clipped to `MAX_SPEED` before the step only."""

_STEPS_TO_TOP_SPEED = MAX_SPEED / SPEED_GAIN
_RESTITUTION = 0.23
_CORNER_SLACK = 0.008  # the lattice's spacing and the softness of MuJoCo's contacts
_DETOUR = 4  # cells that a fastest way may be longer than a shortest one
_NUM_DITHERED = 5
_MAX_CACHED = 200_000
_cached_steps: dict[tuple[tuple[str, ...], int, bytes], float] = {}

Levels = list[list[int]]
"""A set of states: an integer of bits (one for each position) for each level of the first axis and of the second."""


def limit_returns(maze: Maze, observations: np.ndarray, goals: np.ndarray, num_steps: int) -> np.ndarray:
    """The largest return (sparse reward) of episodes of `num_steps` steps, float64[num]; see `limit_steps`."""
    return np.maximum(num_steps - limit_steps(maze, observations, goals), 0.0)


def limit_steps(maze: Maze, observations: np.ndarray, goals: np.ndarray, *, num_speeds: int = 7) -> np.ndarray:
    """The fewest steps outside the goal's circle, of an episode without end.

    Args:
        maze: the maze.
        observations: start states, float[num, 4]: position in units, velocity in units per second.
        goals: float[num, 2]. Starts of one goal are solved together, and remembered.
        num_speeds: levels of speed from rest to full speed, at least 6 (or a tick could leap between two walls that
            touch at a corner). Cost grows with its fifth power.

    Returns:
        float64[num], in steps, with fractions; infinity where no way leads to the goal.

    Raises:
        ValueError: wrong shapes, fewer than 6 speeds, or a position in a wall.
    """
    observations, goals = np.asarray(observations, dtype=np.float64), np.asarray(goals, dtype=np.float64)
    num = len(observations)
    if observations.shape != (num, 4) or goals.shape != (num, 2):
        raise ValueError(f"expected observations [num, 4] and goals [num, 2], got {observations.shape}, {goals.shape}")
    if num_speeds < 6:
        raise ValueError(f"num_speeds: expected at least 6, got {num_speeds}")
    if not maze.is_free(np.concatenate([observations[:, :2], goals])).all():
        raise ValueError("expected positions in free cells, got one in a wall")
    keys = [(maze.rows, num_speeds, np.concatenate(pair).tobytes()) for pair in zip(observations, goals, strict=True)]
    found = {key: _cached_steps[key] for key in keys if key in _cached_steps}
    unknown = np.array([key not in found for key in keys], dtype=bool)
    for goal in np.unique(goals[unknown], axis=0):
        rows = np.flatnonzero(unknown & (goals == goal).all(axis=1))
        steps = _solve(maze, observations[rows], goal, num_speeds)
        found.update((keys[row], float(value)) for row, value in zip(rows, steps, strict=True))
    if len(_cached_steps) > _MAX_CACHED:
        _cached_steps.clear()
    _cached_steps.update(found)
    return np.array([found[key] for key in keys])


def _solve(maze: Maze, observations: np.ndarray, goal: np.ndarray, num_speeds: int) -> np.ndarray:
    """`limit_steps` for one goal."""
    region = _find_region(maze, observations[:, :2], goal)
    cells = maze.cell_at(observations[:, :2])
    steps = np.full(len(observations), np.inf)
    (connected,) = np.nonzero(region[cells[:, 0], cells[:, 1]])
    if not connected.size:
        return steps
    lattice = StateLattice(maze, num_speeds, region)
    nearby = lattice.find_nearby(observations[connected])
    ticks = np.zeros((len(connected), nearby.levels.shape[1], nearby.places.shape[1]))
    reached = np.zeros(ticks.shape, dtype=bool)
    reached |= (nearby.weights == 0)[:, :, None]
    pairs, which = np.unique(nearby.levels.reshape(-1, 2), axis=0, return_inverse=True)
    which = which.reshape(nearby.levels.shape[:2])
    for states in lattice.expand(goal):
        for k, (i, j) in enumerate(pairs):
            bits = lattice.to_bytes(states[i][j])
            rows, columns = np.nonzero(which == k)
            places = nearby.places[rows]
            reached[rows, columns] |= ((bits[places >> 3] >> (places & 7)) & 1) > 0
        if reached.all():
            break
        ticks += ~reached
    ticks[~reached] = np.inf
    steps[connected] = lattice.ticks_to_steps(observations[connected], goal, nearby, ticks)
    return steps


def _find_region(maze: Maze, positions: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Cells that a fastest way may pass, bool[rows, columns]; none where no start is connected to the goal."""
    goal_cell = tuple(maze.cell_at(goal))
    to_goal = maze.distances[:, :, goal_cell[0], goal_cell[1]]
    region = np.zeros(maze.walls.shape, dtype=bool)
    for cell in np.unique(maze.cell_at(positions), axis=0):
        from_start = maze.distances[cell[0], cell[1]]
        if to_goal[tuple(cell)] >= 0:
            region |= (from_start >= 0) & (from_start + to_goal <= to_goal[tuple(cell)] + _DETOUR)
    return region


@dataclass(frozen=True)
class NearbyStates:
    """The states of a lattice around each of a number of observations.

    Attributes:
        places: indices of positions, int[num, num_places].
        levels: indices of speed levels on both axes, int[num, 4, 2].
        weights: of the levels, float[num, 4], together 1.
    """

    places: np.ndarray
    levels: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class _Walls:
    """What the ball meets: bits of positions.

    Attributes:
        free: where it fits.
        beside: where a wall is next, for each axis in each direction (up, down).
    """

    free: int
    beside: list[list[int]]


class StateLattice:
    """States of the ball in a part of a maze, and the sets of them from which a goal is reached in so many ticks.

    Attributes:
        steps_per_tick: steps in a tick.
        speed_spacing: between levels of speed, units per second.
        spacing: between positions, in units.
        is_free: whether the ball fits at a position, bool[num_rows, num_columns].

    Args:
        maze: the maze.
        num_speeds: levels of speed from rest to full speed.
        region: bool[rows, columns], cells to move in; those outside count as walls.
    """

    def __init__(self, maze: Maze, num_speeds: int, region: np.ndarray) -> None:
        self.num_speeds = num_speeds
        self.steps_per_tick = _STEPS_TO_TOP_SPEED / num_speeds
        self.speed_spacing = MAX_SPEED / num_speeds
        self.spacing = TOP_ADVANCE * self.steps_per_tick / (2 * num_speeds + 1)
        cells = np.argwhere(region)
        self._low = cells.min(axis=0) + CELL_CENTER_OFFSET - 0.5
        size = cells.max(axis=0) + CELL_CENTER_OFFSET + 0.5 - self._low
        # A border of walls as wide as the largest move, so that a shift never leads around to the next row.
        self._border = 2 * num_speeds + 2
        shape = np.ceil(size / self.spacing).astype(int) + 1 + 2 * self._border
        x, y = (self._low[k] + self.spacing * (np.arange(shape[k]) - self._border) for k in (0, 1))
        self.is_free = np.ones((int(shape[0]), int(shape[1])), dtype=bool)
        for i, j in np.argwhere(~np.pad(region, 1)) - 1:
            gap_x = np.maximum(np.abs(x - i - CELL_CENTER_OFFSET) - 0.5, 0.0)
            gap_y = np.maximum(np.abs(y - j - CELL_CENTER_OFFSET) - 0.5, 0.0)
            rows, columns = np.flatnonzero(gap_x < BALL_RADIUS), np.flatnonzero(gap_y < BALL_RADIUS)
            gaps = np.hypot(gap_x[rows, None], gap_y[columns])
            self.is_free[np.ix_(rows, columns)] &= gaps >= BALL_RADIUS - _CORNER_SLACK
        self.is_free[[0, -1]] = self.is_free[:, [0, -1]] = False
        self._positions = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1)
        beside = [
            [self._to_bits(self.is_free & ~np.roll(self.is_free, -sign, axis)) for sign in (1, -1)] for axis in (0, 1)
        ]
        self._walls = _Walls(self._to_bits(self.is_free), beside)

    def find_nearby(self, observations: np.ndarray) -> NearbyStates:
        """States around observations float[num, 4].

        Whole ticks say too little about one state, so `_NUM_DITHERED`² positions around it, together as wide as the
        ball moves in a tick, are to be averaged: steps grow evenly with distance. Speeds are to be interpolated.
        """
        positions = observations[:, :2]
        half = 0.5 * TOP_ADVANCE * self.steps_per_tick
        shift = np.linspace(-half, half, _NUM_DITHERED)
        shifts = np.stack(np.meshgrid(shift, shift, indexing="ij"), axis=-1).reshape(-1, 2)
        places, opposite = (self._find_places(positions[:, None] + sign * shifts) for sign in (1, -1))
        # Beside a wall, only shifts that are free both ways: one side alone would move the mean.
        is_free = self.is_free.reshape(-1)
        places = np.where(is_free[places] & is_free[opposite], places, self._find_free_places(positions)[:, None])
        speeds = np.clip(observations[:, 2:] / self.speed_spacing, -self.num_speeds, self.num_speeds)
        low = np.clip(np.floor(speeds).astype(int), -self.num_speeds, self.num_speeds - 1)
        corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
        share = (speeds - low)[:, None]
        weights = np.where(corners == 1, share, 1.0 - share).prod(axis=2)
        return NearbyStates(places, low[:, None] + corners + self.num_speeds, weights)

    def ticks_to_steps(
        self, observations: np.ndarray, goal: np.ndarray, nearby: NearbyStates, ticks: np.ndarray
    ) -> np.ndarray:
        """Steps outside the goal's circle, float[num], from the ticks float[num, 4, num_places] of nearby states."""
        outside = np.linalg.norm(observations[:, :2] - goal, axis=1) > GOAL_RADIUS
        mean_ticks = np.where(nearby.weights[:, :, None] > 0, ticks, 0.0).mean(axis=2)
        steps = self.steps_per_tick * (mean_ticks * nearby.weights).sum(axis=1)
        # The last tick begins outside and ends inside: on average half of its steps are still outside.
        return steps + np.where(outside, 0.5 * (self.steps_per_tick - 1), 0.0)

    def _find_places(self, positions: np.ndarray) -> np.ndarray:
        """Index of the lattice position nearest to positions float[..., 2], int[...]."""
        cells = np.rint((positions - self._low) / self.spacing).astype(int) + self._border
        cells = np.clip(cells, 0, np.array(self.is_free.shape) - 1)
        return cells[..., 0] * self.is_free.shape[1] + cells[..., 1]

    def _find_free_places(self, positions: np.ndarray) -> np.ndarray:
        """The same for positions float[num, 2] among those where the ball fits, if one is near; int[num]."""
        places, is_free = self._find_places(positions), self.is_free.reshape(-1)
        (pressed,) = np.nonzero(~is_free[places])
        reach = min(math.ceil(BALL_RADIUS / self.spacing) + 1, self._border)
        offsets = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
        offsets = offsets[np.argsort((offsets**2).sum(axis=1), kind="stable")] @ [self.is_free.shape[1], 1]
        around = np.clip(places[pressed, None] + offsets, 0, is_free.size - 1)
        fits = is_free[around]
        places[pressed] = around[np.arange(len(pressed)), fits.argmax(axis=1)]
        return places

    def expand(self, goal: np.ndarray) -> Iterator[Levels]:
        """Sets of states with at most 0, 1, 2... ticks outside the goal's circle, until they grow no more.

        A tick counts if it ends outside, so the first set also has the states outside with one tick to go. Ticks
        inside are free, in a circle that is left again too; only the tick with which such a circle is entered counts.
        """
        inside = self._to_bits(self.is_free & (np.linalg.norm(self._positions - goal, axis=-1) <= GOAL_RADIUS))
        if not inside:
            return
        first = (inside & -inside).bit_length() - 1  # sets inside the circle begin here: they are short integers
        circle = _Walls(inside >> first, [[(bits & inside) >> first for bits in row] for row in self._walls.beside])
        num_levels = 2 * self.num_speeds + 1
        staying: Levels = [[circle.free] * num_levels] * num_levels
        while True:  # those inside that can stay inside for ever
            next_staying = _meet(staying, self._come_from(staying, circle))
            if next_staying == staying:
                break
            staying = next_staying
        states = self._come_from([[bits << first for bits in row] for row in staying], self._walls)
        while True:
            yield states
            larger = _join(states, self._come_from(states, self._walls))
            if larger == states:
                return
            leaving: Levels = [[(bits & inside) >> first for bits in row] for row in larger]
            while True:
                next_leaving = _join(leaving, self._come_from(leaving, circle))
                if next_leaving == leaving:
                    break
                leaving = next_leaving
            states = _join(larger, [[bits << first for bits in row] for row in leaving])

    def to_bytes(self, bits: int) -> np.ndarray:
        """Bits of a set as uint8[...], 8 positions each, the first in the lowest bit."""
        return np.frombuffer(bits.to_bytes((self.is_free.size + 7) // 8, "little"), dtype=np.uint8)

    def _to_bits(self, mask: np.ndarray) -> int:
        return int.from_bytes(np.packbits(mask.reshape(-1), bitorder="little").tobytes(), "little")

    def _come_from(self, states: Levels, walls: _Walls) -> Levels:
        """The states from which a tick leads into a set."""
        levels = range(2 * self.num_speeds + 1)
        row_size = self.is_free.shape[1]
        moved = [self._come_from_along([states[i][j] for i in levels], row_size, walls.beside[0]) for j in levels]
        both = [self._come_from_along([moved[j][i] for j in levels], 1, walls.beside[1]) for i in levels]
        return [[bits & walls.free for bits in row] for row in both]

    def _come_from_along(self, states: list[int], stride: int, beside: list[int]) -> list[int]:
        """The same along one axis: sets for each level of it, whose neighbours are `stride` bits apart."""
        top = self.num_speeds
        sources = []
        for level in range(-top, top + 1):
            bits = 0
            for next_level in range(max(level - 1, -top), min(level + 1, top) + 1):
                advance = level + next_level
                if abs(advance) == 2 * top:
                    advance += 1 if advance > 0 else -1
                bits |= _shift(states[next_level + top], advance * stride)
            sources.append(bits)
        for sign, wall in ((1, beside[0]), (-1, beside[1])):
            rebound, hits, reach = -1, 0, 0
            for level in range(1, top + 1):
                if round(_RESTITUTION * level) != rebound:
                    rebound = round(_RESTITUTION * level)
                    hits, reach = states[top - sign * rebound] & wall, 0
                while hits and reach < 2 * level:  # from all positions so near the wall
                    step = min(max(reach, 1), 2 * level - reach)
                    hits |= _shift(hits, sign * step * stride)
                    reach += step
                sources[top + sign * level] |= hits
        return sources


def _shift(bits: int, places: int) -> int:
    """Bits that come from `places` further on (before, where negative)."""
    return bits >> places if places >= 0 else bits << -places


def _join(first: Levels, second: Levels) -> Levels:
    return [[a | b for a, b in zip(row, other, strict=True)] for row, other in zip(first, second, strict=True)]


def _meet(first: Levels, second: Levels) -> Levels:
    return [[a & b for a, b in zip(row, other, strict=True)] for row, other in zip(first, second, strict=True)]

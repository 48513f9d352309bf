"""D4RL's waypoint controller, for a batch of mazes: walk from cell to cell to a goal, then to the next goal.

Source: D4RL `pointmaze/waypoint_controller.py`, `q_iteration.py` and `scripts/generation/generate_maze2d_datasets.py`.
Its rules, kept here:

* the path is greedy for the exact values of a grid world with the moves stay, up, down, left, right (the first best
  move wins), from the cell that the position rounds to, to the cell that the goal rounds to;
* each waypoint but the last is shifted by -U(0, 0.2) on both axes;
* action = clip(10 (waypoint - position) - velocity, -1, 1);
* the next waypoint is due once the ball is within 0.1 of this one and moved less than 0.1 in the last step;
* a goal is solved by the same rule at its cell; then, or after a number of steps, comes a new goal: a random free cell.

Not kept: D4RL repeats one stale observation on the step that solves a goal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diffplan.behaviors.draws import BlockDraws

POSITION_GAIN, VELOCITY_GAIN = 10.0, 1.0
THRESHOLD = 0.1
"""Distance to a waypoint, and distance moved in the last step, below which the waypoint is done."""
WAYPOINT_SHIFT = 0.2
_MOVES = ((0, -1), (0, 1), (-1, 0), (1, 0))


class WaypointBehavior:
    """The waypoint controller in a batch of equal mazes.

    Args:
        maze: the maze; see `diffplan_envs.maze.Maze`.
        action_noise: standard deviation of noise added to the action before it is clipped (D4RL's `--noisy` has 0.5).
        max_goal_steps: steps after which a goal is given up for the next.
        goals: float[num_envs, 2], fixed goals to walk to and stay at, for evaluation; None to draw goals.
    """

    def __init__(
        self, maze: Any, *, action_noise: float = 0.0, max_goal_steps: int = 800, goals: np.ndarray | None = None
    ) -> None:
        self._maze = maze
        self._action_noise = action_noise
        self._max_goal_steps = max_goal_steps
        self._fixed_goals = goals

    def reset(self, observations: np.ndarray, generators: Sequence[np.random.Generator]) -> None:
        """Start episodes; a first goal is drawn for each environment unless goals are fixed."""
        num_envs = len(observations)
        self._generators = generators
        self._noise = BlockDraws(generators, lambda generator, shape: generator.standard_normal(shape), 2)
        self._goals = np.zeros((num_envs, 2))
        self._waypoints = np.zeros((num_envs, self._maze.distances.max() + 1, 2))
        self._num_waypoints = np.zeros(num_envs, dtype=int)
        self._waypoint_index = np.zeros(num_envs, dtype=int)
        self._goal_steps = np.zeros(num_envs, dtype=int)
        self._previous = observations[:, :2].copy()
        for i in range(num_envs):
            self._pursue(i, observations[i, :2], None if self._fixed_goals is None else self._fixed_goals[i])

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions towards the current waypoints."""
        positions, velocities = observations[:, :2], observations[:, 2:4]
        slow = _norm(self._previous - positions) < THRESHOLD
        solved = slow & (_norm(positions - self._goals) < THRESHOLD)
        if self._fixed_goals is None:
            for i in np.flatnonzero(solved | (self._goal_steps >= self._max_goal_steps)):
                self._pursue(int(i), positions[i], None)
                solved[i] = False
        waypoints = self._waypoints[np.arange(len(positions)), self._waypoint_index]
        targets = np.where(solved[:, None], self._goals, waypoints)
        actions = POSITION_GAIN * (targets - positions) - VELOCITY_GAIN * velocities
        done = ~solved & slow & (_norm(positions - targets) < THRESHOLD)
        self._waypoint_index = np.minimum(self._waypoint_index + done, self._num_waypoints - 1)
        self._previous = positions.copy()
        self._goal_steps += 1
        if self._action_noise:
            actions = actions + self._action_noise * self._noise.next()
        return np.clip(actions, -1.0, 1.0).astype(np.float32)

    def take_over(self, observations: np.ndarray, taken: np.ndarray) -> None:
        """Choose new goals where another behavior moved the ball; the way to the old one may be behind a wall now.

        Args:
            observations: float[num_envs, observation_dim].
            taken: environments that this controller begins to act in, bool[num_envs].
        """
        for i in np.flatnonzero(taken):
            goal = None if self._fixed_goals is None else self._fixed_goals[i]
            self._pursue(int(i), observations[i, :2], goal)

    def columns(self) -> dict[str, np.ndarray]:
        """`goal`: the cell that is pursued."""
        return {"goal": self._goals.copy()}

    def _pursue(self, i: int, position: np.ndarray, goal: np.ndarray | None) -> None:
        """Choose a goal for environment i (a random free cell unless given) and find the way there."""
        generator, cells = self._generators[i], self._maze.free_cells
        goal_cell = cells[generator.integers(len(cells))] if goal is None else self._rounded(goal)
        cell = self._rounded(position)
        path = []
        while not path or tuple(cell) != tuple(goal_cell):
            cell = self._next_cell(cell, goal_cell)
            path.append(cell)
        waypoints = np.array(path, dtype=np.float64)
        waypoints[:-1] -= generator.uniform(0.0, WAYPOINT_SHIFT, (len(path) - 1, 2))
        self._waypoints[i, : len(path)] = waypoints
        self._num_waypoints[i], self._waypoint_index[i], self._goal_steps[i] = len(path), 0, 0
        self._goals[i] = goal_cell

    def _rounded(self, position: np.ndarray) -> np.ndarray:
        """The cell of a position by D4RL's rounding; if that is a wall cell, the cell that holds the position."""
        cell = np.rint(position).astype(int)
        if (cell < 0).any() or (cell >= self._maze.walls.shape).any() or self._maze.walls[tuple(cell)]:
            return self._maze.cell_at(position)
        return cell

    def _next_cell(self, cell: np.ndarray, goal_cell: np.ndarray) -> np.ndarray:
        """The neighbour that is one move nearer, the first in D4RL's order; the cell itself at the goal."""
        to_goal = self._maze.distances[:, :, goal_cell[0], goal_cell[1]]
        if to_goal[tuple(cell)] < 0:
            raise ValueError(f"maze: expected a way from cell {tuple(cell)} to cell {tuple(goal_cell)}, got none")
        for move in _MOVES:
            neighbour = cell + move
            if 0 <= to_goal[tuple(neighbour)] == to_goal[tuple(cell)] - 1:
                return neighbour
        return cell


def _norm(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt((vectors * vectors).sum(axis=-1))

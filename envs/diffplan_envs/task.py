"""What happens around the physics of Maze2D: where episodes start, where goals lie, what is rewarded.

One environment and a batch share this module, so that they agree to the last bit.
Source: D4RL `pointmaze/maze_model.py`, `reset_model`, `set_target`, `step`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from diffplan_envs.maze import MAZE_TASKS, Maze, make_maze

GOAL_RADIUS = 0.5
"""A step is rewarded, and a goal reached, within this distance of the goal."""
PLACEMENT_NOISE = 0.1
"""Starts and redrawn goals lie uniformly within this distance of a cell's integer coordinates, on each axis."""
START_SPEED = 0.1
"""Standard deviation of each component of the start velocity, units per second."""

RewardType = Literal["sparse", "dense"]


@dataclass(frozen=True)
class Maze2DTask:
    """A maze, its reward and its rule for goals.

    Attributes:
        maze: the maze.
        reward_type: `sparse` pays 1 within `GOAL_RADIUS` of the goal, `dense` pays exp(-distance).
        redraw_goal: `False` keeps the goal on the maze's `G` cell (Maze2D); `True` draws one at each reset (Multi2D).
    """

    maze: Maze
    reward_type: RewardType = "sparse"
    redraw_goal: bool = False

    def __post_init__(self) -> None:
        if self.reward_type not in get_args(RewardType):
            raise ValueError(f"reward_type: expected one of {get_args(RewardType)}, got {self.reward_type!r}")

    @classmethod
    def make(cls, maze: str | Maze, reward_type: RewardType, redraw_goal: bool) -> Maze2DTask:
        """A task from a maze's name or layout."""
        return cls(make_maze(maze), reward_type, redraw_goal)

    def draw_start(
        self, generator: np.random.Generator, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw a start state and a goal; `options` may fix either.

        Args:
            generator: source of the draws. The same numbers are drawn whatever the options say.
            options: `observation` float[4] (x, y, vx, vy) and `goal` float[2], each optional.

        Returns:
            The start observation float64[4] and the goal float64[2].

        Raises:
            ValueError: an option of the wrong shape, not finite, unknown, or placed in a wall.
        """
        cells = self.maze.free_cells
        observation = np.empty(4)
        observation[:2] = cells[generator.integers(len(cells))] + generator.uniform(
            -PLACEMENT_NOISE, PLACEMENT_NOISE, size=2
        )
        observation[2:] = START_SPEED * generator.standard_normal(2)
        goal = self.maze.goal_cell.astype(np.float64)
        if self.redraw_goal:
            goal = cells[generator.integers(len(cells))] + generator.uniform(-PLACEMENT_NOISE, PLACEMENT_NOISE, size=2)
        options = options or {}
        unknown = sorted(set(options) - {"observation", "goal"})
        if unknown:
            raise ValueError(f"reset options: expected 'observation' and 'goal', got {unknown}")
        if options.get("observation") is not None:
            observation = self._placed("observation", options["observation"], 4)
        if options.get("goal") is not None:
            goal = self._placed("goal", options["goal"], 2)
        return observation, goal

    def _placed(self, name: str, value: Any, size: int) -> np.ndarray:
        array = np.array(value, dtype=np.float64)
        if array.shape != (size,) or not np.isfinite(array).all():
            raise ValueError(f"reset option {name!r}: expected {size} finite numbers, got {value!r}")
        if not self.maze.is_free(array[:2]):
            cell = tuple(int(c) for c in self.maze.cell_at(array[:2]))
            raise ValueError(
                f"reset option {name!r}: expected a position in a free cell, got {array[:2].tolist()}, which lies in "
                f"the wall cell {cell} or outside; free cells (i, j) span [i - 0.7, i + 0.3) x [j - 0.7, j + 0.3)"
            )
        return array

    def compute_reward(self, positions: np.ndarray, goals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reward float[...] and success bool[...] of positions float[..., 2] after a step."""
        distances = np.sqrt(((positions - goals) ** 2).sum(axis=-1))
        success = distances <= GOAL_RADIUS
        return (success.astype(np.float64) if self.reward_type == "sparse" else np.exp(-distances)), success

    @property
    def reference_returns(self) -> tuple[float, float] | None:
        """D4RL's returns of a random policy and of an expert, that scores are normalised with; None off its mazes.

        They hold for episodes of the `max_episode_steps` in `MAZE_TASKS`.
        Multi2D is scored with the references of Maze2D, as in Janner et al. 2022.
        """
        if self.maze_name is None:
            return None
        known = MAZE_TASKS[self.maze_name]
        return known.sparse_reference_returns if self.reward_type == "sparse" else known.dense_reference_returns

    @property
    def maze_name(self) -> str | None:
        """The name of D4RL's maze with this layout; None for an own layout."""
        return next((name for name, known in MAZE_TASKS.items() if Maze(known.layout).rows == self.maze.rows), None)

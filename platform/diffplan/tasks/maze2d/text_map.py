"""A maze and the positions in it as text."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffplan.config import EnvConfig
from diffplan.errors import ConfigError
from diffplan.tasks.maze2d.environment import get_maze
from diffplan.terminal import Characters, describe_shades, draw_density
from diffplan_envs.maze import CELL_CENTER_OFFSET

MAP_LINES = 24


def draw_text_map(env: EnvConfig, positions: np.ndarray, width: int, characters: Characters) -> list[str] | None:
    """Positions among the walls of a maze: position 0 downwards, position 1 to the right.

    Args:
        env: the environment.
        positions: float[rows, 2].
        width: of the terminal.
        characters: to draw with.

    Returns:
        Lines; None if there is no maze, or it does not fit.
    """
    maze = _find_maze(env)
    if maze is None or maze.walls.shape[1] > width or maze.walls.shape[0] > 2 * MAP_LINES:
        return None
    num_rows, num_columns = maze.walls.shape
    lines = max(min(MAP_LINES // num_rows, width // num_columns // 2), 1)
    across = min(2 * lines, width // num_columns)
    low = CELL_CENTER_OFFSET - 0.5
    counts, *_ = np.histogram2d(
        positions[:, 0],
        positions[:, 1],
        bins=(num_rows * lines, num_columns * across),
        range=((low, low + num_rows), (low, low + num_columns)),
    )
    cells = counts.reshape(num_rows, lines, num_columns, across).sum(axis=(1, 3))
    free = ~maze.walls
    visited = f"{int((cells[free] > 0).sum())} of {int(free.sum())} free cells visited"
    drawn = draw_density(counts, np.kron(maze.walls, np.ones((lines, across), bool)), characters)
    legend = [visited, f"{characters.wall} wall", *describe_shades(characters)]
    inside = 1 - maze.is_free(np.clip(positions, -1e6, 1e6)).mean()  # is_free casts them to integers
    warning = [f"{inside:.1%} of the positions lie outside the free cells: is this its maze?"] if inside > 0.01 else []
    return [*drawn, "   ".join(legend), *warning]


def _find_maze(env: EnvConfig) -> Any | None:
    try:
        return get_maze(env)
    except ConfigError:
        return None

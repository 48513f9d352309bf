"""Maze layouts: the cells of a maze, where a ball may be, and the layouts of D4RL.

Coordinates. A layout is rows of characters; cell `(i, j)` is row `i`, column `j`. The first position coordinate runs
along rows, the second along columns. The ball's joints are offset from the walls, so **the centre of cell `(i, j)` is
the position `(i - 0.2, j - 0.2)`**, while resets and goals are placed around the integer `(i, j)`.

Source: D4RL `pointmaze/maze_model.py` (layouts, offsets) and `pointmaze/__init__.py` (limits, reference returns).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

WALL, FREE, GOAL = "#", "O", "G"
CELL_CENTER_OFFSET = -0.2
"""Position of a cell's centre minus the cell's index, the same on both axes."""
BALL_RADIUS = 0.1


@dataclass(frozen=True)
class Maze:
    r"""A maze given as rows of `#` (wall), `O` (free) and `G` (goal), joined by `/`, `\\` or newlines.

    Raises:
        ValueError: rows of different length, an unknown character, no free cell, or a border that is not closed.
    """

    layout: str

    def __post_init__(self) -> None:
        rows = self.rows
        widths = {len(row) for row in rows}
        if len(rows) < 3 or len(widths) != 1:
            raise ValueError(f"maze: expected at least 3 rows of one length, got lengths {[len(r) for r in rows]}")
        unknown = sorted(set("".join(rows)) - {WALL, FREE, GOAL})
        if unknown:
            raise ValueError(f"maze: expected only the characters '#', 'O' and 'G', got {unknown}")
        border = rows[0] + rows[-1] + "".join(row[0] + row[-1] for row in rows)
        if set(border) != {WALL}:
            raise ValueError(f"maze: the border must be closed with '#', got {'/'.join(rows)!r}")
        if not self.free_cells.size:
            raise ValueError("maze: expected at least one free cell ('O' or 'G'), got none")

    @cached_property
    def rows(self) -> tuple[str, ...]:
        """The rows of the layout."""
        text = self.layout.strip().replace("\\", "/").replace("\n", "/")
        return tuple(row.strip() for row in text.split("/") if row.strip())

    @cached_property
    def walls(self) -> np.ndarray:
        """Which cells are walls, bool[num_rows, num_columns]."""
        return np.array([[c == WALL for c in row] for row in self.rows])

    @cached_property
    def free_cells(self) -> np.ndarray:
        """Cells a reset may choose, int[num_cells, 2]: free cells by row, then goal cells (D4RL's order)."""
        characters = np.array([list(row) for row in self.rows])
        return np.concatenate([np.argwhere(characters == FREE), np.argwhere(characters == GOAL)])

    @cached_property
    def goal_cell(self) -> np.ndarray:
        """The fixed goal's cell, int[2]: the first `G`, or the last free cell of a layout without one."""
        goals = [(i, j) for i, row in enumerate(self.rows) for j, c in enumerate(row) if c == GOAL]
        return np.array(goals[0]) if goals else self.free_cells[-1]

    def cell_at(self, position: np.ndarray) -> np.ndarray:
        """Cell that contains a position, int[..., 2], clipped to the layout."""
        cell = np.floor(np.asarray(position, dtype=np.float64) + 0.5 - CELL_CENTER_OFFSET).astype(int)
        return np.clip(cell, 0, np.array(self.walls.shape) - 1)

    def is_free(self, position: np.ndarray) -> np.ndarray:
        """Whether a position lies in a free cell, bool[...]; false outside the layout."""
        position = np.asarray(position, dtype=np.float64)
        low = CELL_CENTER_OFFSET - 0.5
        inside = np.all((position >= low) & (position < np.array(self.walls.shape) + low), axis=-1)
        cell = self.cell_at(position)
        return inside & ~self.walls[cell[..., 0], cell[..., 1]]

    @cached_property
    def distances(self) -> np.ndarray:
        """Number of moves between cells, int[rows, columns, rows, columns] from source to target; -1 where none."""
        shape = self.walls.shape
        distances = np.full((*shape, *shape), -1)
        for target in map(tuple, self.free_cells):
            to_target = distances[:, :, target[0], target[1]]
            to_target[target] = 0
            frontier = [target]
            while frontier:
                reached = []
                for i, j in frontier:
                    for cell in ((i, j - 1), (i, j + 1), (i - 1, j), (i + 1, j)):
                        if not self.walls[cell] and to_target[cell] < 0:
                            to_target[cell] = to_target[i, j] + 1
                            reached.append(cell)
                frontier = reached
        return distances


@dataclass(frozen=True)
class MazeTask:
    """A named layout with D4RL's episode limit and reference returns (of a random policy and of an expert)."""

    layout: str
    max_episode_steps: int
    sparse_reference_returns: tuple[float, float]
    dense_reference_returns: tuple[float, float]


MAZE_TASKS: dict[str, MazeTask] = {
    "open": MazeTask("#######/#OOOOO#/#OOGOO#/#OOOOO#/#######", 150, (0.01, 20.66), (11.17817, 27.166538620695782)),
    "umaze": MazeTask("#####/#GOO#/###O#/#OOO#/#####", 300, (23.85, 161.86), (68.537689, 193.66285642381482)),
    "medium": MazeTask(
        "########/#OO##OO#/#OO#OOO#/##OOO###/#OO#OOO#/#O#OO#O#/#OOO#OG#/########",
        600,
        (13.13, 277.39),
        (44.264742, 297.4552547777125),
    ),
    "large": MazeTask(
        "############/#OOOO#OOOOO#/#O##O#O#O#O#/#OOOOOO#OOO#/#O####O###O#/#OO#O#OOOOO#/##O#O#O#O###/#OO#OOO#OGO#/"
        "############",
        800,
        (6.7, 273.99),
        (30.569041, 303.4857382709002),
    ),
    "eval-umaze": MazeTask("#####/#OOG#/#O###/#OOO#/#####", 300, (36.63, 141.4), (56.95455, 178.21373133248397)),
    "eval-medium": MazeTask(
        "########/#OOOOOG#/#O#O##O#/#OOOO#O#/###OO###/#OOOOOO#/#OO##OO#/########",
        600,
        (13.07, 204.93),
        (42.28578, 235.5658957482388),
    ),
    "eval-large": MazeTask(
        "############/#OO#OOO#OGO#/##O###O#O#O#/#OO#O#OOOOO#/#O##O#OO##O#/#OOOOOO#OOO#/#O##O#O#O###/#OOOO#OOOOO#/"
        "############",
        800,
        (16.4, 302.22),
        (56.95455, 326.09647655082637),
    ),
}
"""D4RL's layouts. `open` keeps D4RL's v0 limit and references: it has no v1."""


def make_maze(maze: str | Maze) -> Maze:
    """A maze from a name of `MAZE_TASKS`, a layout string, or a maze.

    Raises:
        ValueError: neither a known name nor a valid layout.
    """
    if isinstance(maze, Maze):
        return maze
    if maze in MAZE_TASKS:
        return Maze(MAZE_TASKS[maze].layout)
    if WALL not in maze:
        raise ValueError(f"maze: expected one of {sorted(MAZE_TASKS)} or a layout such as '###/#G#/###', got {maze!r}")
    return Maze(maze)

"""Pictures of mazes. Each function draws onto a fresh figure and returns it; nothing touches pyplot's global state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, NullFormatter

from diffplan.config import EnvConfig
from diffplan.report.charts import MARK_COLOR, OURS_COLOR, TEXT_COLOR
from diffplan.report.curves import CurveFigures
from diffplan.tasks.contracts import Figures, FigureWords
from diffplan.tasks.maze2d.environment import get_maze
from diffplan.types import Plan

WALL_COLOR, FLOOR_COLOR, START_COLOR, GOAL_COLOR = TEXT_COLOR, "#f6f4ef", OURS_COLOR, MARK_COLOR
CELL_CENTER_OFFSET = -0.2
"""Position of a cell's centre minus the cell's index; see `diffplan_envs.maze`."""
COVERAGE_BINS_PER_CELL = 12
VISIBLE_BORDER = 0.4
_COVERAGE_COLORS = LinearSegmentedColormap.from_list("coverage", ["#dfe9e2", "#8fbfb0", START_COLOR, "#123a31"])


def draw_maze(axes: Axes, maze: Any, *, border: float = 1.0) -> None:
    """Draw a maze in the orientation of its text map: position 0 downwards, position 1 to the right.

    Args:
        axes: where to draw.
        maze: the maze.
        border: visible width of the outer wall, in cells.
    """
    num_rows, num_columns = maze.walls.shape
    low = CELL_CENTER_OFFSET - 0.5
    axes.add_patch(Rectangle((low, low), num_columns, num_rows, color=FLOOR_COLOR, zorder=0))
    for row, column in np.argwhere(maze.walls):
        axes.add_patch(Rectangle((column + low, row + low), 1, 1, color=WALL_COLOR, linewidth=0, zorder=1))
    hidden = 1 - border
    axes.set_xlim(low + hidden, low + num_columns - hidden)
    axes.set_ylim(low + num_rows - hidden, low + hidden)
    axes.set_aspect("equal")
    axes.set_axis_off()


def draw_path(
    axes: Axes, positions: np.ndarray, *, linewidth: float = 2.0, alpha: float = 1.0, bright_at: int | None = None
) -> None:
    """Draw positions float[steps, 2] as a line that turns from dark to bright over time.

    Args:
        axes: where to draw.
        positions: the path.
        linewidth: width of the line in points.
        alpha: opacity of the line.
        bright_at: step from which on the line has the brightest colour; None for the last.
    """
    points = positions[:, ::-1]
    segments = np.stack([points[:-1], points[1:]], axis=1)
    lines = LineCollection(segments, cmap="viridis", linewidth=linewidth, alpha=alpha, zorder=3, capstyle="round")  # type: ignore[arg-type]
    last = max(len(segments) - 1 if bright_at is None else bright_at, 1)
    lines.set_array(np.minimum(np.arange(len(segments)) / last, 1.0))
    lines.set_clim(0, 1)
    axes.add_collection(lines)


def mark(axes: Axes, position: np.ndarray, color: str, marker: str = "o", size: float = 60) -> None:
    """Mark a position."""
    axes.scatter(position[1], position[0], c=color, marker=marker, s=size, zorder=5, edgecolors="white", linewidths=1)


def draw_coverage(maze: Any, positions: np.ndarray) -> Figure:
    """How often each place of a maze occurs among positions float[rows, 2], on a logarithmic scale."""
    num_rows, num_columns = maze.walls.shape
    low = CELL_CENTER_OFFSET - 0.5
    counts, *_ = np.histogram2d(
        positions[:, 0],
        positions[:, 1],
        bins=(num_rows * COVERAGE_BINS_PER_CELL, num_columns * COVERAGE_BINS_PER_CELL),
        range=((low, low + num_rows), (low, low + num_columns)),
    )
    figure = Figure(figsize=(4.2, 4.2 * num_rows / num_columns * 0.88), layout="constrained")
    axes = figure.subplots()
    draw_maze(axes, maze, border=VISIBLE_BORDER)
    extent = (low, low + num_columns, low + num_rows, low)
    shares = np.ma.masked_equal(counts / max(len(positions), 1) * 100, 0)
    picture = axes.imshow(
        shares, cmap=_COVERAGE_COLORS, norm=LogNorm(), extent=extent, interpolation="nearest", zorder=2
    )
    bar = figure.colorbar(picture, ax=axes, fraction=0.045, pad=0.02, aspect=24)
    bar.set_label("% of all steps, per bin", fontsize=8, color=WALL_COLOR)
    bar.ax.tick_params(labelsize=7, length=2, colors=WALL_COLOR)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def draw_plan_on_maze(maze: Any, positions: np.ndarray, start: np.ndarray, goal: np.ndarray) -> Figure:
    """One plan, noisy or clean, as a line with its steps; parts outside the maze are cut off."""
    figure, axes = _maze_figure(maze)
    draw_path(axes, positions, linewidth=1.3, alpha=0.8)
    shade = np.linspace(0, 1, len(positions))
    axes.scatter(positions[:, 1], positions[:, 0], c=shade, cmap="viridis", s=9, zorder=4, linewidths=0)
    mark(axes, start, START_COLOR, size=70)
    mark(axes, goal, GOAL_COLOR, "*", 170)
    return figure


def draw_rollout(
    maze: Any, plan: np.ndarray, executed: np.ndarray, goal: np.ndarray, reached_step: int | None
) -> Figure:
    """An executed path float[steps, 2] over the plan that it follows; bright from where the goal was reached."""
    figure, axes = _maze_figure(maze)
    draw_path(axes, executed, linewidth=2.6, bright_at=reached_step)
    axes.plot(plan[:, 1], plan[:, 0], color="black", linewidth=1.1, linestyle=(0, (3, 2)), zorder=4)
    mark(axes, executed[0], START_COLOR, size=70)
    mark(axes, goal, GOAL_COLOR, "*", 170)
    return figure


def _maze_figure(maze: Any) -> tuple[Figure, Axes]:
    """A figure that a maze fills from edge to edge."""
    num_rows, num_columns = maze.walls.shape
    hidden = 2 * (1 - VISIBLE_BORDER)
    figure = Figure(figsize=(2.7, 2.7 * (num_rows - hidden) / (num_columns - hidden)))
    axes = figure.add_axes((0, 0, 1, 1))
    draw_maze(axes, maze, border=VISIBLE_BORDER)
    return figure, axes


def draw_sampled_plans(maze: Any, plans: Sequence[Plan], goals: np.ndarray, env: EnvConfig) -> Figure:
    """Plans side by side on the maze, each with its start and goal."""
    figure = Figure(figsize=(3 * len(plans), 3.2), layout="constrained")
    columns = list(env.position_columns)
    for axes, plan, goal in zip(np.ravel(figure.subplots(1, len(plans))), plans, goals, strict=True):
        positions = plan.observations[:, columns]
        draw_maze(axes, maze)
        draw_path(axes, positions)
        axes.scatter(positions[:, 1], positions[:, 0], c="black", s=4, zorder=4)
        mark(axes, positions[0], START_COLOR)
        mark(axes, goal, GOAL_COLOR, "*", 140)
        axes.set_title(f"{plan.horizon} \N{MULTIPLICATION SIGN} {plan.stride} steps", fontsize=9)
    return figure


class MazeFigures:
    """Draws among the walls of a maze.

    Args:
        env: the environment.
        maze: its maze.
    """

    words = FigureWords(
        plans=(
            "Nothing tells the planner where the walls are: all that it knows of them it learned from the data, "
            "so a plan may run through one; it is made again as soon as the ball strays from it. Dots are the steps of "
            "the plan, joined in order, dark first and bright last; what noise throws outside the maze is cut off."
        ),
        rollouts=(
            "The coloured line is the executed path, from dark at the start to bright where the goal is first touched "
            "(or where the episode ends, if it never is). The dashed black line is the first plan; where the ball "
            "strays from it, it plans again, so the path may leave the first plan."
        ),
        data=(
            "Where the ball was: the darker, the more often, on a logarithmic scale. Walls are slate; a place left in "
            "the colour of the floor was never visited."
        ),
        marks=(("dot", START_COLOR, "start"), ("star", GOAL_COLOR, "goal")),
    )

    def __init__(self, env: EnvConfig, maze: Any) -> None:
        self._env, self._maze, self._columns = env, maze, list(env.position_columns)

    def choose_problems(
        self, windows: np.ndarray, num: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The cells furthest apart, two others about two thirds as far apart, and then random ones; at rest.

        Positions are cell indices; the environment places starts and goals around them.
        """
        cells = self._maze.free_cells
        distances = np.array([[self._maze.distances[(*source, *target)] for target in cells] for source in cells])
        far = np.unravel_index(distances.argmax(), distances.shape)
        # The second pair avoids the cells of the first if others remain, so that the two pictures differ.
        deviation = np.abs(distances - distances.max() * 2 / 3)
        deviation[:, list(far)] += 0.75
        deviation[list(far)] += 0.75
        near = np.unravel_index(deviation.argmin(), deviation.shape)
        more = generator.integers(len(cells), size=(2, max(num - 2, 0)))
        pairs = np.concatenate([np.array([far, near]).T, more], axis=1)[:, :num]
        observations = np.zeros((num, windows.shape[2]), dtype=np.float32)
        observations[:, self._columns] = cells[pairs[0]]
        return observations, cells[pairs[1]].astype(np.float32) if self._env.goal_columns else None

    def draw_plans(self, plans: Sequence[Plan], goals: np.ndarray | None) -> Figure:
        """Plans side by side on the maze, each with its start and goal."""
        ends = np.stack([plan.observations[-1, self._columns] for plan in plans]) if goals is None else goals
        return draw_sampled_plans(self._maze, plans, ends, self._env)

    def draw_plan(self, observations: np.ndarray, goal: np.ndarray | None) -> Figure:
        """One plan, noisy or clean."""
        positions = observations[:, self._columns]
        return draw_plan_on_maze(self._maze, positions, positions[0], positions[-1] if goal is None else goal)

    def draw_rollout(
        self, plan: np.ndarray, stride: int, executed: np.ndarray, goal: np.ndarray | None, reached_step: int | None
    ) -> Figure:
        """An executed path over the plan that it follows."""
        end = executed[-1, self._columns] if goal is None else goal
        return draw_rollout(self._maze, plan[:, self._columns], executed[:, self._columns], end, reached_step)

    def draw_data(self, observations: np.ndarray) -> Figure:
        """How often each place of the maze was visited."""
        positions = observations[:, self._columns]
        return draw_coverage(self._maze, positions[np.isfinite(positions).all(axis=1)])


def make_figures(env: EnvConfig) -> Figures:
    """The figures of an environment of this family: its maze, or curves if it has no maze or no known positions."""
    maze = get_maze(env) if len(env.position_columns) == 2 else None
    return CurveFigures(env) if maze is None else MazeFigures(env, maze)

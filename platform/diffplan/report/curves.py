"""Pictures for any task: columns of observations as curves over time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from diffplan.config import EnvConfig
from diffplan.report.charts import GRID_COLOR, MARK_COLOR, OTHER_COLOR, OURS_COLOR, style_axes
from diffplan.tasks.contracts import FigureWords
from diffplan.types import Plan

MAX_COLUMNS = 8
"""Maximum number of drawn columns of an observation; more would be too small to see."""
BINS = 40


class CurveFigures:
    """Draws the first columns of observations over time.

    Args:
        env: the environment.
    """

    words = FigureWords(
        plans="Each curve is a column of the observation over the steps of the plan.",
        rollouts=(
            "Each panel is a column of the observation over environment steps: the executed episode as a line, the "
            "first plan dashed. The planner plans again on the way, so an episode may leave its first plan."
        ),
        data="How often each column of the observation had which value.",
    )

    def __init__(self, env: EnvConfig) -> None:
        self._env = env

    def choose_problems(
        self, windows: np.ndarray, num: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Problems from windows of the data: first observations, and last ones as goals if episodes have goals."""
        rows = generator.choice(len(windows), size=num, replace=len(windows) < num)
        goal_columns = list(self._env.goal_columns)
        goals = windows[rows, -1][:, goal_columns].astype(np.float32) if goal_columns else None
        return windows[rows, 0].astype(np.float32), goals

    def draw_plans(self, plans: Sequence[Plan], goals: np.ndarray | None) -> Figure:
        """Plans side by side."""
        figure = Figure(figsize=(3 * len(plans), 2.6), layout="constrained")
        for panel, plan in zip(np.ravel(figure.subplots(1, len(plans))), plans, strict=True):
            _plot_columns(panel, plan.stride * np.arange(plan.horizon), plan.observations)
            panel.set_title(f"{plan.horizon} \N{MULTIPLICATION SIGN} {plan.stride} steps", fontsize=9)
        return figure

    def draw_plan(self, observations: np.ndarray, goal: np.ndarray | None) -> Figure:
        """One plan, noisy or clean."""
        figure = Figure(figsize=(2.7, 2.2), layout="constrained")
        _plot_columns(figure.subplots(), np.arange(len(observations)), observations)
        return figure

    def draw_rollout(
        self, plan: np.ndarray, stride: int, executed: np.ndarray, goal: np.ndarray | None, reached_step: int | None
    ) -> Figure:
        """The executed observations over the first plan, a panel for each column."""
        columns = range(min(executed.shape[1], MAX_COLUMNS))
        figure = Figure(figsize=(2.9, 0.55 * len(columns) + 0.5), layout="constrained")
        for column, panel in zip(columns, np.ravel(figure.subplots(len(columns), 1, sharex=True)), strict=True):
            style_axes(panel)
            panel.plot(executed[:, column], color=OURS_COLOR, linewidth=1.2)
            if len(plan):
                panel.plot(stride * np.arange(len(plan)), plan[:, column], color="black", linestyle="--", linewidth=1)
            if goal is not None and column in self._env.goal_columns:
                panel.axhline(goal[self._env.goal_columns.index(column)], color=MARK_COLOR, linewidth=0.8)
            if reached_step is not None:
                panel.axvline(reached_step, color=GRID_COLOR, linewidth=1)
            panel.set_ylabel(str(column), fontsize=7)
            panel.tick_params(labelsize=6)
        return figure

    def draw_data(self, observations: np.ndarray) -> Figure:
        """A histogram of each column."""
        num = min(observations.shape[1], MAX_COLUMNS)
        rows = -(-num // 4)
        figure = Figure(figsize=(4.2, 1.2 * rows + 0.4), layout="constrained")
        panels = np.ravel(figure.subplots(rows, min(num, 4), squeeze=False))
        for column, panel in enumerate(panels):
            if column >= num:
                panel.set_axis_off()
                continue
            values = observations[:, column]
            style_axes(panel)
            panel.hist(values[np.isfinite(values)], bins=BINS, color=OTHER_COLOR)
            panel.set_title(f"observation[{column}]", fontsize=7)
            panel.tick_params(labelsize=6)
            panel.set_yticks([])
        return figure


def _plot_columns(axes: object, steps: np.ndarray, observations: np.ndarray) -> None:
    """Columns over steps, from dark to bright by number."""
    from matplotlib import colormaps

    style_axes(axes)  # type: ignore[arg-type]
    num = min(observations.shape[1], MAX_COLUMNS)
    for column in range(num):
        color = colormaps["viridis"](column / max(num, 2))
        axes.plot(steps, observations[:, column], color=color, linewidth=1.2)  # type: ignore[attr-defined]
    axes.tick_params(labelsize=6)  # type: ignore[attr-defined]

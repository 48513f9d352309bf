"""Pictures of plans, rollouts and data: the box from above, with the paths of pusher and block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffplan.config import EnvConfig
from diffplan.tasks.contracts import FigureWords
from diffplan.types import Plan
from pushing.environment import BLOCK, GOAL_RADIUS, PUSHER, PUSHER_LIMIT

PUSHER_COLOR, BLOCK_COLOR, GOAL_COLOR = "#c8503c", "#465a78", "#e6be3c"


class PushingFigures:
    """Draws the box from above (x to the right, y up).

    Args:
        env: the environment.
    """

    words = FigureWords(
        plans="Red: the planned way of the pusher; blue: that of the block; the yellow disc is its target.",
        rollouts="Lines: what was executed; dashed: the first plan, which is made again on the way.",
        data="Where the block has been.",
    )

    def __init__(self, env: EnvConfig) -> None:
        self._env = env

    def choose_problems(
        self, windows: np.ndarray, num: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Those of the data in which the block moves furthest."""
        moved = np.linalg.norm(windows[:, -1, BLOCK] - windows[:, 0, BLOCK], axis=1)
        rows = np.argsort(-moved)[:num]
        return windows[rows, 0], windows[rows, -1, BLOCK]

    def draw_plans(self, plans: Sequence[Plan], goals: np.ndarray | None) -> Figure:
        """Plans side by side."""
        figure = Figure(figsize=(3 * len(plans), 3), layout="constrained")
        for i, (plan, axes) in enumerate(zip(plans, np.ravel(figure.subplots(1, len(plans))), strict=True)):
            _draw(axes, plan.observations, None if goals is None else goals[i])
            axes.set_title(f"{plan.horizon} steps of {plan.stride}", fontsize=9)
        return figure

    def draw_plan(self, observations: np.ndarray, goal: np.ndarray | None) -> Figure:
        """One plan, noisy or clean."""
        figure = Figure(figsize=(2.6, 2.6), layout="constrained")
        _draw(figure.subplots(), observations, goal)
        return figure

    def draw_rollout(
        self, plan: np.ndarray, stride: int, executed: np.ndarray, goal: np.ndarray | None, reached_step: int | None
    ) -> Figure:
        """What was executed over the first plan."""
        figure = Figure(figsize=(2.6, 2.6), layout="constrained")
        axes = figure.subplots()
        _draw(axes, executed if reached_step is None else executed[: reached_step + 1], goal)
        if len(plan):
            _draw_paths(axes, plan, linestyle="--", linewidth=0.9)
        return figure

    def draw_data(self, observations: np.ndarray) -> Figure:
        """Where the block has been, from above."""
        figure = Figure(figsize=(3, 3), layout="constrained")
        axes = figure.subplots()
        blocks = observations[np.isfinite(observations).all(axis=1)][:, BLOCK]
        axes.hist2d(blocks[:, 0], blocks[:, 1], bins=40, cmap="Blues")
        _style(axes)
        return figure


def _draw(axes: Axes, observations: np.ndarray, goal: np.ndarray | None) -> None:
    from matplotlib.patches import Circle

    if goal is not None:
        axes.add_patch(Circle((goal[0], goal[1]), GOAL_RADIUS, color=GOAL_COLOR, zorder=1))
    _draw_paths(axes, observations, linestyle="-", linewidth=1.5)
    for columns, color in ((PUSHER, PUSHER_COLOR), (BLOCK, BLOCK_COLOR)):
        x, y, _ = observations[0, columns]
        axes.plot(x, y, "o", color=color, markersize=6)
    _style(axes)


def _draw_paths(axes: Axes, observations: np.ndarray, *, linestyle: str, linewidth: float) -> None:
    for columns, color in ((PUSHER, PUSHER_COLOR), (BLOCK, BLOCK_COLOR)):
        x, y, _ = observations[:, columns].T
        axes.plot(x, y, linestyle=linestyle, color=color, linewidth=linewidth)


def _style(axes: Axes) -> None:
    axes.set(xlim=(-PUSHER_LIMIT, PUSHER_LIMIT), ylim=(-PUSHER_LIMIT, PUSHER_LIMIT), xticks=[], yticks=[])
    axes.set_aspect("equal")

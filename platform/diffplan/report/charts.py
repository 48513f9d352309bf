"""Charts of the report page. Each function draws onto a fresh matplotlib figure and returns it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

OURS_COLOR, OTHER_COLOR, MARK_COLOR = "#2e7d6b", "#9aa1ad", "#c8452f"
TEXT_COLOR, GRID_COLOR = "#3b4252", "#e6e3db"
PROTOCOL_COLORS = (OURS_COLOR, "#c08a2d", "#5e81ac", "#8f5e99", "#7a7a52")
"""Colours of protocols in the order of their task; repeated for more."""
CHART_SIZE, SMALL_CHART_SIZE = (4.6, 2.8), (3.5, 2.4)
MAX_CATEGORIES = 6


@dataclass(frozen=True)
class ScoreRow:
    """A method on the score chart; `interval` is None where it is not known."""

    label: str
    score: float
    interval: Sequence[float] | None = None
    is_ours: bool = False


def draw_scores(rows: Sequence[ScoreRow], label: str, num_rows: int) -> Figure:
    """Scores from best to worst, one row each, with intervals if given; the height is that of `num_rows` rows."""
    rows = sorted(rows, key=lambda row: row.score)
    figure, axes = make_chart((CHART_SIZE[0], 0.7 + 0.32 * num_rows))
    best_published = max((row.score for row in rows if not row.is_ours), default=None)
    if best_published is not None:
        axes.axvline(best_published, color=MARK_COLOR, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for y, row in enumerate(rows):
        color = OURS_COLOR if row.is_ours else OTHER_COLOR
        if row.interval is not None:
            axes.plot(row.interval, (y, y), color=color, linewidth=5, alpha=0.35, solid_capstyle="round", zorder=2)
        axes.scatter(row.score, y, color=color, s=42, zorder=3)
        right = row.score if row.interval is None else row.interval[1]
        axes.annotate(
            f"{row.score:.1f}",
            (right, y),
            (8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=TEXT_COLOR,
            bbox={"facecolor": "white", "linewidth": 0, "pad": 0.8},
        )
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    for text, row in zip(axes.get_yticklabels(), rows, strict=True):
        if row.is_ours:
            text.set(color=OURS_COLOR, fontweight="bold")
    low = min(0.0, *(row.score for row in rows))
    high = max(row.score if row.interval is None else row.interval[1] for row in rows)
    axes.set_xlim(low - 0.03 * (high - low), high + 0.17 * (high - low))  # room for the numbers
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(label)
    return figure


def draw_histogram(
    values: Sequence[float], label: str, color: str = OURS_COLOR, size: tuple[float, float] = CHART_SIZE
) -> Figure:
    """A histogram of a value over episodes, with the mean."""
    figure, axes = make_chart(size)
    array = np.asarray(values, dtype=np.float64)
    axes.hist(array, bins=min(30, max(8, round(len(array) ** 0.5 * 2))), color=color, alpha=0.85, zorder=2)
    axes.axvline(float(array.mean()), color=TEXT_COLOR, linewidth=1.2, linestyle=(0, (4, 3)), zorder=3)
    axes.set_xlabel(label)
    axes.set_ylabel("episodes")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


def draw_curve(steps: Sequence[int], values: Sequence[float], label: str, *, log: bool = False) -> Figure:
    """A scalar of the training over steps."""
    figure, axes = make_chart()
    axes.plot(steps, values, color=OURS_COLOR, linewidth=1.4, marker="o" if len(steps) < 30 else None, markersize=3)
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(0, None)
    axes.set_xlabel("training step")
    axes.set_ylabel(label)
    return figure


def draw_reached(times: Mapping[str, tuple[str, Sequence[int | None]]], limit: int) -> Figure:
    """Share of episodes that have reached their goal, over steps; None means never.

    Args:
        times: label and steps to the goal of each protocol.
        limit: maximum number of steps of an episode.
    """
    figure, axes = make_chart(SMALL_CHART_SIZE)
    for number, (label, steps) in enumerate(times.values()):
        reached = np.sort([step for step in steps if step is not None])
        x = np.concatenate([[0], reached, [limit]])
        y = np.concatenate([np.arange(len(reached) + 1), [len(reached)]]) / max(len(steps), 1) * 100
        axes.step(x, y, where="post", color=PROTOCOL_COLORS[number % len(PROTOCOL_COLORS)], linewidth=1.6, label=label)
    axes.set_ylim(0, 104)
    axes.set_xlim(0, limit)
    axes.set_xlabel("environment step")
    axes.set_ylabel("% of episodes")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def draw_trials(objectives: Sequence[float | None], full: Sequence[bool]) -> Figure:
    """The objective of each trial in order, and the best full trial so far."""
    figure, axes = make_chart()
    plot_trials(axes, objectives, full, "objective")
    figure.legend(frameon=False, fontsize=8, loc="outside upper left", ncols=3, handletextpad=0.4, columnspacing=1.2)
    return figure


def plot_trials(
    axes: Axes, objectives: Sequence[float | None], full: Sequence[bool], label: str, *, less_is_better: bool = False
) -> None:
    """Draw the objective of each trial in order, and the best full trial so far."""
    numbers = np.arange(1, len(objectives) + 1)
    values = np.array([np.nan if v is None else v for v in objectives], dtype=np.float64)
    is_full = np.asarray(full, dtype=bool)
    accumulate = np.fmin.accumulate if less_is_better else np.fmax.accumulate
    best = accumulate(np.where(is_full, values, np.nan))
    axes.step(numbers, best, where="post", color=MARK_COLOR, linewidth=1.3, label="best full trial so far", zorder=2)
    axes.scatter(numbers[is_full], values[is_full], color=OURS_COLOR, s=34, zorder=4, label="full trial")
    axes.scatter(
        numbers[~is_full], values[~is_full], s=32, zorder=3, label="stopped early",
        facecolors="white", edgecolors=OTHER_COLOR, linewidths=1.4,
    )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    axes.set_xlim(0.4, len(objectives) + 0.6)
    axes.set_xlabel("trial")
    axes.set_ylabel(label)


def draw_setting(
    values: Sequence[object], objectives: Sequence[float | None], full: Sequence[bool], best: object, label: str
) -> Figure:
    """The objective of trials over one searched setting; the chosen value has a ring."""
    figure, axes = make_chart(SMALL_CHART_SIZE)
    x, categories = _setting_positions(values)
    y = np.array([np.nan if v is None else v for v in objectives], dtype=np.float64)
    is_full = np.asarray(full, dtype=bool)
    axes.scatter(x[is_full], y[is_full], color=OURS_COLOR, s=24, zorder=4, linewidths=0)
    axes.scatter(x[~is_full], y[~is_full], s=22, zorder=3, facecolors="white", edgecolors=OTHER_COLOR, linewidths=1.2)
    chosen = [i for i, value in enumerate(values) if value == best and is_full[i] and np.isfinite(y[i])]
    if chosen:
        at = max(chosen, key=lambda i: y[i])
        axes.scatter(x[at], y[at], s=95, zorder=5, facecolors="none", edgecolors=MARK_COLOR, linewidths=1.5)
    if categories:
        axes.set_xticks(range(len(categories)), [str(category) for category in categories])
        axes.set_xlim(-0.5, len(categories) - 0.5)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(label)
    return figure


def _setting_positions(values: Sequence[object]) -> tuple[np.ndarray, list[object]]:
    """Positions of the values of a setting: a few whole numbers or words as categories, others to scale."""
    categories = sorted(set(values), key=lambda v: (v is None, isinstance(v, str), 0 if v is None else v))
    are_numbers = all(isinstance(value, int | float) for value in categories)
    if are_numbers and (len(categories) > MAX_CATEGORIES or any(isinstance(value, float) for value in categories)):
        return np.array([float(str(value)) for value in values]), []
    # Trials with the same value are spread a little, in order, so that they do not overlap.
    spread = np.linspace(-0.16, 0.16, max(len(values), 2))
    return np.array([categories.index(value) + spread[i] for i, value in enumerate(values)]), categories


def make_chart(size: tuple[float, float] = CHART_SIZE) -> tuple[Figure, Axes]:
    """An empty chart of a size in inches."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    style_axes(axes)
    return figure, axes


def style_axes(axes: Axes) -> None:
    """Apply the common style of charts to axes."""
    axes.set_axisbelow(True)
    axes.grid(color=GRID_COLOR, linewidth=0.8)
    axes.tick_params(which="both", labelsize=8, length=0, colors=TEXT_COLOR)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(OTHER_COLOR)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(fontsize=8.5, color=TEXT_COLOR)

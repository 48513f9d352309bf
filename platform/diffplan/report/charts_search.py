"""Charts of a search: the importance of settings, and the Pareto front. Each function returns a new figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter, ScalarFormatter

from diffplan.report.charts import (
    CHART_SIZE,
    MARK_COLOR,
    OTHER_COLOR,
    OURS_COLOR,
    PROTOCOL_COLORS,
    TEXT_COLOR,
    make_chart,
    plot_trials,
    style_axes,
)

LABELS = {
    "objective": "objective",
    "score_mean": "score",
    "success_rate": "success",
    "plan_seconds": "seconds of planning in an episode",
}
"""Labels of the axes of metrics."""
_SHORT = {**LABELS, "plan_seconds": "planning time"}
LOG_RANGE = 10.0
"""Times have a logarithmic scale if the ratio of the longest to the shortest exceeds this."""
_LEGEND: dict[str, Any] = {"framealpha": 0.85, "edgecolor": "none"}
_COLORS = (OURS_COLOR, PROTOCOL_COLORS[1])


@dataclass(frozen=True)
class FrontChart:
    """Data of the chart of a Pareto front.

    Attributes:
        objectives: metrics on the vertical and the horizontal axis.
        values: objectives of the full trials, float[trials, 2].
        front: indices of the trials on the front, from left to right.
        best: index of the chosen trial.
    """

    objectives: tuple[str, str]
    values: Sequence[Sequence[float]]
    front: Sequence[int]
    best: int


def draw_importances(importances: Mapping[str, Mapping[str, float]]) -> Figure:
    """The importance of each setting, with a bar for each objective.

    Args:
        importances: shares by setting, by objective; the first objective defines the order of settings.
    """
    num_settings = len(next(iter(importances.values())))
    figure, axes = make_chart((CHART_SIZE[0], 0.9 + 0.3 * num_settings))
    plot_importances(axes, importances)
    return figure


def draw_front(chart: FrontChart) -> Figure:
    """Every full trial in both objectives, the front as a line, and the chosen trial."""
    figure, axes = make_chart()
    plot_front(axes, chart)
    return figure


def draw_search(
    importances: Mapping[str, Mapping[str, float]],
    objectives: Sequence[float | None],
    full: Sequence[bool],
    front: FrontChart | None,
    metric: str,
    *,
    less_is_better: bool = False,
) -> Figure:
    """A search in one picture: its trials or its front, and the importance of settings.

    Args:
        importances: as for `draw_importances`; empty if there are too few trials.
        objectives: objective of each trial in order; None for failed trials.
        full: whether each trial ran to its end.
        front: the front of a search with two objectives.
        metric: the metric of `objectives`.
        less_is_better: whether the metric is minimised.
    """
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        style_axes(axes)
    if front is None:
        plot_trials(left, objectives, full, LABELS.get(metric, metric), less_is_better=less_is_better)
        left.legend(fontsize=8, loc="lower right", **_LEGEND)
    else:
        plot_front(left, front)
    if importances:
        plot_importances(right, importances)
    else:
        right.set_axis_off()
        right.text(0.5, 0.5, "too few trials to tell\nwhich settings mattered", ha="center", color=TEXT_COLOR)
    return figure


def plot_importances(axes: Axes, importances: Mapping[str, Mapping[str, float]]) -> None:
    """Draw bars of importances, the first setting at the top."""
    names = list(next(iter(importances.values())))
    height = 0.8 / len(importances)
    for i, (metric, shares) in enumerate(importances.items()):
        y = np.arange(len(names)) + (i - (len(importances) - 1) / 2) * height
        values = [100 * shares[name] for name in names]
        axes.barh(y, values, height * 0.9, color=_COLORS[i], label=f"for the {_SHORT.get(metric, metric)}", zorder=2)
    axes.set_yticks(range(len(names)), [name.removeprefix("planning.") for name in names])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.set_xlabel("importance")
    if len(importances) > 1:
        axes.legend(fontsize=8, loc="lower right", **_LEGEND)


def plot_front(axes: Axes, chart: FrontChart) -> None:
    """Draw the trials and the front of a search with two objectives."""
    vertical, horizontal = chart.objectives
    points: Any = np.asarray(chart.values, dtype=np.float64).reshape(-1, 2)
    on_front = points[list(chart.front)]
    axes.scatter(points[:, 1], points[:, 0], s=26, facecolors="white", edgecolors=OTHER_COLOR, linewidths=1.2, zorder=2)
    axes.plot(on_front[:, 1], on_front[:, 0], color=OURS_COLOR, linewidth=1.3, zorder=3)
    axes.scatter(on_front[:, 1], on_front[:, 0], s=34, color=OURS_COLOR, linewidths=0, zorder=4, label="Pareto front")
    x, y = points[chart.best, 1], points[chart.best, 0]
    axes.scatter(x, y, s=110, facecolors="none", edgecolors=MARK_COLOR, linewidths=1.5, zorder=5, label="best.json")
    if horizontal == "plan_seconds" and points[:, 1].min() > 0:
        times = points[:, 1]
        if times.max() > LOG_RANGE * times.min():
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(LABELS.get(horizontal, horizontal))
    axes.set_ylabel(LABELS.get(vertical, vertical))
    axes.legend(fontsize=8, loc="lower right", **_LEGEND)

"""The table of the family from finished rows: a page of text and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from diffplan.tasks.locomotion.presets import BEHAVIORS, PRESETS
from diffplan.tasks.locomotion.published import get_published_scores
from diffplan.tasks.table_rows import find_interval, resample_means

METHOD_TITLES = {
    "behavior": "the data's behavior",
    "bc": "cloned policy (BC)",
    "bc_best": "BC of the best 20 %",
    "iql": "IQL",
    "cql": "CQL",
    "planner_plain": "planner without value",
    "planner": "planner",
}
"""Methods in the order of the table."""
COMPARED = {"planner": ("bc", "bc_best", "iql", "planner_plain")}
"""Differences that the page shows."""


def format_page(rows: Sequence[dict[str, Any]], *, machine: str) -> str:
    """The table as Markdown.

    Args:
        rows: of the table, with the scores of their episodes.
        machine: description of the machine.
    """
    cells = {(row["task"], row["method"]): row for row in rows}
    datasets = [name for name in BEHAVIORS if any(row["task"] == name for row in rows)]
    methods = [name for name in METHOD_TITLES if any(row["method"] == name for row in rows)]
    seeds = sorted({row["seeds"] for row in rows if row["seeds"]})
    episodes = sorted({row["episodes"] for row in rows if row["method"] != "behavior"})
    lines = [
        "# Locomotion: Hopper, Walker2d, HalfCheetah",
        "",
        f"Normalised scores of D4RL: the mean over {_join(seeds)} training seeds with {_join(episodes)} episodes each, "
        "and its 95 % interval",
        "(bootstrap over training seeds, then episodes). All methods are trained on the same data and see the same "
        "starts; settings are",
        f"chosen on other episodes. {machine}. Each row of `locomotion.json` has its command.",
        "",
        f"| | {' | '.join(METHOD_TITLES[method] for method in methods)} |",
        "|---" * (len(methods) + 1) + "|",
    ]
    for dataset in datasets:
        shown = [_format_cell(cells.get((dataset, method))) for method in methods]
        lines.append(f"| {dataset} | {' | '.join(shown)} |")
    if len(datasets) > 1:
        shown = [_format_average(cells, datasets, method) for method in methods]
        lines.append(f"| mean of {len(datasets)} | {' | '.join(shown)} |")
    lines += _format_differences(cells, datasets)
    lines += _format_published(datasets)
    lines += _format_costs(cells, datasets, methods)
    lines += ["", *(f"* {note}" for note in NOTES)]
    return "\n".join(lines).rstrip() + "\n"


NOTES = (
    "The data's behavior: the mean over the episodes of the data. It acts with its own noise; the others act without.",
    "Planner and planner without value share the trained models. Settings of each are searched with as many trials, on "
    "tuning episodes with the models of all training seeds: the action head, number of candidates, denoising steps; "
    "for the planner also which value weights its candidates, at which temperature, or that all weigh alike.",
    "IQL and CQL are RLlib's (docs/baselines.md), with fewer updates than their authors': see `TableSize` in "
    "`tasks/locomotion/table.py`.",
    "Published scores are of methods trained on D4RL's own data of the same name, which are other data.",
)


def _join(values: Sequence[int]) -> str:
    return " or ".join(map(str, values)) or "no"


def _format_cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "—"
    low, high = row["score_ci95"]
    return f"{row['score_mean']:.1f} [{low:.1f}, {high:.1f}]"


def _format_average(cells: dict[tuple[str, str], dict[str, Any]], datasets: Sequence[str], method: str) -> str:
    found = [cells.get((dataset, method)) for dataset in datasets]
    known = [row["score_mean"] for row in found if row is not None]
    return f"{np.mean(known):.1f}" if len(known) == len(datasets) else "—"


def find_difference(first: dict[str, Any], second: dict[str, Any]) -> tuple[float, list[float]]:
    """Difference of the mean scores of two rows, and its 95 % interval (bootstrap over training seeds, episodes)."""
    means = resample_means(first["scores"], seed=0) - resample_means(second["scores"], seed=1)
    return first["score_mean"] - second["score_mean"], find_interval(means)


def _format_differences(cells: dict[tuple[str, str], dict[str, Any]], datasets: Sequence[str]) -> list[str]:
    lines = []
    for method, others in COMPARED.items():
        others = [name for name in others if any((dataset, name) in cells for dataset in datasets)]
        if not others or not any((dataset, method) in cells for dataset in datasets):
            continue
        titles = " | ".join(f"less {METHOD_TITLES[name]}" for name in others)
        lines += ["", f"## The {METHOD_TITLES[method]}", "", f"| | {titles} |", "|---" * (len(others) + 1) + "|"]
        for dataset in datasets:
            shown = []
            for name in others:
                pair = cells.get((dataset, method)), cells.get((dataset, name))
                if pair[0] is None or pair[1] is None:
                    shown.append("—")
                    continue
                mean, (low, high) = find_difference(pair[0], pair[1])
                shown.append(f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]")
            lines.append(f"| {dataset} | {' | '.join(shown)} |")
    return lines


def _format_published(datasets: Sequence[str]) -> list[str]:
    lines = []
    for dataset in datasets:
        scores = get_published_scores(PRESETS[dataset].config.env, dataset.partition("-")[2])
        if scores:
            lines.append(f"| {dataset} | {', '.join(f'{score.method} {score.score:g}' for score in scores)} |")
    return ["", "## Published, on other data", "", "| | |", "|---|---|", *lines] if lines else []


def _format_costs(
    cells: dict[tuple[str, str], dict[str, Any]], datasets: Sequence[str], methods: Sequence[str]
) -> list[str]:
    """Minutes of training and milliseconds of a plan, mean over the data."""
    lines = ["", "## Cost", "", "| | training minutes | ms a plan, in a batch of 50 episodes |", "|---|---|---|"]
    for method in methods:
        if method == "behavior":
            continue
        rows = [cells[dataset, method] for dataset in datasets if (dataset, method) in cells]
        shown = []
        for name, scale in (("training_seconds", 1 / 60), ("plan_seconds_mean", 1000)):
            known = [row[name] * scale for row in rows if row[name] is not None]
            shown.append(f"{np.mean(known):.1f}" if known else "—")
        lines.append(f"| {METHOD_TITLES[method]} | {' | '.join(shown)} |")
    return lines


def draw_table(rows: Sequence[dict[str, Any]]) -> Figure:
    """Scores of the methods with their intervals, a panel for each dataset."""
    datasets = [name for name in BEHAVIORS if any(row["task"] == name for row in rows)]
    methods = [name for name in METHOD_TITLES if any(row["method"] == name for row in rows)]
    columns = min(3, len(datasets))
    lines = -(-len(datasets) // columns)
    figure = Figure(figsize=(3.6 * columns + 2, 2.6 * lines + 0.6), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for number, panel in enumerate(panels.flat):
        if number >= len(datasets):
            panel.set_axis_off()
            continue
        for row in rows:
            if row["task"] == datasets[number]:
                place = len(methods) - 1 - methods.index(row["method"])
                mean, (low, high) = row["score_mean"], row["score_ci95"]
                color = "tab:blue" if row["method"] == "planner" else "0.65"
                panel.barh(place, mean, color=color, xerr=[[max(mean - low, 0)], [max(high - mean, 0)]], ecolor="0.2")
        panel.set_yticks(range(len(methods)), [METHOD_TITLES[method] for method in reversed(methods)], fontsize=8)
        panel.set_title(datasets[number], fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("normalised score of D4RL, with its 95 % interval", fontsize=9)
    return figure

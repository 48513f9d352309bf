"""The paper's Table 1 from finished evaluations: rows, a page of text, and a figure.

Source of the layout: Janner et al. 2022, Table 1 (Maze2D and Multi2D by methods); every number is a mean over episodes
under D4RL's limits and references, with a 95 % interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from diffplan.config import EnvConfig
from diffplan.tasks.contracts import PublishedScore
from diffplan.tasks.maze2d.published import PAPER, get_published_scores
from diffplan.tasks.table import ROW_KEYS

MAZES = {"umaze": "UMaze", "medium": "Medium", "large": "Large"}
PROTOCOL_TITLES = {"maze2d": "Maze2D", "multi2d": "Multi2D"}
METHOD_TITLES = {
    "diffuser": "diffplan",
    "waypoint": "waypoint controller, told the goal",
    "mppi": "MPPI, true simulator, dense reward too",
    "mppi_sparse": "MPPI, true simulator, task reward",
    "iql": "IQL",
    "cql": "CQL",
    "bc": "cloned policy, told the goal",
    "behavior": "the data's behavior",
    "random": "random",
    "limit": "physical limit",
}
"""Methods in the order of the table."""
_OF_SUMMARY = (
    *("score_mean", "score_stderr", "score_ci95", "success_rate"),
    *("metrics", "plan_seconds_mean", "episodes"),
)
"""Keys that a row copies from the summary of an evaluation."""


def make_row(
    summary: dict[str, Any], *, maze: str, method: str, training_seconds: float | None, command: str
) -> dict[str, Any]:
    """The row of one evaluation, with the keys of `diffplan.tasks.table.ROW_KEYS`.

    Args:
        summary: of the evaluation.
        maze: `umaze`, `medium` or `large`.
        method: a key of `METHOD_TITLES`.
        training_seconds: seconds of its training; None if there was none, or not known.
        command: command that made it.
    """
    # Paths on this machine are of no use elsewhere.
    settings = {k: v for k, v in summary["config"].items() if k not in ("checkpoint", "policy", "training")}
    found = {name: summary[name] for name in _OF_SUMMARY}
    row = {
        "protocol": summary["protocol"],
        "task": maze,
        "method": method,
        **found,
        "training_seconds": training_seconds,
        "seeds": 1,
        "settings": settings,
        "command": command,
    }
    return {name: row[name] for name in ROW_KEYS}


def average_rows(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row of the same method with several training seeds.

    With two or more seeds, the standard error is that of the mean over seeds and the interval is Student's t. With one
    seed, both are over its episodes.

    Args:
        rows: of `make_row`, one for each seed.
    """
    if len(rows) == 1:
        return dict(rows[0])
    scores = np.array([row["score_mean"] for row in rows])
    error = float(scores.std(ddof=1) / np.sqrt(len(scores)))
    mean, reach = float(scores.mean()), float(stats.t.ppf(0.975, len(scores) - 1)) * error
    names = ("success_rate", "plan_seconds_mean", "training_seconds")
    return {
        **rows[0],
        "score_mean": mean,
        "score_stderr": error,
        "score_ci95": [mean - reach, mean + reach],
        **{name: _average([row[name] for row in rows]) for name in names},
        "metrics": {name: _average([row["metrics"][name] for row in rows]) for name in rows[0]["metrics"]},
        "seeds": len(rows),
    }


def _average(values: Sequence[float | None]) -> float | None:
    """The mean; None if a value is not known."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def format_page(rows: Sequence[dict[str, Any]], *, command: str, machine: str, notes: Sequence[str]) -> str:
    """The table as Markdown: one table a protocol, published scores below ours.

    Args:
        rows: rows of `make_row` or `average_rows`, and rows of physical limits, which have only a score.
        command: command that made them.
        machine: description of the machine.
        notes: sentences below the tables.
    """
    lines = ["# Table 1: Maze2D and Multi2D", "", f"`{command}`, {machine}.", ""]
    lines += [
        "Normalised scores of D4RL (true return, D4RL's limits), mean with its 95 % interval, and the share",
        "of episodes that reach the goal. All methods see the same episodes; no setting was chosen on them.",
        "",
    ]
    by_cell = {(row["protocol"], row["task"], row["method"]): row for row in rows}
    mazes = [maze for maze in MAZES if any(row["task"] == maze for row in rows)]
    for protocol, title in PROTOCOL_TITLES.items():
        lines += [
            f"## {title}",
            "",
            f"| | {' | '.join(MAZES[maze] for maze in mazes)} |",
            "|---" * (len(mazes) + 1) + "|",
        ]
        for method, name in METHOD_TITLES.items():
            cells = [_format_cell(by_cell.get((protocol, maze, method))) for maze in mazes]
            if any(cells):
                shown = [cell or "—" for cell in cells]
                emphasis = "**" if method == "diffuser" else ""
                lines.append(f"| {emphasis}{name}{emphasis} | {' | '.join(shown)} |")
        lines += [*_format_published(protocol, mazes), ""]
    lines += ["## How", "", *_format_costs(rows, mazes), ""]
    lines += [f"* {note}" for note in notes]
    return "\n".join(lines).rstrip() + "\n"


def _get_published(maze: str, protocol: str) -> tuple[PublishedScore, ...]:
    return get_published_scores(EnvConfig(env_id=f"diffplan/Maze2D-{MAZES[maze]}-v1"), protocol)


def _format_cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    interval, success = row["score_ci95"], row["success_rate"]
    shown = f"{row['score_mean']:.1f}"
    shown += "" if interval is None else f" [{interval[0]:.1f}, {interval[1]:.1f}]"
    return shown + ("" if success is None else f", {100 * success:.0f} %")


def _format_published(protocol: str, mazes: Sequence[str]) -> list[str]:
    published = {maze: _get_published(maze, protocol) for maze in mazes}
    methods = dict.fromkeys(score.method for scores in published.values() for score in scores if score.source == PAPER)
    lines = []
    for method in methods:
        cells = [next((f"{s.score:g}" for s in published[maze] if s.method == method), "—") for maze in mazes]
        lines.append(f"| published: {method} (Janner et al. 2022) | {' | '.join(cells)} |")
    best = [max(published[maze], key=lambda score: score.score, default=None) for maze in mazes]
    cells = ["—" if score is None else f"{score.score:g}, {score.method}" for score in best]
    return [*lines, f"| published: best | {' | '.join(cells)} |"]


def _format_costs(rows: Sequence[dict[str, Any]], mazes: Sequence[str]) -> list[str]:
    """Training cost, plan time, path efficiency and collisions of each method, over the mazes."""
    lines = [
        "| | protocol | training minutes | ms a plan | path efficiency | steps at a wall |",
        "|---|---|---|---|---|---|",
    ]
    for method, name in METHOD_TITLES.items():
        for protocol, title in PROTOCOL_TITLES.items():
            own = {row["task"]: row for row in rows if (row["method"], row["protocol"]) == (method, protocol)}
            if not own or method == "limit":
                continue
            have = [own[maze] for maze in mazes if maze in own]
            trained = [_ratio(row["training_seconds"], 1 / 60, ".1f") for row in have]
            planned = [_ratio(row["plan_seconds_mean"], 1000, ".1f") for row in have]
            straight = [_ratio(row["metrics"]["path_efficiency"], 1, ".2f") for row in have]
            touched = [_ratio(row["metrics"]["collision_steps"], 1, ".0f") for row in have]
            cells = [
                " / ".join(values) if set(values) != {"—"} else "—" for values in (trained, planned, straight, touched)
            ]
            lines.append(f"| {name} | {title} | {' | '.join(cells)} |")
    names = " / ".join(MAZES[maze] for maze in mazes)
    return [f"{names}:", "", *lines]


def _ratio(value: float | None, scale: float, form: str) -> str:
    return "—" if value is None else format(scale * value, form)


def draw_table(rows: Sequence[dict[str, Any]]) -> Figure:
    """Scores of the methods with their intervals, a panel for each protocol and maze."""
    mazes = [maze for maze in MAZES if any(row["task"] == maze for row in rows)]
    figure = Figure(figsize=(4 * len(mazes) + 2, 6), layout="constrained")
    panels = figure.subplots(len(PROTOCOL_TITLES), len(mazes), squeeze=False)
    methods = [method for method in METHOD_TITLES if method != "limit" and any(r["method"] == method for r in rows)]
    for line, (protocol, title) in enumerate(PROTOCOL_TITLES.items()):
        for column, maze in enumerate(mazes):
            panel = panels[line][column]
            for place, method in enumerate(reversed(methods)):
                for row in rows:
                    if (row["protocol"], row["task"], row["method"]) == (protocol, maze, method):
                        mean = row["score_mean"]
                        low, high = row["score_ci95"] or (mean, mean)
                        color = "tab:blue" if method == "diffuser" else "0.65"
                        panel.barh(place, mean, color=color, xerr=[[mean - low], [high - mean]], ecolor="0.2")
            for row in rows:
                if (row["protocol"], row["task"], row["method"]) == (protocol, maze, "limit"):
                    panel.axvline(row["score_mean"], color="tab:red", linestyle="--", linewidth=1)
            best = [s.score for s in _get_published(maze, protocol)]
            if best:
                panel.axvline(max(best), color="tab:green", linestyle=":", linewidth=1.5)
            names = [METHOD_TITLES[method] for method in reversed(methods)] if column == 0 else [""] * len(methods)
            panel.set_yticks(range(len(methods)), names, fontsize=8)
            panel.set_title(f"{title} {MAZES[maze]}", fontsize=10)
            panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("normalised score; dashed: physical limit, dotted: best published", fontsize=9)
    return figure

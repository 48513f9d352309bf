"""The paper's Table 1 from finished evaluations: rows, a page of text, and a figure.

Source of the layout: Janner et al. 2022, Table 1 (Maze2D and Multi2D by methods); every number is a mean over episodes
under D4RL's limits and references, with a 95 % interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from diffplan.config import EnvConfig
from diffplan.tasks.contracts import PublishedScore
from diffplan.tasks.maze2d.published import PAPER, get_published_scores

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

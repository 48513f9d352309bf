"""The table of the family from finished rows: a page of text and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from diffplan.tasks.stacking.presets import PRESETS
from diffplan.tasks.stacking.published import get_published_scores

PROTOCOLS: tuple[str, ...] = ("unconditional", "conditional", "rearrangement")
METHOD_TITLES = {
    "script": "script",
    "demonstrator": "demonstrator",
    "bc": "cloned policy (BC)",
    "iql": "IQL",
    "cql": "CQL",
    "bare": "planner: one candidate, no guide, no drafts",
    "one_candidate": "planner: one candidate",
    "no_guide": "planner: no guide",
    "no_refine": "planner: no drafts, 64 candidates",
    "no_symmetries": "planner: no symmetries",
    "no_keyframes": "planner: steps of equal length",
    "joints": "planner: joint angles",
    "planner": "planner",
}
"""Methods in the order of the table."""
NOTES = (
    "`script` knows the rules and the arm: the cap. `demonstrator` made the data: it moves random blocks, and has as "
    "many placements.",
    "In the conditional and the rearrangement row a script says which block goes where next, and its place is fixed at "
    "the end of the plan; the plan says how to get it there. In the unconditional row nothing says so: 64 drafts are "
    "drawn, and the one with the tallest tower is planned.",
    "BC, IQL and CQL learn from the same moves, IQL and CQL with the growth of the tallest tower as reward. They know "
    "nothing of pairs, so they have no conditional and no rearrangement row. IQL and CQL are RLlib's "
    "(docs/baselines.md), with fewer updates than their authors'.",
    "Each `planner: …` differs from `planner` in what it says, and is trained again where that is needed.",
    "Published scores are of another arm, in joint angles, without a script that chooses the next pair.",
)


def format_page(rows: Sequence[dict[str, Any]], *, machine: str) -> str:
    """The table as Markdown.

    Args:
        rows: of the table, with the scores of their episodes.
        machine: description of the machine.
    """
    cells = {(row["task"], row["method"]): row for row in rows}
    protocols = [name for name in PROTOCOLS if any(row["task"] == name for row in rows)]
    methods = [name for name in METHOD_TITLES if any(row["method"] == name for row in rows)]
    trained = [row for row in rows if row["method"] not in ("script", "demonstrator")]
    seeds, episodes = sorted({row["seeds"] for row in trained}), sorted({row["episodes"] for row in rows})
    lines = [
        "# Block stacking",
        "",
        f"Share of what was asked that is done, in per cent: the mean over {_join(seeds)} training seeds with "
        f"{_join(episodes)} episodes",
        "each, and its 95 % interval (bootstrap over training seeds, then episodes). A block counts as stacked by the "
        "strict rule; scores by",
        f"the rule of the paper are in brackets. All methods see the same starts. {machine}. Each row of "
        "`stacking.json` has its command.",
        "",
        f"| | {' | '.join(protocols)} |",
        "|---" * (len(protocols) + 1) + "|",
    ]
    for method in methods:
        shown = [_format_cell(cells.get((protocol, method))) for protocol in protocols]
        lines.append(f"| {METHOD_TITLES[method]} | {' | '.join(shown)} |")
    lines += _format_published(protocols)
    lines += _format_costs(cells, protocols, methods)
    lines += ["", *(f"* {note}" for note in NOTES)]
    return "\n".join(lines).rstrip() + "\n"


def _join(values: Sequence[int]) -> str:
    return " or ".join(map(str, values)) or "no"


def _format_cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "—"
    low, high = row["score_ci95"]
    return f"{row['score_mean']:.1f} [{low:.1f}, {high:.1f}] ({row['metrics']['paper_score']:.1f})"


def _format_published(protocols: Sequence[str]) -> list[str]:
    env = PRESETS["stacking"].config.env
    scores = {protocol: get_published_scores(env, protocol) for protocol in protocols}
    names = list(dict.fromkeys(score.method for each in scores.values() for score in each))
    lines = []
    for name in names:
        shown = [f"{score.score:g}" for each in scores.values() for score in each if score.method == name]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    source = scores[protocols[0]][0].source
    head = f"| {source} | {' | '.join(protocols)} |"
    return ["", "## Published", "", head, "|---" * (len(protocols) + 1) + "|", *lines]


def _format_costs(
    cells: dict[tuple[str, str], dict[str, Any]], protocols: Sequence[str], methods: Sequence[str]
) -> list[str]:
    """Minutes of training, and milliseconds of a plan under each protocol."""
    lines = [
        "",
        "## Cost",
        "",
        f"| ms a plan, in a batch of 50 episodes | training minutes | {' | '.join(protocols)} |",
        "|---" * (len(protocols) + 2) + "|",
    ]
    for method in methods:
        rows = [cells.get((protocol, method)) for protocol in protocols]
        seconds = [row["training_seconds"] for row in rows if row is not None]
        if seconds[0] is None:
            continue
        plans = [None if row is None else row["plan_seconds_mean"] for row in rows]
        shown = ["—" if each is None else f"{1000 * each:.1f}" for each in plans]
        lines.append(f"| {METHOD_TITLES[method]} | {seconds[0] / 60:.1f} | {' | '.join(shown)} |")
    return lines


def draw_table(rows: Sequence[dict[str, Any]]) -> Figure:
    """Scores of the methods with their intervals, a panel for each protocol."""
    protocols = [name for name in PROTOCOLS if any(row["task"] == name for row in rows)]
    methods = [name for name in METHOD_TITLES if any(row["method"] == name for row in rows)]
    figure = Figure(figsize=(3.2 * len(protocols) + 3, 0.3 * len(methods) + 1.2), layout="constrained")
    panels = figure.subplots(1, len(protocols), squeeze=False, sharey=True)[0]
    for protocol, panel in zip(protocols, panels, strict=True):
        for row in rows:
            if row["task"] == protocol:
                place = len(methods) - 1 - methods.index(row["method"])
                mean, (low, high) = row["score_mean"], row["score_ci95"]
                color = "tab:blue" if row["method"] == "planner" else "0.65"
                panel.barh(place, mean, color=color, xerr=[[max(mean - low, 0)], [max(high - mean, 0)]], ecolor="0.2")
        panel.set_yticks(range(len(methods)), [METHOD_TITLES[method] for method in reversed(methods)], fontsize=8)
        panel.set_xlim(0, 105)
        panel.set_title(protocol, fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("per cent of what was asked, strict rule, with its 95 % interval", fontsize=9)
    return figure

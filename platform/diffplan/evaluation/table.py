"""The table of scores that commands print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffplan.config import EnvConfig
from diffplan.tasks.registry import task_of
from diffplan.terminal import draw_table


def format_table(summaries: Mapping[str, Any], env: EnvConfig) -> str:
    """Summaries of evaluations by protocol as lines of text, with published scores beside them.

    Args:
        summaries: of evaluations, by protocol.
        env: the environment that was evaluated in.
    """
    task = task_of(env)
    is_normalized = any(summary["references"] is not None for summary in summaries.values())
    has_goals = any(summary["success_rate"] is not None for summary in summaries.values())
    header = ["protocol", "score" if is_normalized else "return", "95 % interval"]
    header += ["success", "time to goal"] if has_goals else ["steps"]
    rows = []
    for protocol, summary in summaries.items():
        row = [protocol, f"{summary['score_mean']:.1f}", _format_interval(summary["score_ci95"], "{:.1f}")]
        if has_goals:
            time_to_goal = summary["time_to_goal_steps_mean"]
            row.append(f"{summary['success_rate']:.1%} {_format_interval(summary['success_ci95'], '{:.0%}')}")
            row.append("never" if time_to_goal is None else f"{time_to_goal:.0f} steps")
        else:
            row.append(f"{summary['metrics']['length']:.0f}")
        plan_seconds = summary["plan_seconds_mean"]
        rows.append([*row, "none" if plan_seconds is None else f"{1000 * plan_seconds:.1f} ms"])
    lines = draw_table([*header, "plan"], rows)
    # Published scores stand below the row that they are to be compared with.
    found = []
    for protocol, line in zip(summaries, lines[-len(rows) :], strict=True):
        found.append(line)
        is_own_goal = summaries[protocol]["config"].get("goal") is not None  # published scores are of other goals
        published = () if is_own_goal else task.published(env, protocol)
        others = ", ".join(f"{s.method} {s.score:g}" for s in published)
        if others:
            found.append(f"{'':<10}published: {others}")
    return "\n".join([*lines[: -len(rows)], *found])


def _format_interval(interval: Sequence[float] | None, number: str) -> str:
    """An interval in brackets; words where one episode gives none."""
    return "unknown" if interval is None else f"[{', '.join(number.format(end) for end in interval)}]"

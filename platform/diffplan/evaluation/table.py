"""The table of scores that commands print."""

from __future__ import annotations

from typing import Any

from diffplan.evaluation.published import get_published_scores


def format_table(summaries: dict[str, Any]) -> str:
    """Summaries of evaluations by protocol as lines of text, with published scores beside them."""
    lines = [f"{'protocol':<10}{'score':>8}  {'95 % interval':<16}{'success':>9}{'time to goal':>14}{'plan':>10}"]
    for protocol, summary in summaries.items():
        low, high = summary["score_ci95"]
        time_to_goal, plan_seconds = summary["time_to_goal_steps_mean"], summary["plan_seconds_mean"]
        lines.append(
            f"{protocol:<10}{summary['score_mean']:>8.1f}  {f'[{low:.1f}, {high:.1f}]':<16}"
            f"{summary['success_rate']:>9.1%}"
            f"{'never' if time_to_goal is None else f'{time_to_goal:.0f} steps':>14}"
            f"{'none' if plan_seconds is None else f'{1000 * plan_seconds:.1f} ms':>10}"
        )
        others = ", ".join(f"{s.method} {s.score:g}" for s in get_published_scores(summary["env_id"], protocol))
        if others:
            lines.append(f"{'':<10}published: {others}")
    return "\n".join(lines)

"""Sections of the report page on results, data, training and reproduction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffplan.config import config_to_json
from diffplan.report.charts import (
    PROTOCOL_COLORS,
    SMALL_CHART_SIZE,
    ScoreRow,
    draw_curve,
    draw_histogram,
    draw_reached,
    draw_scores,
)
from diffplan.report.contents import Evaluation, RunContents
from diffplan.report.images import PictureRow, svg
from diffplan.report.section import Section, make_picture_section
from diffplan.report.sections_planning import make_coverage

NETWORK_TITLES = {"unet": "temporal U-Net", "transformer": "diffusion transformer"}


def make_key_figures(run: RunContents) -> list[tuple[str, str, str]]:
    """The most important numbers: label, value and note of each."""
    figures: list[tuple[str, str, str]] = []
    for protocol, evaluation in run.evaluations.items():
        interval, title = evaluation.summary["score_ci95"], run.title_of(protocol)
        note = "of one episode" if interval is None else f"95 %: {_interval(interval)}"
        figures.append((f"{title} {run.score_word}", f"{evaluation.summary['score_mean']:.1f}", note))
    for protocol, evaluation in run.evaluations.items():
        note, success = f"of {evaluation.summary['episodes']} episodes", evaluation.summary["success_rate"]
        if success is not None:
            low, high = evaluation.summary["success_ci95"]
            note += f", 95 %: {100 * low:.0f} to {100 * high:.0f} %"
            figures.append((f"{run.title_of(protocol)} success", _percent(success), note))
    if run.dataset and not run.evaluations:
        figures.append(("Steps collected", f"{run.dataset.num_steps:,}", f"{len(run.dataset.episodes):,} episodes"))
    if run.checkpoint:
        figures.append(("Training steps", f"{run.checkpoint.step:,}", "in the checkpoint"))
    if run.total_seconds is not None:
        figures.append(("Whole run", f"{run.total_seconds / 60:.1f} min", f"{len(run.pipeline['stages'])} stages"))
    return figures


def make_scores(run: RunContents) -> Section:
    """Scores next to published ones."""
    if not run.evaluations:
        return Section("scores", "Scores", "scores")
    content = {
        "protocols": [_compare_scores(protocol, run) for protocol in run.protocols],
        "has_references": run.has_references,
    }
    return Section("scores", "Scores", "scores", content)


def _compare_scores(protocol: str, run: RunContents) -> dict[str, Any]:
    title = run.title_of(protocol)
    content = {"name": protocol, "title": run.describe_protocol(protocol), "short_title": title, "scores": []}
    if protocol not in run.evaluations:
        return content
    summary = run.evaluations[protocol].summary
    published = run.list_published(protocol)
    score, interval = summary["score_mean"], summary["score_ci95"]
    rows = [ScoreRow("this run", score, interval, is_ours=True), *(ScoreRow(p.method, p.score) for p in published)]
    # All charts have the height of the one with the most rows.
    most = 1 + max(len(run.list_published(name)) for name in run.evaluations)
    label = "normalised score" if run.has_references else "return of an episode"
    cells = [
        (score, ("this run", f"{score:.1f}", _interval(interval), f"{summary['episodes']} episodes")),
        *((p.score, (p.method, f"{p.score:.1f}", "—", p.source)) for p in published),
    ]
    cells.sort(key=lambda cell: -cell[0])
    return {
        **content,
        "chart": svg(draw_scores(rows, label, most), f"{title} scores from best to worst"),
        "score": score,
        "interval": interval,
        "best_published": max(published, key=lambda p: p.score, default=None),
        "scores": [cell for _, cell in cells],
        "marked": [i for i, (_, cell) in enumerate(cells) if cell[0] == "this run"],
    }


def make_data(run: RunContents) -> Section:
    """The dataset."""
    dataset = run.dataset
    if dataset is None:
        return Section("data", "What was collected", "data")
    behaviors = Counter(dataset.episodes.column("behavior").tolist())
    returns = dataset.episodes.column("undiscounted_return").tolist()
    content = {
        "env_id": dataset.env.env_id,
        "num_steps": dataset.num_steps,
        "hours": dataset.num_steps * (dataset.env.step_seconds or 0.0) / 3600,
        "num_episodes": len(dataset.episodes),
        "behaviors": ", ".join(f"{name} ({count:,} episodes)" for name, count in behaviors.most_common()),
        "size": _bytes(dataset.num_bytes),
        "num_shards": len(dataset.shards),
        "seed": dataset.collection.seed if dataset.collection else None,
        "returns": svg(draw_histogram(returns, "return"), "Histogram of returns"),
        "coverage": make_coverage(run, dataset),
    }
    return Section("data", "What was collected", "data", content)


def make_training(run: RunContents) -> Section:
    """The training."""
    content: dict[str, Any] = {"model": run.checkpoint is not None, "has_curves": bool(run.curves)}
    if run.checkpoint is not None:
        config = run.checkpoint.config
        shortest, longest = config.windows.min_horizon, config.windows.max_horizon
        content |= {
            "network": NETWORK_TITLES[config.network.kind],
            "num_weights": sum(weight.numel() for weight in run.checkpoint.weights.values()),
            "horizons": str(longest) if shortest == longest else f"{shortest} to {longest}",
            "stride": config.windows.stride,
            "num_steps": run.checkpoint.step,
            "batch_size": config.training.batch_size * config.training.accumulation_steps,
        }
    content |= {"loss": run.curves.get("train/loss"), "speed": run.curves.get("time/steps_per_second")}
    if loss := content["loss"]:
        content["loss_chart"] = svg(draw_curve(loss.steps, loss.values, "loss", log=True), "Training loss")
    if speed := content["speed"]:
        content["speed_chart"] = svg(draw_curve(speed.steps, speed.values, "steps per second"), "Training speed")
        content["median_speed"] = np.median(speed.values)
    return Section("training", "Training", "training", content)


def make_times(run: RunContents) -> Section | None:
    """The time to reach goals; None without rows of episodes."""
    evaluations = {
        p: e
        for p, e in run.evaluations.items()
        if e.episodes and e.summary["success_rate"] is not None
    }  # fmt: skip
    if not evaluations:
        return None
    times = {p: [row["time_to_goal_steps"] for row in e.episodes] for p, e in evaluations.items()}
    charts = [
        svg(
            draw_histogram(
                reached, "steps to the goal", PROTOCOL_COLORS[number % len(PROTOCOL_COLORS)], SMALL_CHART_SIZE
            ),
            f"Histogram of steps to the goal in {run.title_of(protocol)}",
            _describe_times(run.title_of(protocol), times[protocol], reached),
        )
        for number, protocol in enumerate(evaluations)
        if (reached := [step for step in times[protocol] if step is not None])
    ]
    limit = max(_longest(e) for e in evaluations.values())
    labelled = {p: (run.title_of(p), steps) for p, steps in times.items()}
    charts.append(
        svg(
            draw_reached(labelled, limit),
            "Share of episodes that reached the goal, over time",
            "Share of episodes that have reached their goal by each step; what is missing to "
            "100\N{NO-BREAK SPACE}% never did.",
        )
    )
    return make_picture_section(
        "times",
        "Time to the goal",
        [PictureRow(charts, "three")],
        caption="Steps until the goal is first reached, mean dashed. Some episodes begin near their goal, so "
        "some times are short by luck.",
    )


def _describe_times(title: str, times: Sequence[int | None], reached: Sequence[int]) -> str:
    never = len(times) - len(reached)
    return (
        f"{title}: median {np.median(reached):.0f}, 90\N{NO-BREAK SPACE}% within "
        f"{np.quantile(reached, 0.9):.0f} steps; {never if never else 'none'} of {len(times)} never reached it."
    )


def _longest(evaluation: Evaluation) -> int:
    return max(int(row["length"]) for row in evaluation.episodes)


def make_making(run: RunContents) -> Section:
    """Reproduction of the run: stages, command, machine and config."""
    machine = run.pipeline.get("machine")
    content = {
        "stages": [(str(stage["name"]), float(stage["seconds"])) for stage in run.pipeline.get("stages") or []],
        "command": run.pipeline.get("command"),
        "machine": list(machine.items()) if isinstance(machine, dict) else [("machine", machine)] if machine else [],
        "config": config_to_json(run.config).rstrip() if run.config else "",
        "settings": config_to_json(run.settings).rstrip() if run.settings and run.evaluations else "",
        "run": run.path.name,
    }
    return Section("making", "How it was made", "making", content)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %".replace(".0 %", " %")


def _interval(interval: Sequence[float] | None) -> str:
    if interval is None:
        return "\N{EM DASH}"
    low, high = interval
    return f"{low:.1f} to {high:.1f}"


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"

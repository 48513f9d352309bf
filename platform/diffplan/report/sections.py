"""The sections of the report page on results, data, training and how the run was made."""

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
from diffplan.report.contents import Evaluation, RunContents, sample_positions
from diffplan.report.figures import draw_coverage
from diffplan.report.markup import (
    Html,
    Section,
    absent,
    bar,
    code,
    details,
    grid,
    heading,
    key_figures,
    missing,
    paragraph,
    picture,
    png,
    preformatted,
    stack,
    strong,
    svg,
    table,
)
from diffplan.tasks.contracts import PublishedScore
from diffplan.tasks.registry import task_of

PROTOCOL_TITLES = {"maze2d": "Maze2D", "multi2d": "Multi2D"}
PROTOCOL_NOTES = {"maze2d": "one fixed goal", "multi2d": "a new goal for each episode"}


def make_key_figures(run: RunContents) -> Html:
    """The numbers that matter most, in a row."""
    figures: list[tuple[str, str, str]] = []
    for protocol, evaluation in run.evaluations.items():
        low, high = evaluation.summary["score_ci95"]
        title = PROTOCOL_TITLES[protocol]
        figures.append((f"{title} score", f"{evaluation.summary['score_mean']:.1f}", f"95 %: {_interval(low, high)}"))
    for protocol, evaluation in run.evaluations.items():
        note = f"of {evaluation.summary['episodes']} episodes"
        figures.append((f"{PROTOCOL_TITLES[protocol]} success", _percent(evaluation.summary["success_rate"]), note))
    if run.dataset and not run.evaluations:
        figures.append(("Steps collected", f"{run.dataset.num_steps:,}", f"{len(run.dataset.episodes):,} episodes"))
    if run.checkpoint:
        figures.append(("Training steps", f"{run.checkpoint.step:,}", "in the checkpoint"))
    if run.total_seconds is not None:
        figures.append(("Whole run", f"{run.total_seconds / 60:.1f} min", f"{len(run.pipeline['stages'])} stages"))
    return key_figures(figures)


def make_scores(run: RunContents) -> Section:
    """Scores beside the published ones."""
    section = Section("scores", "Scores")
    if not run.evaluations:
        section.parts.append(missing("evaluation", "evaluation/"))
        return section
    blocks = [_scores_of(protocol, run) for protocol in run.evaluations]
    section.parts += [
        grid(blocks, "two"),
        paragraph(_explain_scores(run), kind="caption"),
    ]
    return section


def _scores_of(protocol: str, run: RunContents) -> Html:
    title = heading(f"{PROTOCOL_TITLES[protocol]} — {PROTOCOL_NOTES[protocol]}")
    if protocol not in run.evaluations:
        return stack(title, missing(f"{PROTOCOL_TITLES[protocol]} evaluation", f"evaluation/{protocol}/summary.json"))
    summary = run.evaluations[protocol].summary
    published = _published(run, protocol)
    low, high = summary["score_ci95"]
    ours = ScoreRow("this run", summary["score_mean"], (low, high))
    rows = [ours, *(ScoreRow(p.method, p.score) for p in published)]
    chart = svg(
        draw_scores(rows, _score_label(run), _most_rows(run)), f"{PROTOCOL_TITLES[protocol]} scores from best to worst"
    )
    cells: list[tuple[float, Sequence[str | Html]]] = [
        (ours.score, ("this run", f"{ours.score:.1f}", _interval(low, high), f"{summary['episodes']} episodes")),
        *((p.score, (p.method, f"{p.score:.1f}", "—", p.source)) for p in published),
    ]
    cells.sort(key=lambda cell: -cell[0])
    scores = table(
        ("Method", "Score", "95 % interval", "Source"),
        [cell for _, cell in cells],
        marked=[i for i, (_, cell) in enumerate(cells) if cell[0] == "this run"],
        numeric=(1, 2),
    )
    return stack(title, picture(chart, framed=True), _verdict(ours.score, (low, high), published), scores)


def _published(run: RunContents, protocol: str) -> tuple[PublishedScore, ...]:
    return () if run.env is None else task_of(run.env).published(run.env, protocol)


def _verdict(score: float, interval: tuple[float, float], published: Sequence[PublishedScore]) -> Html:
    """One sentence that compares this run with the best published score and claims no more than the interval does."""
    if not published:
        return paragraph("No published scores are known for this environment.", kind="verdict")
    best = max(published, key=lambda p: p.score)
    reference = f"the highest published score listed here ({best.method}, {best.score:.1f})"
    if interval[0] > best.score:
        text, kind = f"Above {reference}, and so is the whole 95 % interval.", "verdict"
    elif score > best.score:
        text, kind = f"Above {reference}, which lies within the 95 % interval.", "verdict"
    elif interval[1] >= best.score:
        text, kind = f"Below {reference}, which lies within the 95 % interval.", "verdict below"
    else:
        text, kind = f"Below {reference}, outside the 95 % interval.", "verdict below"
    return paragraph(strong(text), kind=kind)


def _most_rows(run: RunContents) -> int:
    """Rows of the longest score chart, so that all are of one height."""
    evaluations = run.evaluations.items()
    return 1 + max(len(_published(run, protocol)) for protocol, e in evaluations)


def _score_label(run: RunContents) -> str:
    return "normalised score" if run.has_references else "return of an episode"


def _explain_scores(run: RunContents) -> str:
    meaning = (
        "A score of 0 is a random policy, 100 is D4RL's reference controller; it grows with every step that is spent "
        "at the goal, so quicker is better. "
        if run.has_references
        else "A score is the return of an episode. "
    )
    return (
        f"{meaning}Dots are means; the bar around this run is the 95 % interval of the mean over its episodes "
        "(bootstrap) and says nothing about how another training would turn out. Grey dots and the dashed line at the "
        "highest of them are published scores: they come from the literature, with other data and other code, and were "
        "not computed in this run."
    )


def make_data(run: RunContents) -> Section:
    """What was collected."""
    section = Section("data", "What was collected")
    dataset = run.dataset
    if dataset is None:
        section.parts.append(missing("collection", "dataset/"))
        return section
    behaviors = Counter(dataset.episodes.column("behavior").tolist())
    hours = dataset.num_steps * (dataset.env.step_seconds or 0.0) / 3600
    facts = table(
        ("", ""),
        [
            ("Environment", dataset.env.env_id),
            ("Steps", f"{dataset.num_steps:,} ({hours:.1f} h of simulated time)"),
            ("Episodes", f"{len(dataset.episodes):,}"),
            ("Behaviour", ", ".join(f"{name} ({n:,} episodes)" for name, n in behaviors.most_common())),
            ("Size", _bytes(dataset.num_bytes)),
            ("Shards", f"{len(dataset.shards):,}"),
            ("Seed", str(dataset.collection.seed) if dataset.collection else "not collected here"),
        ],
    )
    returns = picture(
        svg(draw_histogram(dataset.episodes.column("undiscounted_return").tolist(), "return"), "Histogram of returns"),
        "Returns of the collected episodes, their mean dashed. The data are made to go everywhere, not to score.",
        framed=True,
    )
    if run.maze is None:
        section.parts.append(grid([facts, returns], "two"))
        return section
    positions = sample_positions(dataset, dataset.env)
    sampled = "" if len(positions) == dataset.num_steps else f" (from a sample of {len(positions):,} steps)"
    coverage = picture(
        png(draw_coverage(run.maze, positions), "Heat map of visited positions over the maze"),
        f"Where the ball was{sampled}: the darker, the more often, on a logarithmic scale. Walls are slate; a "
        "place left in the colour of the floor was never visited.",
        framed=True,
    )
    section.parts.append(grid([coverage, stack(facts, returns)], "two"))
    return section


def make_training(run: RunContents) -> Section:
    """How training went."""
    section = Section("training", "Training")
    if run.checkpoint or run.curves:
        section.parts.append(_describe_training(run))
    if not run.curves:
        kept = absent("The curves of the training are not here", "tensorboard/")
        section.parts.append(kept if run.checkpoint else missing("training", "tensorboard/"))
        return section
    charts = []
    if loss := run.curves.get("train/loss"):
        charts.append(
            picture(
                svg(draw_curve(loss.steps, loss.values, "loss", log=True), "Training loss"),
                f"Training loss, on a logarithmic scale; the last value is {loss.values[-1]:.4g} "
                f"at step {loss.steps[-1]:,}.",
                framed=True,
            )
        )
    if speed := run.curves.get("time/steps_per_second"):
        charts.append(
            picture(
                svg(draw_curve(speed.steps, speed.values, "steps per second"), "Training speed"),
                f"Optimizer steps per second; the median is {np.median(speed.values):.1f}.",
                framed=True,
            )
        )
    section.parts.append(grid(charts, "two"))
    return section


def _describe_training(run: RunContents) -> Html:
    config = run.config
    if config is None or run.checkpoint is None:
        return absent("The training has not left a checkpoint yet", "checkpoint/")
    num_weights = sum(weight.numel() for weight in run.checkpoint.weights.values())
    training, windows = config.training, config.windows
    horizon = f"{windows.min_horizon} to {windows.max_horizon}"
    if windows.min_horizon == windows.max_horizon:
        horizon = str(windows.max_horizon)
    return paragraph(
        f"A temporal U-Net with {num_weights / 1e6:.2f} million weights learned to denoise windows of {horizon} "
        f"transitions, {windows.stride} environment steps apart, in {run.checkpoint.step:,} steps of "
        f"{training.batch_size * training.accumulation_steps} windows each."
    )


def make_times(run: RunContents) -> Section | None:
    """How long the planner takes to reach goals; None where no episodes were kept."""
    evaluations = {p: e for p, e in run.evaluations.items() if e.episodes}
    if not evaluations:
        return None
    section = Section("times", "Time to the goal")
    times = {p: [row["time_to_goal_steps"] for row in e.episodes] for p, e in evaluations.items()}
    charts = [
        picture(
            svg(
                draw_histogram(reached, "steps to the goal", PROTOCOL_COLORS[protocol], SMALL_CHART_SIZE),
                f"Histogram of steps to the goal in {PROTOCOL_TITLES[protocol]}",
            ),
            _describe_times(protocol, times[protocol], reached),
            framed=True,
        )
        for protocol in evaluations
        if (reached := [step for step in times[protocol] if step is not None])
    ]
    limit = max(_longest(e) for e in evaluations.values())
    labelled = {p: (PROTOCOL_TITLES[p], steps) for p, steps in times.items()}
    charts.append(
        picture(
            svg(draw_reached(labelled, limit), "Share of episodes that reached the goal, over time"),
            "Share of episodes that have touched their goal by each step; what is missing to 100 % never did.",
            framed=True,
        )
    )
    section.parts += [
        grid(charts, "three"),
        paragraph(
            "Steps until the ball first touches the goal, mean dashed. Some episodes begin near their goal, so some "
            "times are short by luck.",
            kind="caption",
        ),
    ]
    return section


def _describe_times(protocol: str, times: Sequence[int | None], reached: Sequence[int]) -> str:
    never = len(times) - len(reached)
    return (
        f"{PROTOCOL_TITLES[protocol]}: median {np.median(reached):.0f}, 90 % within {np.quantile(reached, 0.9):.0f} "
        f"steps; {never if never else 'none'} of {len(times)} never reached it."
    )


def _longest(evaluation: Evaluation) -> int:
    return max(int(row["length"]) for row in evaluation.episodes)


def make_making(run: RunContents) -> Section:
    """How the run was made: stages, command, machine and config."""
    section = Section("making", "How it was made")
    stages = run.pipeline.get("stages") or []
    if stages:
        section.parts.append(_stage_table(stages))
    else:
        section.parts.append(absent("The times of the stages were not recorded", "pipeline.json"))
    if command := run.pipeline.get("command"):
        section.parts += [heading("Command"), preformatted(str(command))]
    if machine := run.pipeline.get("machine"):
        rows = machine.items() if isinstance(machine, dict) else [("machine", machine)]
        section.parts += [heading("Machine"), _narrow(table(("", ""), [(str(k), str(v)) for k, v in rows]))]
    if run.config:
        text = config_to_json(run.config).rstrip()
        section.parts.append(details("Config of the experiment (JSON)", preformatted(text)))
    if run.settings and run.evaluations:
        text = config_to_json(run.settings).rstrip()
        section.parts.append(details("Planner settings of the evaluation (JSON)", preformatted(text)))
    section.parts.append(paragraph("Run directory: ", code(run.path.name), kind="caption"))
    return section


def _stage_table(stages: Sequence[dict[str, Any]]) -> Html:
    total = sum(float(stage["seconds"]) for stage in stages)
    rows: list[Sequence[str | Html]] = [
        (str(stage["name"]), f"{float(stage['seconds']):.1f}", bar(float(stage["seconds"]) / max(total, 1e-9)))
        for stage in stages
    ]
    rows.append(("all", f"{total:.1f}", f"{total / 60:.1f} minutes"))
    return _narrow(table(("Stage", "Seconds", "Share"), rows, marked=[len(rows) - 1], numeric=(1,)))


def _narrow(content: Html) -> Html:
    return Html(f'<div class="narrow">{content.source}</div>')


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %".replace(".0 %", " %")


def _interval(low: float, high: float) -> str:
    return f"{low:.1f}\N{EN DASH}{high:.1f}"


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"

"""The sections of the report page on plans, rollouts and the search for planner settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from diffplan.config import EnvConfig, PlanningConfig, config_to_dict
from diffplan.planning.loading import load_planner
from diffplan.report.charts import draw_setting, draw_trials
from diffplan.report.charts_search import FrontChart, draw_front, draw_importances
from diffplan.report.contents import Evaluation, RunContents, Search
from diffplan.report.figures import GOAL_COLOR, START_COLOR, draw_plan_on_maze, draw_rollout
from diffplan.report.markup import (
    Html,
    Section,
    absent,
    code,
    grid,
    heading,
    missing,
    paragraph,
    picture,
    png,
    stack,
    svg,
    table,
)
from diffplan.report.sections import PROTOCOL_NOTES, PROTOCOL_TITLES
from diffplan.types import Plan

NUM_SNAPSHOTS = 5
MAX_ROLLOUTS = 8
MAX_PICTURE_STEPS = 64
"""Longest denoising that is run for pictures; longer ones are drawn with as many steps of DDIM."""


def make_plans(run: RunContents) -> Section | None:
    """Plans at several denoising steps; None where there is no maze to draw them on."""
    section = Section("plans", "From noise to a plan")
    if run.checkpoint is None or run.settings is None:
        section.parts.append(absent("Plans need a checkpoint, and there is none yet", "checkpoint/"))
        return section
    if run.maze is None:
        return None
    settings = _picture_settings(run.settings)
    starts, goals = _choose_tasks(run.maze)
    planner = load_planner(run.checkpoint.path, settings)
    env = planner.config.env
    observations = np.zeros((len(starts), planner.model.layout.observation_dim), dtype=np.float32)
    observations[:, list(env.position_columns)] = starts
    plans = planner.plan(observations, goals, torch.Generator().manual_seed(0), keep_denoising=True)
    section.parts.append(
        paragraph(
            "A plan starts as noise. Each denoising step makes it more like the data; its first and last position are "
            "held at the start and the goal throughout. Nothing tells the planner where the walls are: all that it "
            "knows of them is what it learned from the data, so a plan may run through one; it is made "
            "again as soon as the ball strays from it."
        )
    )
    for name, plan, start, goal in zip(("A far goal", "A nearer goal"), plans, starts, goals, strict=False):
        section.parts += [heading(f"{name}: {_describe_plan(plan)}"), _denoising_row(run.maze, plan, start, goal, env)]
    section.parts += [
        _legend(),
        paragraph(
            f"Planned for this page with {settings.num_sampling_steps} steps of {settings.sampler.upper()} and the "
            "settings of the evaluation, with no velocity at the start. Dots are the steps of the plan, joined in "
            "order, dark first and bright last; what noise throws outside the maze is cut off.",
            kind="caption",
        ),
    ]
    return section


def _picture_settings(settings: PlanningConfig) -> PlanningConfig:
    """The settings with a denoising short enough to be run for a page."""
    if settings.num_sampling_steps > MAX_PICTURE_STEPS:
        return replace(settings, sampler="ddim", num_sampling_steps=MAX_PICTURE_STEPS)
    return settings


def _choose_tasks(maze: Any) -> tuple[np.ndarray, np.ndarray]:
    """Start and goal positions: the cells that lie furthest apart, and two others about two thirds as far.

    Positions are the cells' indices, around which the environment puts its starts and goals.
    """
    cells = maze.free_cells
    distances = np.array([[maze.distances[(*source, *target)] for target in cells] for source in cells])
    far = np.unravel_index(distances.argmax(), distances.shape)
    # The cells of the far pair are left out where others remain, so that the two pictures differ.
    deviation = np.abs(distances - distances.max() * 2 / 3)
    deviation[:, list(far)] += 0.75
    deviation[list(far)] += 0.75
    near = np.unravel_index(deviation.argmin(), deviation.shape)
    starts, goals = cells[[far[0], near[0]]], cells[[far[1], near[1]]]
    return starts.astype(np.float32), goals.astype(np.float32)


def _describe_plan(plan: Plan) -> str:
    return f"{plan.horizon} transitions, {plan.stride} environment steps apart"


def _denoising_row(maze: Any, plan: Plan, start: np.ndarray, goal: np.ndarray, env: EnvConfig) -> Html:
    columns = list(env.position_columns)
    states = plan.denoising if plan.denoising is not None else plan.observations[None]
    shown = np.unique(np.linspace(0, len(states) - 1, NUM_SNAPSHOTS).round().astype(int))
    panels = []
    for index in shown:
        caption = f"after step {index + 1} of {len(states)}" + (": the plan" if index == len(states) - 1 else "")
        figure = draw_plan_on_maze(maze, states[index][:, columns], start, goal)
        panels.append(picture(png(figure, f"Plan {caption}"), caption))
    return grid(panels, "five")


def make_rollouts(run: RunContents) -> Section | None:
    """Executed episodes over their plans; None where nothing was recorded or there is no maze."""
    recorded = {p: e for p, e in run.evaluations.items() if e.recordings}
    if not recorded or run.maze is None or run.env is None:
        return None
    section = Section("rollouts", "What was planned, what was done")
    for protocol, evaluation in recorded.items():
        section.parts.append(heading(f"{PROTOCOL_TITLES[protocol]} — {PROTOCOL_NOTES[protocol]}"))
        section.parts.append(_rollout_grid(run.maze, evaluation, list(run.env.position_columns)))
    section.parts += [
        _legend(),
        paragraph(
            "The first episodes of each evaluation as they came, not picked. The coloured line is the executed path, "
            "from dark at the start to bright where the goal is first touched (or where the episode ends, if it never "
            "is). The dashed black line is the first plan; where the ball strays from it, it plans again, so the path "
            "may leave the first plan. Below each: steps to the goal, plans made, score of the episode.",
            kind="caption",
        ),
    ]
    return section


def _rollout_grid(maze: Any, evaluation: Evaluation, columns: list[int]) -> Html:
    rows = {row["episode"]: row for row in evaluation.episodes}
    panels = []
    for i, recording in enumerate(evaluation.recordings[:MAX_ROLLOUTS]):
        row = rows.get(i, {})
        reached = row.get("time_to_goal_steps")
        figure = draw_rollout(
            maze, recording.plan[:, columns], recording.observations[:, columns], recording.goal, reached
        )
        panels.append(picture(png(figure, f"Episode {i}"), _describe_rollout(row)))
    return grid(panels, "four")


def _describe_rollout(row: dict[str, Any]) -> str:
    if not row:
        return ""
    reached = row["time_to_goal_steps"]
    outcome = "never there" if reached is None else f"{reached} step{'s' if reached != 1 else ''}"
    plans = row["num_plans"]
    return f"{outcome}, {plans} plan{'s' if plans != 1 else ''}, score {row['score']:.0f}"


def _legend() -> Html:
    """Marks of start and goal."""
    return Html(
        '<p class="caption"><span class="legend"><svg width="12" height="12" viewBox="0 0 12 12" aria-hidden="true">'
        f'<circle cx="6" cy="6" r="5" fill="{START_COLOR}"/></svg>start</span>'
        '<span class="legend"><svg width="14" height="14" viewBox="0 0 24 24" aria-hidden="true">'
        f'<path fill="{GOAL_COLOR}" d="M12 1l3.2 7.4 8 .7-6.1 5.3 1.9 7.9-7-4.2-7 4.2 1.9-7.9L.8 9.1l8-.7z"/>'
        "</svg>goal</span></p>"
    )


def make_search(run: RunContents) -> Section:
    """What the search over planner settings found."""
    section = Section("search", "Search for planner settings")
    search = run.search
    if search is None:
        section.parts.append(missing("search", "search/best.json"))
        return section
    trials = [trial for trial in search.trials if trial.get("objective") is not None]
    full = [trial["episodes"] >= search.full_episodes for trial in trials]
    section.parts.append(_describe_search(search, trials, full))
    settings = _settings_table(run, search, trials)
    if not trials:
        section.parts.append(settings)
        return section
    objectives = [trial["objective"] for trial in trials]
    chart = picture(
        svg(draw_trials(objectives, full), "Objective of each trial"),
        "The objective of each trial in the order in which they were proposed. The first has the settings from before "
        "the search. Hollow dots were stopped early and are means over fewer episodes.",
        framed=True,
    )
    section.parts += [grid([chart, settings], "two"), heading("Which settings matter"), *_judge_settings(search)]
    names = [name for name in trials[0]["params"] if all(name in trial["params"] for trial in trials)]
    panels = [
        picture(
            svg(
                draw_setting(
                    [trial["params"][name] for trial in trials],
                    objectives,
                    full,
                    _find_chosen(search, name),
                    name.removeprefix("planning."),
                ),
                f"Objective against {name}",
            ),
            framed=True,
        )
        for name in names
    ]
    section.parts += [
        grid(panels, "three"),
        paragraph(
            "The objective (vertical) of every trial against each setting that was searched; filled dots are full "
            "trials, the red ring is the one that was chosen. All settings change at once from trial to trial, so a "
            "trend in one panel can stem from another setting.",
            kind="caption",
        ),
    ]
    return section


def _judge_settings(search: Search) -> list[Html]:
    """Importances and the Pareto front, where the search wrote them."""
    charts = []
    if search.importances:
        charts.append(
            picture(
                svg(draw_importances(search.importances), "Importance of each setting"),
                "How much each setting has to do with being among the best trials (PED-ANOVA). Of a few dozen trials "
                "only the order of the first ones means anything.",
                framed=True,
            )
        )
    if search.pareto is not None:
        charts.append(
            picture(
                svg(draw_front(_find_front(search, search.pareto)), "Pareto front of the search"),
                "Full trials in both objectives; no other trial beats those on the line in both. The red ring is the "
                "one that was chosen.",
                framed=True,
            )
        )
    return [grid(charts, "two")] if charts else []


def _find_front(search: Search, pareto: dict[str, Any]) -> FrontChart:
    vertical, horizontal = pareto["objectives"]
    full = [trial for trial in search.trials if trial.get("is_full")]
    rows = {trial["trial"]: i for i, trial in enumerate(full)}
    return FrontChart(
        (vertical, horizontal),
        [[trial[vertical], trial[horizontal]] for trial in full],
        [rows[point["trial"]] for point in pareto["points"]],
        rows[pareto["best"]],
    )


def _describe_search(search: Search, trials: Sequence[dict[str, Any]], full: Sequence[bool]) -> Html:
    best, which = search.best, "chosen" if search.pareto else "best full"
    failed, stopped = len(search.trials) - len(trials), len(full) - sum(full)
    seconds = best.get("wall_seconds")
    protocols = " and ".join(PROTOCOL_TITLES.get(name, str(name)) for name in best.get("protocols", ()))
    text = (
        f"{len(search.trials)} trials on {protocols}"
        f"{f' in {seconds:.0f} s' if seconds else ''}: {sum(full)} ran over all {search.full_episodes} "
        f"tuning episodes, {stopped} {'was' if stopped == 1 else 'were'} stopped early by ASHA because others did "
        f"better{f', {failed} failed' if failed else ''}. "
        f"The {which} trial has an objective of {best['objective']:.1f}. The objective is the mean over episodes of "
        "the score, less 100 where the goal is never reached. Tuning episodes are never among those of the evaluation "
        "above; the best of many trials looks a little better than it is."
    )
    return paragraph(text)


def _find_chosen(search: Search, name: str) -> object:
    """What the search chose for a field that it varied, by its dotted name."""
    return search.best.get("params", {}).get(name, search.best["settings"].get(name.removeprefix("planning.")))


def _settings_table(run: RunContents, search: Search, trials: Sequence[dict[str, Any]]) -> Html:
    """The searched settings before and after; from before are those of the checkpoint's config."""
    best = search.best["settings"]
    before = config_to_dict(run.config.planning) if run.config else {}
    names = [name.removeprefix("planning.") for name in (trials[0]["params"] if trials else before or best)]
    rows = [(code(name), _show(before.get(name)), _show(best.get(name))) for name in names]
    changed = [i for i, name in enumerate(names) if before.get(name) != best.get(name)]
    note = paragraph("Before the search and chosen by it; shaded where they differ.", kind="caption")
    return stack(table(("Setting", "Default", "Best"), rows, marked=changed, numeric=(1, 2)), note)


def _show(value: object) -> str:
    if value is None:
        return "—"
    return f"{value:.3g}" if isinstance(value, float) else str(value)

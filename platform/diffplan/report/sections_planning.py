"""Sections of the report page with the task's pictures of data, plans and rollouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from diffplan.config import Config, PlanningConfig, with_overrides
from diffplan.data.format.dataset import TrajectoryDataset
from diffplan.planning.calibration import longest_horizon, read_windows
from diffplan.planning.loading import load_planner
from diffplan.report.contents import Evaluation, RunContents, sample_observations
from diffplan.report.images import Picture, PictureRow, png
from diffplan.report.section import Section, make_picture_section
from diffplan.seeding import Stream, make_generator
from diffplan.tasks.contracts import Figures
from diffplan.types import Plan

NUM_PLANS = 2
NUM_SNAPSHOTS = 5
MAX_ROLLOUTS = 8
MAX_PICTURE_STEPS = 64
"""Most denoising steps for pictures; plans with more are made with this number of DDIM steps."""
NUM_WINDOWS = 64
"""Number of windows of the data from which problems for pictures are chosen."""


def make_coverage(run: RunContents, dataset: TrajectoryDataset) -> Picture | None:
    """A picture of the positions in the data; None if the task cannot draw it."""
    if run.figures is None:
        return None
    observations = sample_observations(dataset)
    sampled = "" if len(observations) == dataset.num_steps else f" (From a sample of {len(observations):,} steps.)"
    figure = run.figures.draw_data(observations)
    return png(figure, "Where the collected observations lie", f"{run.figures.words.data}{sampled}", framed=True)


def make_plans(run: RunContents) -> Section | None:
    """Plans at several denoising steps; None without data to plan from."""
    anchor, title = "plans", "From noise to a plan"
    if run.checkpoint is None or run.settings is None:
        absent = ("Plans need a checkpoint, and there is none yet", "checkpoint/")
        return make_picture_section(anchor, title, absent=absent)
    if run.figures is None or run.dataset is None:
        return None
    settings = _picture_settings(run.settings)
    planner = load_planner(run.checkpoint.path, settings)
    windows = _read_windows(run.dataset, planner.config)
    observations, goals = run.figures.choose_problems(windows, NUM_PLANS, np.random.default_rng(0))
    plans = planner.plan(observations, goals, torch.Generator().manual_seed(0), keep_denoising=True)
    ends = "its first step is held at the present observation throughout"
    if goals is not None:
        ends = "its first and last step are held at the start and the goal throughout"
    return make_picture_section(
        anchor,
        title,
        [
            _denoising_row(_describe_plan(plan), run.figures, plan, None if goals is None else goals[i])
            for i, plan in enumerate(plans)
        ],
        introduction=f"A plan starts as noise. Each denoising step makes it more like the data; {ends}. "
        f"{run.figures.words.plans}",
        legend=run.figures.words.marks,
        caption=f"Planned for this page with {settings.sampling.num_steps} steps of "
        f"{settings.sampling.sampler.upper()} and the settings of the evaluation.",
    )


def _read_windows(dataset: TrajectoryDataset, config: Config) -> np.ndarray:
    generator = make_generator(0, Stream.EVALUATION)
    return read_windows(dataset, config, longest_horizon(dataset, config), NUM_WINDOWS, generator)


def _picture_settings(settings: PlanningConfig) -> PlanningConfig:
    """The settings, with at most `MAX_PICTURE_STEPS` denoising steps."""
    if settings.sampling.num_steps > MAX_PICTURE_STEPS:
        return with_overrides(settings, {"sampling.sampler": "ddim", "sampling.num_steps": MAX_PICTURE_STEPS})
    return settings


def _describe_plan(plan: Plan) -> str:
    return f"{plan.horizon} transitions, {plan.stride} environment step{'s' if plan.stride > 1 else ''} apart"


def _denoising_row(title: str, figures: Figures, plan: Plan, goal: np.ndarray | None) -> PictureRow:
    states = plan.denoising if plan.denoising is not None else plan.observations[None]
    shown = np.unique(np.linspace(0, len(states) - 1, NUM_SNAPSHOTS).round().astype(int))
    pictures = []
    for index in shown:
        caption = f"after step {index + 1} of {len(states)}" + (": the plan" if index == len(states) - 1 else "")
        pictures.append(png(figures.draw_plan(states[index], goal), f"Plan {caption}", caption))
    return PictureRow(pictures, "five", title)


def make_rollouts(run: RunContents) -> Section | None:
    """Executed episodes over their plans; None without recordings."""
    recorded = {p: e for p, e in run.evaluations.items() if e.recordings}
    if not recorded or run.figures is None:
        return None
    figures = run.figures
    return make_picture_section(
        "rollouts",
        "What was planned, what was done",
        [_rollout_row(run.describe_protocol(p), figures, evaluation, run.stride) for p, evaluation in recorded.items()],
        legend=figures.words.marks,
        caption="The first episodes of each evaluation as they came, not picked. "
        f"{figures.words.rollouts} Below each: what came of it, plans made, score of the episode.",
    )


def _rollout_row(title: str, figures: Figures, evaluation: Evaluation, stride: int) -> PictureRow:
    rows = {row["episode"]: row for row in evaluation.episodes}
    pictures = []
    for i, recording in enumerate(evaluation.recordings[:MAX_ROLLOUTS]):
        row = rows.get(i, {})
        goal = recording.goal if recording.goal.size else None
        reached = row.get("time_to_goal_steps")
        figure = figures.draw_rollout(recording.plan, stride, recording.observations, goal, reached)
        pictures.append(png(figure, f"Episode {i}", _describe_rollout(row)))
    return PictureRow(pictures, "four", title)


def _describe_rollout(row: dict[str, Any]) -> str:
    if not row:
        return ""
    reached, plans = row["time_to_goal_steps"], row["num_plans"]
    if row.get("success") is None:
        outcome = f"{row['length']} steps"
    else:
        outcome = "never there" if reached is None else f"{reached} step{'s' if reached != 1 else ''}"
    return f"{outcome}, {plans} plan{'s' if plans != 1 else ''}, score {row['score']:.0f}"

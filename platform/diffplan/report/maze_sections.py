"""What the report page draws on a maze: where the data went, plans, rollouts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from diffplan.config import EnvConfig, PlanningConfig
from diffplan.data.dataset import TrajectoryDataset
from diffplan.planning.loading import load_planner
from diffplan.report.contents import Evaluation, RunContents, sample_positions
from diffplan.report.figures import GOAL_COLOR, START_COLOR, draw_coverage, draw_plan_on_maze, draw_rollout
from diffplan.report.images import Picture, PictureRow, png
from diffplan.report.section import Mark, Section, make_picture_section
from diffplan.types import Plan

PROTOCOL_TITLES = {"maze2d": "Maze2D", "multi2d": "Multi2D"}
PROTOCOL_NOTES = {"maze2d": "one fixed goal", "multi2d": "a new goal for each episode"}
NUM_SNAPSHOTS = 5
MAX_ROLLOUTS = 8
MAX_PICTURE_STEPS = 64
"""Longest denoising that is run for pictures; longer ones are drawn with as many steps of DDIM."""
LEGEND: tuple[Mark, ...] = (("dot", START_COLOR, "start"), ("star", GOAL_COLOR, "goal"))


def make_coverage(run: RunContents, dataset: TrajectoryDataset) -> Picture | None:
    """Where the data went; None where there is no maze."""
    if run.maze is None:
        return None
    positions = sample_positions(dataset, dataset.env)
    sampled = "" if len(positions) == dataset.num_steps else f" (from a sample of {len(positions):,} steps)"
    return png(
        draw_coverage(run.maze, positions),
        "Heat map of visited positions over the maze",
        f"Where the ball was{sampled}: the darker, the more often, on a logarithmic scale. Walls are slate; a "
        "place left in the colour of the floor was never visited.",
        framed=True,
    )


def make_plans(run: RunContents) -> Section | None:
    """Plans at several denoising steps; None where there is no maze to draw them on."""
    anchor, title = "plans", "From noise to a plan"
    if run.checkpoint is None or run.settings is None:
        absent = ("Plans need a checkpoint, and there is none yet", "checkpoint/")
        return make_picture_section(anchor, title, absent=absent)
    if run.maze is None:
        return None
    settings = _picture_settings(run.settings)
    starts, goals = _choose_tasks(run.maze)
    planner = load_planner(run.checkpoint.path, settings)
    env = planner.config.env
    observations = np.zeros((len(starts), planner.layout.observation_dim), dtype=np.float32)
    observations[:, list(env.position_columns)] = starts
    plans = planner.plan(observations, goals, torch.Generator().manual_seed(0), keep_denoising=True)
    return make_picture_section(
        anchor,
        title,
        [
            _denoising_row(f"{name}: {_describe_plan(plan)}", run.maze, plan, start, goal, env)
            for name, plan, start, goal in zip(("A far goal", "A nearer goal"), plans, starts, goals, strict=False)
        ],
        introduction="A plan starts as noise. Each denoising step makes it more like the data; its first and last "
        "position are held at the start and the goal throughout. Nothing tells the planner where the walls are: all "
        "that it knows of them is what it learned from the data, so a plan may run through one; it is made again as "
        "soon as the ball strays from it.",
        legend=LEGEND,
        caption=f"Planned for this page with {settings.num_sampling_steps} steps of {settings.sampler.upper()} and the "
        "settings of the evaluation, with no velocity at the start. Dots are the steps of the plan, joined in order, "
        "dark first and bright last; what noise throws outside the maze is cut off.",
    )


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


def _denoising_row(
    title: str, maze: Any, plan: Plan, start: np.ndarray, goal: np.ndarray, env: EnvConfig
) -> PictureRow:
    columns = list(env.position_columns)
    states = plan.denoising if plan.denoising is not None else plan.observations[None]
    shown = np.unique(np.linspace(0, len(states) - 1, NUM_SNAPSHOTS).round().astype(int))
    pictures = []
    for index in shown:
        caption = f"after step {index + 1} of {len(states)}" + (": the plan" if index == len(states) - 1 else "")
        figure = draw_plan_on_maze(maze, states[index][:, columns], start, goal)
        pictures.append(png(figure, f"Plan {caption}", caption))
    return PictureRow(pictures, "five", title)


def make_rollouts(run: RunContents) -> Section | None:
    """Executed episodes over their plans; None where nothing was recorded or there is no maze."""
    recorded = {p: e for p, e in run.evaluations.items() if e.recordings}
    if not recorded or run.maze is None or run.env is None:
        return None
    columns = list(run.env.position_columns)
    return make_picture_section(
        "rollouts",
        "What was planned, what was done",
        [
            _rollout_row(f"{PROTOCOL_TITLES[p]} — {PROTOCOL_NOTES[p]}", run.maze, evaluation, columns)
            for p, evaluation in recorded.items()
        ],
        legend=LEGEND,
        caption="The first episodes of each evaluation as they came, not picked. The coloured line is the executed "
        "path, from dark at the start to bright where the goal is first touched (or where the episode ends, if it "
        "never is). The dashed black line is the first plan; where the ball strays from it, it plans again, so the "
        "path may leave the first plan. Below each: steps to the goal, plans made, score of the episode.",
    )


def _rollout_row(title: str, maze: Any, evaluation: Evaluation, columns: list[int]) -> PictureRow:
    rows = {row["episode"]: row for row in evaluation.episodes}
    pictures = []
    for i, recording in enumerate(evaluation.recordings[:MAX_ROLLOUTS]):
        row = rows.get(i, {})
        reached = row.get("time_to_goal_steps")
        figure = draw_rollout(
            maze, recording.plan[:, columns], recording.observations[:, columns], recording.goal, reached
        )
        pictures.append(png(figure, f"Episode {i}", _describe_rollout(row)))
    return PictureRow(pictures, "four", title)


def _describe_rollout(row: dict[str, Any]) -> str:
    if not row:
        return ""
    reached = row["time_to_goal_steps"]
    outcome = "never there" if reached is None else f"{reached} step{'s' if reached != 1 else ''}"
    plans = row["num_plans"]
    return f"{outcome}, {plans} plan{'s' if plans != 1 else ''}, score {row['score']:.0f}"

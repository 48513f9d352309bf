"""When to pass way-points that say no time: as long after each other as the model takes for each leg alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from diffplan.errors import PlanningError
from diffplan.planning.problem import Problem

if TYPE_CHECKING:
    from diffplan.planning.planner import Planner

SLACKS = (1.0, 1.1, 1.2, 1.35, 1.5)
"""Horizons that are tried, relative to the sum of the legs: a way-point passed at speed saves time that its two legs,
planned apart, need for stopping and starting, but one in a corner costs it."""


def time_waypoints(
    planner: Planner, problem: Problem, horizons: tuple[int, ...], generator: torch.Generator
) -> tuple[Problem, np.ndarray]:
    """Give way-points without a time one, as a share of the plan.

    Args:
        planner: plans the legs.
        problem: what is asked.
        horizons: the horizons that are tried where all is timed, ascending.
        generator: source of the noise in the plans of the legs.

    Returns:
        The problem with times, and the horizons to try in each environment, int[batch, rungs].

    Raises:
        PlanningError: way-points without a time that are not positions, or with no goal after them.
    """
    num, untimed = len(problem), [fixed for fixed in problem.fixed if not fixed.is_timed]
    if not untimed:
        return problem, np.tile(horizons, (num, 1))
    positions = tuple(problem.env.position_columns)
    if problem.goals is None or any(fixed.columns != positions for fixed in untimed):
        raise PlanningError(
            "Fixed: expected a time (step, seconds or fraction) unless it is a position on the way to a goal; give one"
        )
    points = [problem.observations[:, list(positions)], *(np.asarray(f.values) for f in untimed), problem.goals]
    legs = []
    for i, (start, end) in enumerate(pairwise(points)):
        observations = problem.observations if i == 0 else np.zeros_like(problem.observations)
        observations = observations.copy()
        observations[:, list(positions)] = start
        plans = planner.plan(observations, end, generator, guides=(), guidance_scale=0.0)
        legs.append([plan.horizon - 1 for plan in plans])
    ends = np.cumsum(legs, axis=0)  # int[legs, batch]
    shares = iter(ends[:-1] / ends[-1])
    fixed = tuple(f if f.is_timed else replace(f, fraction=next(shares)) for f in problem.fixed)
    ladder = np.ceil(np.outer(ends[-1], SLACKS)).astype(int) + 1
    return replace(problem, fixed=fixed), np.maximum(ladder, horizons[0])

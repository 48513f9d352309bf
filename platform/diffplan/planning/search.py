"""Choosing the horizon: plans of several, in as few batches as pays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from diffplan.planning.legs import sample_in_legs
from diffplan.planning.problem import Problem
from diffplan.planning.sampling import Asked
from diffplan.planning.selection import VIOLATION_TOLERANCE
from diffplan.types import Plan

if TYPE_CHECKING:
    from diffplan.planning.planner import Planner

FIRST_RUNGS = 16
"""Rungs of a ladder that a scan over horizons tries at first: more cost more than they save, since the first consistent
horizon ends the scan."""

ROWS_AT_ONCE = 128
"""Plans of several rungs that are drawn in one batch, at most. On a CPU core a batch of so many takes about three times
as long as one of ten, and where one rung was not consistent, the next one seldom is."""

ROWS_OF_A_BATCH = 512
"""Plans that are drawn in one batch, at most about so many: more would take memory and save nothing."""


def search_horizons(
    planner: Planner,
    problem: Problem,
    ladder: np.ndarray,
    first: np.ndarray,
    limits: np.ndarray,
    asked: Asked,
    steps: Sequence[int],
    *,
    predicted: bool,
    num_rungs: np.ndarray | None = None,
) -> list[Plan]:
    """Plans of the first horizon on each environment's ladder that is consistent and keeps all limits.

    Where guides bend no plan of the ladder far enough, it is climbed once more with plans that are repaired. Repaired
    plans touch their limits, so those that keep them of themselves come first.

    Args:
        planner: the model and its settings.
        problem: what is asked.
        ladder: horizons to try, ascending, int[batch, rungs].
        first: rung to begin with, int[batch].
        limits: speed errors up to which plans are consistent, float[batch].
        asked: what else is asked.
        steps: diffusion steps to denoise at.
        predicted: whether the first rung is likely to be the last, so that it is tried alone. Then each batch climbs
            twice as many rungs as the one before.
        num_rungs: where each ladder ends, above `first`, int[batch]; None for its last rung.

    Returns:
        A plan for each environment; where no rung is consistent and within limits, the one that violates least, then
        the longest.
    """
    ends = np.full(len(problem), ladder.shape[1]) if num_rungs is None else num_rungs
    best: list[Plan | None] = [None] * len(problem)
    waiting, rung = np.arange(len(problem)), first.copy()
    widest = 1 if predicted else FIRST_RUNGS
    while waiting.size:
        width = min(widest, max(1, ROWS_AT_ONCE // (len(waiting) * asked.num_candidates)))
        widest *= 2
        tried = rung[waiting][:, None] + np.arange(width)
        rows, places = np.nonzero(tried < ends[waiting][:, None])
        environments = waiting[rows]
        lengths = ladder[environments, tried[rows, places]]
        found: dict[int, Plan] = {}
        for part in _split(lengths):
            chosen = environments[part]
            made = sample_in_legs(planner, problem.take(chosen), lengths[part], limits[chosen], asked, steps)
            found.update(zip(part.tolist(), made, strict=True))
        done = np.zeros(len(waiting), dtype=bool)
        for place, row in enumerate(rows):  # in order of horizon within each environment
            if not done[row]:
                best[waiting[row]] = plan = _better(best[waiting[row]], found[place])
                done[row] = plan.consistent and plan.violation <= VIOLATION_TOLERANCE
        rung[waiting] += width
        waiting = waiting[~done & (rung[waiting] < ends[waiting])]
    plans = [plan for plan in best if plan is not None]
    left = np.array([i for i, plan in enumerate(plans) if plan.violation > VIOLATION_TOLERANCE], dtype=int)
    if left.size and asked.guidance_scale and not asked.repair:
        repaired = search_horizons(
            planner,
            problem.take(left),
            ladder[left],
            first[left],
            limits[left],
            replace(asked, repair=True),
            steps,
            predicted=predicted,
            num_rungs=ends[left],
        )
        for i, plan in zip(left, repaired, strict=True):
            plans[i] = _better(plans[i], plan)
    return plans


def _split(lengths: np.ndarray) -> list[np.ndarray]:
    """Which plans to draw together, as arrays of their indices."""
    num_batches = max(1, round(len(lengths) / ROWS_OF_A_BATCH))
    return [np.sort(part) for part in np.array_split(np.argsort(lengths, kind="stable"), num_batches)]


def _better(old: Plan | None, new: Plan) -> Plan:
    """Of two plans, the one that violates less; then the consistent one; then the new one."""

    def badness(plan: Plan) -> tuple[float, bool]:
        return (plan.violation if plan.violation > VIOLATION_TOLERANCE else 0.0, not plan.consistent)

    return new if old is None or badness(new) <= badness(old) else old

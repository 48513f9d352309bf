"""Search for the shortest consistent horizon, with several horizons in one batch where that saves time."""

from __future__ import annotations

import numpy as np

from diffplan.planning.ladder import Ladder
from diffplan.planning.problem import Problem
from diffplan.planning.sampling import Draw
from diffplan.planning.selection import VIOLATION_TOLERANCE
from diffplan.types import Plan

FIRST_RUNGS = 16
"""Rungs of a ladder in the first batch of a scan over horizons: more cost more than they save, since the first
consistent horizon ends the scan."""

ROWS_AT_ONCE = 128
"""Most plans of several rungs in one batch. On a CPU core a batch of this size takes about three times as long as one
of ten plans, and if one rung was not consistent, the next seldom is."""

ROWS_OF_A_BATCH = 512
"""Approximate maximum of plans in one batch: more would take memory and save no time."""


def search_horizons(
    draw: Draw,
    problem: Problem,
    ladder: Ladder,
    max_speed_errors: np.ndarray,
    *,
    num_candidates: int = 1,
    may_repair: bool = False,
    repair: bool = False,
) -> list[Plan]:
    """Plans of the first horizon on each environment's ladder that is consistent and keeps all limits.

    A predicted horizon is tried alone; each further batch climbs twice as many rungs as the one before.

    If no plan of the ladder keeps the limits of the guides, the ladder is climbed again with repaired plans. These
    touch their limits, so plans that keep the limits without repair are preferred.

    Args:
        draw: draws plans of given horizons.
        problem: what the plans must satisfy.
        ladder: horizons to try.
        max_speed_errors: largest speed error of a consistent plan, float[batch].
        num_candidates: candidates that `draw` draws for each plan that it returns.
        may_repair: whether plans that violate a limit of the guides may be repaired.
        repair: whether plans are repaired from the start.

    Returns:
        A plan for each environment. If no rung is consistent and within limits, it is the plan with the smallest
        violation; of equal ones, the longest.
    """
    best: list[Plan | None] = [None] * len(problem)
    waiting, rung = np.arange(len(problem)), ladder.first.copy()
    widest = 1 if ladder.predicted else FIRST_RUNGS
    while waiting.size:
        width = min(widest, max(1, ROWS_AT_ONCE // (len(waiting) * num_candidates)))
        widest *= 2
        tried = rung[waiting][:, None] + np.arange(width)
        rows, places = np.nonzero(tried < ladder.stop[waiting][:, None])
        environments = waiting[rows]
        lengths = ladder.horizons[tried[rows, places]]
        found: dict[int, Plan] = {}
        for part in _split(lengths):
            chosen = environments[part]
            drawn = draw(problem.take(chosen), lengths[part], max_speed_errors[chosen], repair=repair)
            found.update(zip(part.tolist(), drawn, strict=True))
        done = np.zeros(len(waiting), dtype=bool)
        for place, row in enumerate(rows):  # in order of horizon within each environment
            if not done[row]:
                best[waiting[row]] = plan = _better(best[waiting[row]], found[place])
                done[row] = plan.consistent and plan.violation <= VIOLATION_TOLERANCE
        rung[waiting] += width
        waiting = waiting[~done & (rung[waiting] < ladder.stop[waiting])]
    plans = [plan for plan in best if plan is not None]
    left = np.array([i for i, plan in enumerate(plans) if plan.violation > VIOLATION_TOLERANCE], dtype=int)
    if left.size and may_repair and not repair:
        repaired = search_horizons(
            draw,
            problem.take(left),
            ladder.take(left),
            max_speed_errors[left],
            num_candidates=num_candidates,
            repair=True,
        )
        for i, plan in zip(left, repaired, strict=True):
            plans[i] = _better(plans[i], plan)
    return plans


def _split(lengths: np.ndarray) -> list[np.ndarray]:
    """Split plans into batches, as arrays of their indices."""
    num_batches = max(1, round(len(lengths) / ROWS_OF_A_BATCH))
    return [np.sort(part) for part in np.array_split(np.argsort(lengths, kind="stable"), num_batches)]


def _better(old: Plan | None, new: Plan) -> Plan:
    """The better of two plans: the one with the smaller violation; then the consistent one; then the new one."""

    def badness(plan: Plan) -> tuple[float, bool]:
        return (plan.violation if plan.violation > VIOLATION_TOLERANCE else 0.0, not plan.consistent)

    return new if old is None or badness(new) <= badness(old) else old

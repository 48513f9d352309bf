"""Way-points that say no time: each is passed as soon as the model can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from diffplan.errors import PlanningError
from diffplan.planning.legs import chain, find_middle
from diffplan.planning.problem import Problem
from diffplan.planning.sampling import Asked
from diffplan.planning.search import search_horizons
from diffplan.types import Plan

if TYPE_CHECKING:
    from diffplan.planning.planner import Planner


def has_untimed(problem: Problem) -> bool:
    """Whether there are way-points that say no time.

    Raises:
        PlanningError: there are, but they are no positions, have no goal after them, or stand beside something that has
            a time of its own.
    """
    middle = find_middle(problem)
    untimed = [fixed for fixed in middle if not fixed.is_timed]
    if not untimed:
        return False
    positions = tuple(problem.env.position_columns)
    if problem.goals is None or any(fixed.columns != positions for fixed in untimed):
        raise PlanningError(
            "Fixed: expected a time (step, seconds or fraction) unless it is a position on the way to a goal; give one"
        )
    if len(untimed) < len(middle) or not all(bounds.is_everywhere for bounds in problem.bounds):
        raise PlanningError(
            "Fixed: expected a time for everything in the middle of a plan or for none of it, got both; give all a time"
        )
    return True


def plan_untimed(
    planner: Planner,
    problem: Problem,
    horizons: tuple[int, ...],
    limits: np.ndarray,
    asked: Asked,
    steps: Sequence[int],
    *,
    given: bool,
) -> list[Plan]:
    """Plans through way-points without a time, each leg with its own shortest consistent horizon.

    Args:
        planner: the model and its settings.
        problem: what is asked; it `has_untimed`.
        horizons: of a leg, ascending.
        limits: speed errors up to which plans are consistent, float[batch].
        asked: what else is asked.
        steps: diffusion steps to denoise at.
        given: whether the caller chose the horizons, so that all of them are to be tried.
    """

    def make(leg: Problem, number: int) -> list[Plan]:
        ladder, first, predicted = planner.choose_ladder(leg, horizons, limits, given=given)
        return search_horizons(planner, leg, ladder, first, limits, asked, steps, predicted=predicted)

    targets = [np.asarray(fixed.values) for fixed in find_middle(problem)]
    return chain(planner, problem, targets, make, asked.guide)

"""Way-points without a time: each is passed as soon as a consistent plan reaches it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from diffplan.errors import PlanningError
from diffplan.planning.legs import chain, find_middle
from diffplan.planning.problem import Problem
from diffplan.types import Plan


def has_untimed(problem: Problem) -> bool:
    """Whether there are way-points without a time.

    Raises:
        PlanningError: there are, but they fix columns other than the positions, there is no goal after them, or other
            constraints have times.
    """
    middle = find_middle(problem)
    untimed = [fixed for fixed in middle if not fixed.is_timed]
    if not untimed:
        return False
    positions = problem.position_columns
    if problem.goals is None or any(fixed.columns != positions for fixed in untimed):
        raise PlanningError(
            "Fixed: expected a time (step, seconds or fraction) unless it is a position on the way to a goal; give one"
        )
    if len(untimed) < len(middle) or not all(bounds.is_everywhere for bounds in problem.bounds):
        raise PlanningError(
            "Fixed: expected a time for everything in the middle of a plan or for none of it, got both; give all a time"
        )
    return True


def plan_untimed(problem: Problem, plan_leg: Callable[[Problem], list[Plan]]) -> list[Plan]:
    """Plans through way-points without a time, each leg with its own horizon; not yet scored as a whole.

    Args:
        problem: what the plans must satisfy; `has_untimed` is true for it.
        plan_leg: makes the plans of a leg and chooses their horizons.
    """
    targets = [np.asarray(fixed.values) for fixed in find_middle(problem)]
    return chain(problem, targets, lambda leg, number: plan_leg(leg))

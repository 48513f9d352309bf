"""Plans through way-points, made leg by leg: each leg begins with the state that the one before ended in.

A model that was trained with the first and the last step of its windows in place does not heed a single step that is
fixed in the middle: it plans past it, and the plan jumps there and back. But the way to a way-point and the way on
from it are plans such as it knows. So positions fixed in the middle divide a plan, and everything else that is asked
(guides, bounds) holds for each leg.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from diffplan.errors import PlanningError
from diffplan.planning.problem import Fixed, Problem
from diffplan.planning.sampling import Asked, sample_plans
from diffplan.planning.search import better_plan, search_horizons
from diffplan.planning.selection import VIOLATION_TOLERANCE
from diffplan.types import Plan

if TYPE_CHECKING:
    from diffplan.planning.planner import Planner


def has_legs(problem: Problem) -> bool:
    """Whether a plan is made in legs: there are way-points, and nothing else that concerns its middle.

    Raises:
        PlanningError: way-points without a time that are not positions, have no goal after them, or stand beside ones
            that have a time.
    """
    middle = _middle(problem)
    untimed = [fixed for fixed in middle if not fixed.is_timed]
    positions = tuple(problem.env.position_columns)
    if untimed:
        if problem.goals is None or any(fixed.columns != positions for fixed in untimed):
            raise PlanningError(
                "Fixed: expected a time (step, seconds or fraction) unless it is a position on the way to a goal; "
                "give one"
            )
        if len(untimed) < len(middle):
            raise PlanningError("Fixed: expected a time for all way-points or for none, got both; give the others one")
    whole = all(fixed.columns == positions for fixed in middle)
    everywhere = all(bounds.first_step == 1 and bounds.last_step is None for bounds in problem.bounds)
    if untimed and not everywhere:
        raise PlanningError(
            "Bounds: expected bounds for the whole plan beside way-points without a time; give them one"
        )
    return bool(middle) and problem.goals is not None and whole and everywhere


def plan_legs(
    planner: Planner,
    problem: Problem,
    horizons: tuple[int, ...],
    limits: np.ndarray,
    asked: Asked,
    steps: Sequence[int],
) -> list[Plan]:
    """Plans through way-points.

    Way-points without a time are passed as soon as the model can, each leg with its shortest consistent horizon.
    Where they have times, the shortest horizon of the whole is taken with which all legs are.

    Args:
        planner: the model and its settings.
        problem: what is asked; `has_legs`.
        horizons: of a leg, or of the whole where way-points have times; ascending.
        limits: speed errors up to which plans are consistent, float[batch].
        asked: what else is asked.
        steps: diffusion steps to denoise at.

    Raises:
        PlanningError: the times leave a leg too short for the network at every horizon.
    """
    middle = _middle(problem)
    if not middle[0].is_timed:
        return _chain(
            planner, problem, [np.asarray(fixed.values) for fixed in middle], None, horizons, limits, asked, steps
        )
    best: list[Plan | None] = [None] * len(problem)
    waiting = np.arange(len(problem))
    shortest = planner.shortest_horizon
    for horizon in horizons:
        part = problem.take(waiting)
        lengths = np.full(len(waiting), horizon)
        placed = sorted((part.steps_of(fixed, lengths)[0], number) for number, fixed in enumerate(_middle(part)))
        ends = [int(step) for step, _ in placed] + [horizon - 1]
        leg_lengths = np.diff([0, *ends]) + 1
        if (leg_lengths < shortest).any():
            continue
        targets = [np.asarray(_middle(part)[number].values) for _, number in placed]
        made = _chain(planner, part, targets, leg_lengths, horizons, limits[waiting], asked, steps)
        for i, plan in zip(waiting, made, strict=True):
            best[i] = better_plan(best[i], plan)
        done = [plan.consistent and plan.violation <= VIOLATION_TOLERANCE for plan in made]
        waiting = waiting[~np.array(done)]
        if not waiting.size:
            break
    if any(plan is None for plan in best):
        raise PlanningError(
            f"Fixed: expected at least {shortest - 1} steps between way-points, the shortest leg that this network can "
            "hold; move them apart"
        )
    return [plan for plan in best if plan is not None]


def _is_inside(fixed: Fixed) -> bool:
    """Whether something is fixed between the first and the last step."""
    ends = np.ndim(fixed.fraction) == 0 and fixed.fraction in (0, 1)
    return fixed.step not in (0, -1) and fixed.seconds != 0 and not ends


def _middle(problem: Problem) -> list[Fixed]:
    """What is fixed between the first and the last step."""
    return [fixed for fixed in problem.fixed if _is_inside(fixed)]


def _chain(
    planner: Planner,
    problem: Problem,
    targets: list[np.ndarray],
    leg_lengths: np.ndarray | None,
    horizons: tuple[int, ...],
    limits: np.ndarray,
    asked: Asked,
    steps: Sequence[int],
) -> list[Plan]:
    """One plan for each environment through the targets and on to the goals; legs of given lengths, or searched for."""
    assert problem.goals is not None  # has_legs
    ends = [fixed for fixed in problem.fixed if not _is_inside(fixed)]
    observations, legs = problem.observations, []
    for number, target in enumerate([*targets, problem.goals]):
        last = number == len(targets)
        fixed = tuple(f for f in ends if (f.step == -1 or f.fraction == 1) == last and (last or number == 0))
        leg = replace(
            problem,
            observations=observations,
            goals=target,
            fixed=fixed,
            # A way-point says where, and leaves free how the plan passes it.
            goal_columns=problem.goal_columns if last else tuple(problem.env.position_columns),
        )
        if leg_lengths is None:
            ladder, first, predicted = planner.choose_ladder(leg, horizons, limits)
            plans = search_horizons(planner, leg, ladder, first, limits, asked, steps, one_at_a_time=predicted)
        else:
            plans = sample_plans(planner, leg, np.full(len(leg), leg_lengths[number]), limits, asked, steps)
        legs.append(plans)
        observations = np.stack([plan.observations[-1] for plan in plans])
    return [_join(parts) for parts in zip(*legs, strict=True)]


def _join(legs: tuple[Plan, ...]) -> Plan:
    """One plan from legs whose ends meet."""

    def join(arrays: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([arrays[0], *(array[1:] for array in arrays[1:])])

    actions = [leg.actions for leg in legs]
    scores = [leg.guide_score for leg in legs]
    return replace(
        legs[0],
        observations=join([leg.observations for leg in legs]),
        # The action at a way-point is that of the leg which begins there.
        actions=None
        if any(a is None for a in actions)
        else np.concatenate([*(a[:-1] for a in actions[:-1] if a is not None), actions[-1]]),  # type: ignore[list-item]
        speed_error=max(leg.speed_error for leg in legs),
        consistent=all(leg.consistent for leg in legs),
        violation=max(leg.violation for leg in legs),
        guide_score=None
        if any(score is None for score in scores)
        else float(np.mean([s for s in scores if s is not None])),
        denoising=None,
    )

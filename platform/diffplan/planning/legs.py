"""Plans in legs: each leg starts from the state in which the previous one ended.

A model that was trained with the first and the last step of its windows fixed ignores a single fixed step in the
middle: the plan jumps to the way-point and back. But the way to a way-point and the way on from it are plans like those
in training. So a plan is divided at positions that are fixed in its middle; guides and bounds apply to each leg.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from diffplan.planning.constraints import Fixed
from diffplan.planning.model import PlanningModel
from diffplan.planning.problem import Problem
from diffplan.planning.sampling import Draw
from diffplan.types import Plan

Rescore = Callable[[Problem, list[Plan]], list[Plan]]
"""Scores whole plans whose legs were scored separately."""


def draw_in_legs(
    model: PlanningModel,
    draw: Draw,
    rescore: Rescore,
    problem: Problem,
    lengths: np.ndarray,
    max_speed_errors: np.ndarray,
    *,
    repair: bool = False,
) -> list[Plan]:
    """Plans of given horizons, in legs where way-points divide them.

    A plan is made in one piece if it has no way-points, if columns other than the positions are fixed in its middle, if
    bounds hold for only part of it, or if a leg would be shorter than the network allows.

    Args:
        model: the diffusion model.
        draw: draws plans in one piece.
        rescore: scores the joined plans.
        problem: what the plans must satisfy.
        lengths: horizon of each plan, int[batch].
        max_speed_errors: largest speed error of a consistent plan, float[batch].
        repair: as for `draw`.
    """
    plans: dict[int, Plan] = {}
    for way_points, rows in _group(problem, lengths, model.shortest_horizon).items():
        part = problem.take(rows)
        if way_points is None:
            drawn = draw(part, lengths[rows], max_speed_errors[rows], repair=repair)
        else:
            part.constrain(lengths[rows], model)  # refuses contradictions
            leg_lengths, targets = _divide(part, lengths[rows], list(way_points))

            def draw_leg(
                leg: Problem, number: int, leg_lengths: np.ndarray = leg_lengths, rows: np.ndarray = rows
            ) -> list[Plan]:
                return draw(leg, leg_lengths[number], max_speed_errors[rows], repair=repair)

            drawn = rescore(part, chain(part, targets, draw_leg))
        plans.update(zip(rows.tolist(), drawn, strict=True))
    return [plans[row] for row in range(len(problem))]


def chain(
    problem: Problem, targets: Sequence[np.ndarray], plan_leg: Callable[[Problem, int], list[Plan]]
) -> list[Plan]:
    """One plan for each environment, through way-points and on to the goals; not yet scored as a whole.

    Args:
        problem: what the plans must satisfy; it has goals.
        targets: the way-points in order, float32[batch, positions] each.
        plan_leg: makes the plans of a leg from its problem and number.
    """
    assert problem.goals is not None
    observations, legs = problem.observations, []
    for number, target in enumerate([*targets, problem.goals]):
        last = number == len(targets)
        leg = replace(
            problem,
            observations=observations,
            goals=target,
            # Values fixed at the ends of the whole plan belong to the first and the last leg.
            fixed=tuple(f for f in problem.fixed if _is_end(f) and (number == 0 if _is_start(f) else last)),
            # A way-point fixes the position only; the velocity there stays free.
            goal_columns=problem.goal_columns if last else problem.position_columns,
            end_columns=problem.end_columns if last else problem.position_columns,
        )
        plans = plan_leg(leg, number)
        legs.append(plans)
        observations = np.stack([plan.observations[-1] for plan in plans])
    return [_join(parts) for parts in zip(*legs, strict=True)]


def find_middle(problem: Problem) -> list[Fixed]:
    """The fixed values that lie, or may lie, between the first and the last step."""
    return [fixed for fixed in problem.fixed if not _is_end(fixed)]


def _is_start(fixed: Fixed) -> bool:
    return fixed.step == 0 or fixed.seconds == 0 or (fixed.fractions is None and fixed.fraction == 0)


def _is_end(fixed: Fixed) -> bool:
    """Whether something is fixed at the first or at the last step, whatever the horizon."""
    return _is_start(fixed) or fixed.step == -1 or (fixed.fractions is None and fixed.fraction == 1)


def _group(problem: Problem, lengths: np.ndarray, shortest: int) -> dict[tuple[int, ...] | None, np.ndarray]:
    """Group the rows of a batch by the order of their way-points; the key None holds the rows planned in one piece.

    Each row is judged by itself, so that a plan does not depend on the rest of its batch.
    """
    middle = find_middle(problem)
    positions = problem.position_columns
    whole = all(fixed.columns == positions for fixed in middle)
    if not middle or not whole or problem.goals is None or not all(bounds.is_everywhere for bounds in problem.bounds):
        return {None: np.arange(len(problem))}
    steps = np.sort([problem.steps_of(fixed, lengths) for fixed in middle], axis=0)  # int[way-points, batch]
    # Way-points at the first or the last step, and repeated ones, divide nothing.
    divides = (np.diff(steps, axis=0, prepend=0) > 0) & (steps < lengths - 1)
    groups: dict[tuple[int, ...] | None, list[int]] = {}
    for row, length in enumerate(lengths):
        way_points = tuple(np.flatnonzero(divides[:, row]).tolist())
        legs = np.diff([0, *steps[list(way_points), row], length - 1]) + 1
        groups.setdefault(way_points if way_points and (legs >= shortest).all() else None, []).append(row)
    return {way_points: np.array(rows) for way_points, rows in groups.items()}


def _divide(problem: Problem, lengths: np.ndarray, way_points: list[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Horizons of the legs int[legs, batch], and positions of way-points float32[batch, positions] each."""
    middle = find_middle(problem)
    steps = np.stack([problem.steps_of(fixed, lengths) for fixed in middle])
    order = np.argsort(steps, axis=0, kind="stable")[way_points]
    values = np.stack([np.asarray(fixed.values) for fixed in middle])
    ends = np.vstack([np.zeros_like(lengths), np.take_along_axis(steps, order, axis=0), lengths - 1])
    return np.diff(ends, axis=0) + 1, list(np.take_along_axis(values, order[:, :, None], axis=0))


def _join(legs: tuple[Plan, ...]) -> Plan:
    """One plan from legs whose ends meet."""

    def join(name: str, axis: int, keep_last: bool) -> np.ndarray | None:
        """Concatenate the arrays of all legs; where two legs meet, keep the entry of the former or of the latter."""
        arrays = [getattr(leg, name) for leg in legs]
        if any(array is None for array in arrays):
            return None
        inner = slice(1, None) if keep_last else slice(None, -1)
        cut = [array[(slice(None),) * axis + (inner,)] for array in arrays]
        cut[0 if keep_last else -1] = arrays[0 if keep_last else -1]
        return np.concatenate(cut, axis=axis)

    observations = join("observations", 0, keep_last=True)
    assert observations is not None
    return replace(
        legs[0],
        observations=observations,
        actions=join("actions", 0, keep_last=False),  # the action at a way-point is that of the leg that begins there
        speed_error=max((leg.speed_error for leg in legs if leg.speed_error is not None), default=None),
        consistent=all(leg.consistent for leg in legs),
        departure=max((leg.departure for leg in legs if leg.departure is not None), default=None),
        violation=0.0,
        guide_score=None,
        denoising=join("denoising", 1, keep_last=True),
    )

"""Which horizons are tried for a plan, and which is tried first: the one that a horizon model predicts, if any."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from diffplan.config import PlanningConfig
from diffplan.errors import PlanningError
from diffplan.planning.companions.horizon_model import HorizonModel
from diffplan.planning.problem import Problem


@dataclass(frozen=True)
class Ladder:
    """Horizons to try for each plan of a batch, from short to long.

    Attributes:
        horizons: the horizons, ascending, int[rungs].
        first: index of the horizon to begin with, int[batch].
        stop: index of the first horizon that is not tried any more, greater than `first`, int[batch].
        predicted: whether the first horizon was predicted; it probably suffices, so it is tried alone.
    """

    horizons: np.ndarray
    first: np.ndarray
    stop: np.ndarray
    predicted: bool

    def take(self, rows: np.ndarray) -> Ladder:
        """The same for some of the batch, in that order."""
        return replace(self, first=self.first[rows], stop=self.stop[rows])


def choose_ladder(
    settings: PlanningConfig,
    problem: Problem,
    horizons: tuple[int, ...],
    max_speed_errors: np.ndarray,
    *,
    horizon_model: HorizonModel | None,
    max_departure: float,
) -> Ladder:
    """The horizons to try for each plan, and which to begin with.

    Args:
        settings: how to plan.
        problem: what the plans must satisfy.
        horizons: the horizons, ascending.
        max_speed_errors: largest speed error of a consistent plan, float[batch].
        horizon_model: predicts where to begin; None to begin with the shortest.
        max_departure: largest departure of a consistent plan; 0 for no limit.
    """
    first = np.zeros(len(problem), dtype=int)
    # The horizon model was trained on plans from a start to a goal, without further constraints.
    asks_more = problem.goals is None or problem.fixed or problem.bounds
    predicted = (
        horizon_model is not None
        and not asks_more
        and problem.goal_columns == horizon_model.goal_columns  # a leg to a way-point may have other goal columns
        and settings.horizon.rule != "scan"
    )
    if predicted:
        assert horizon_model is not None
        assert problem.goals is not None
        first = horizon_model.first_consistent(
            problem.observations, problem.goals, horizons, max_speed_errors, max_departure
        )
    return Ladder(np.array(horizons), first, np.full(len(problem), len(horizons)), predicted)


def find_possible_horizons(problem: Problem, horizons: tuple[int, ...], shortest: int) -> tuple[int, ...]:
    """The horizons in which a problem can be planned, ascending.

    Args:
        problem: what the plans must satisfy.
        horizons: the horizons to choose from.
        shortest: the shortest plan that the network can hold.

    Raises:
        PlanningError: no horizons, one that is too short for the network, or none in which the problem can be planned.
    """
    if not horizons or min(horizons) < shortest:
        raise PlanningError(
            f"horizons: expected numbers of at least {shortest}, the shortest plan that this network can hold, "
            f"got {horizons}"
        )
    enough = tuple(sorted(h for h in set(horizons) if h > problem.last_timed_step))
    if not enough:
        raise PlanningError(
            f"Fixed: expected a time within the plan, got step {problem.last_timed_step} of a plan of horizon "
            f"{max(horizons)} at most; ask for a longer horizon"
        )
    # A horizon is also too short if two different values fall on one step, such as a way-point and the goal.
    contradictions = {h: problem.find_contradiction(h) for h in enough}
    if None not in contradictions.values():
        raise PlanningError(
            f"Fixed: step {contradictions[enough[-1]]} was fixed before to other values; remove one of the two"
        )
    return tuple(h for h in enough if contradictions[h] is None)

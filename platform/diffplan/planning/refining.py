"""Plans to an end that is physically possible and was planned before.

A draft says where things are to end, but only roughly, such as a block 2 cm over its support. A function of the task or
the user moves that end to the nearest possible one, and the plan is sampled with it fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from diffplan.errors import PlanningError
from diffplan.importing import load_object
from diffplan.planning.constraints import Fixed
from diffplan.planning.model import PlanningModel
from diffplan.planning.problem import Problem
from diffplan.types import Plan

Project = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(first observations, planned last ones), float[batch, observation_dim], -> the nearest possible last ones."""


def find_projection(path: str) -> Project:
    """The projection at an import path.

    Raises:
        ConfigError: nothing can be imported there.
        PlanningError: it is no function.
    """
    found: Any = load_object(path, "planning.selection.refine")
    if not callable(found):
        raise PlanningError(
            f"planning.selection.refine: expected a function of first and last observations at {path}, got "
            f"{type(found).__name__}"
        )
    project: Project = found  # pyright: ignore[reportAssignmentType]
    return project


def leaves_end(problem: Problem, lengths: np.ndarray, model: PlanningModel) -> bool:
    """Whether a problem fixes none of the model's known columns at the end of plans of these horizons, int[batch]."""
    known = set(model.known_columns)
    ends = (placed for placed in problem.place(lengths) if (placed.steps == lengths - 1).any())
    return not any(known & set(placed.columns) for placed in ends)


def fix_ends(problem: Problem, drafts: Sequence[Plan], model: PlanningModel, project: Project) -> Problem:
    """The same problem with the known columns fixed at the end, to the projected ends of drafts.

    Args:
        problem: what the plans must satisfy.
        drafts: a plan for each environment.
        model: the diffusion model; it has known columns.
        project: moves the ends to possible ones.

    Raises:
        PlanningError: the projection returns another shape, or values that are not finite.
    """
    last = np.stack([draft.observations[-1] for draft in drafts])
    ends = np.asarray(project(problem.observations.copy(), last.copy()), dtype=np.float32)
    if ends.shape != last.shape or not np.isfinite(ends).all():
        got = f"shape {list(ends.shape)}" if ends.shape != last.shape else "NaN or infinity"
        raise PlanningError(
            f"planning.selection.refine: expected finite observations of shape {list(last.shape)}, got {got}"
        )
    end = Fixed(ends[:, model.known_columns], columns=model.known_columns, step=-1)
    return replace(problem, fixed=(*problem.fixed, end))

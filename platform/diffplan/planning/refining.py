"""Plans to an end that is physically possible and was planned before.

A draft says where things are to end, but only roughly, such as a block 2 cm over its support. A function of the task or
the user moves that end to the nearest possible one, and the plan is sampled with it fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from diffplan.config import EnvConfig
from diffplan.errors import ConfigError, PlanningError, unknown_name
from diffplan.importing import is_import_path, load_object
from diffplan.planning.constraints import Fixed
from diffplan.planning.model import PlanningModel
from diffplan.planning.problem import Problem
from diffplan.tasks.contracts import Project
from diffplan.tasks.registry import task_of
from diffplan.types import Plan


def find_projection(name: str, env: EnvConfig) -> Project:
    """The projection of a name or an import path.

    Args:
        name: a projection of the task, or the import path of a function.
        env: the environment.

    Raises:
        ConfigError: no such projection (the message suggests the nearest), or nothing that can be imported there.
        PlanningError: it is no function.
    """
    known = task_of(env).projections
    if name in known:
        return known[name](env)
    if not is_import_path(name):
        raise ConfigError(unknown_name("planning.selection.refine", name, known))
    found: Any = load_object(name, "planning.selection.refine")
    if not callable(found):
        raise PlanningError(
            f"planning.selection.refine: expected a function of first and last observations at {name}, got "
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

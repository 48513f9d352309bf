"""Shapes of the JSON results of stages, checked before a status or a page is made of them.

Files of results may come from others or be damaged. Keys that are not named here are kept as they are.
"""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Ge, Le, Len
from typing_extensions import TypedDict  # comes with pydantic, which cannot read typing's below Python 3.12

from diffplan.config.codec import read_shape
from diffplan.errors import DataError

LARGEST = 1e15
"""Numbers of results are smaller than this, and neither NaN nor infinite."""
Number = Annotated[float, Ge(-LARGEST), Le(LARGEST)]
Count = Annotated[int, Ge(0), Le(LARGEST)]
Pair = Annotated[list[Number], Len(2, 2)]
Scalar = bool | Annotated[int, Ge(-LARGEST), Le(LARGEST)] | Number | str | None
"""A value of a setting."""


class SummarySettings(TypedDict, total=False):
    """The config in a summary."""

    env: dict[str, Any] | None
    planning: dict[str, Any] | None


class Summary(TypedDict, total=False):
    """`summary.json` of an evaluation."""

    env_id: str
    protocol: str
    episodes: Count
    references: Pair | None
    score_mean: Number
    score_ci95: Pair | None
    success_rate: Number | None
    success_ci95: Pair | None
    config: SummarySettings


class UnitsDescription(TypedDict, total=False):
    """`evaluation.json` of an evaluation that has not ended."""

    episodes: Count | None
    episodes_per_unit: Count | None


class SearchSize(TypedDict, total=False):
    """The `search` in the best settings."""

    objective: str | None


class Best(TypedDict, total=False):
    """`best.json` of a search."""

    settings: dict[str, Any]
    objective: Number
    episodes: Number
    protocols: list[str]
    wall_seconds: Number | None
    params: dict[str, Scalar]
    search: SearchSize
    num_trials: Count | None


class Trial(TypedDict, total=False):
    """A trial in `trials.json`."""

    trial: int
    params: dict[str, Scalar]
    error: str | None
    objective: Number | None
    score_mean: Number | None
    success_rate: Number | None
    plan_seconds: Number | None
    episodes: Number | None
    is_full: bool


class Point(TypedDict, total=False):
    """A point of a front."""

    trial: int
    settings_file: str
    score_mean: Number | None
    success_rate: Number | None
    plan_seconds: Number | None


class Pareto(TypedDict, total=False):
    """`pareto.json` of a search."""

    objectives: Annotated[list[str], Len(2, 2)]
    points: list[Point]
    best: int


Importances = dict[str, dict[str, Number]]
"""`importances.json` of a search."""


class Stage(TypedDict):
    """A stage in the record of a pipeline."""

    name: str
    seconds: Number


class Pipeline(TypedDict, total=False):
    """`pipeline.json`."""

    preset: str | None
    command: str | None
    stages: list[Stage] | None


class CalibratedPlans(TypedDict, total=False):
    """What calibration measured on plans."""

    num_plans: Count | None


class Calibration(TypedDict, total=False):
    """`calibration.json` of a checkpoint."""

    plans: CalibratedPlans | None


def check(shape: Any, values: Any, where: str) -> Any:
    """The same values; raises `DataError` if they have another shape.

    Args:
        shape: one of this module.
        values: JSON values.
        where: their file, for messages.
    """
    try:
        read_shape(shape, values)
    except ValueError as error:
        raise DataError(f"{where}: expected results of this stage, got others ({error}); run its stage again") from None
    return values

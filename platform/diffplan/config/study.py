"""The fields that a search varies, and its objectives."""

from __future__ import annotations

import math
from typing import Literal

from diffplan.config.codec import config_dataclass, require, require_between

MAX_VALUES = 1_000
"""Fields of a study, and values of one of them."""

Objective = Literal["objective", "score_mean", "success_rate", "plan_seconds"]
Kind = Literal["planner", "training"]


@config_dataclass
class Between:
    """Any number in a range; the range is extended to include the experiment's own value."""

    low: float
    """Least value."""
    high: float
    """Greatest value."""
    log: bool = False
    """Whether to sample uniformly in the logarithm."""
    also: tuple[str, ...] = ()
    """Other fields that take the same value."""

    def __post_init__(self) -> None:
        require(math.isfinite(self.low) and math.isfinite(self.high), "low, high", "numbers", (self.low, self.high))
        require(self.low < self.high, "low", f"less than high ({self.high})", self.low)
        require(not self.log or self.low > 0, "low", "a positive number where log is set", self.low)


@config_dataclass
class Among:
    """One of a list of values, or the experiment's own value."""

    among: tuple[bool | int | float | str, ...]
    """The values; those that are invalid for the experiment are left out."""
    also: tuple[str, ...] = ()
    """Other fields that take the same value."""

    def __post_init__(self) -> None:
        require(len(self.among) >= 1, "among", "at least one value", self.among)
        require(len(self.among) <= MAX_VALUES, "among", f"at most {MAX_VALUES} values", len(self.among))


@config_dataclass
class Scaled:
    """Multiples near given shares of the experiment's own value, so that one study suits experiments of all sizes."""

    shares: tuple[float, ...]
    """The shares; 1 is the experiment's own value."""
    multiple: int = 1
    """Values are multiples of this."""
    also: tuple[str, ...] = ()
    """Other fields that take the same value."""

    def __post_init__(self) -> None:
        valid = len(self.shares) >= 1 and all(0 < share < math.inf for share in self.shares)
        require(valid, "shares", "positive numbers", self.shares)
        require(len(self.shares) <= MAX_VALUES, "shares", f"at most {MAX_VALUES} numbers", len(self.shares))
        require_between(self, "", multiple=(1, 1_000_000))


@config_dataclass
class Study:
    """A search: the varied fields, the objectives and the size."""

    description: str = ""
    """Its purpose, in one sentence."""
    kind: Kind = "planner"
    """`planner` varies the planner settings of a finished model; `training` trains a model in each trial."""
    vary: dict[str, Between | Among | Scaled]
    """Fields of the config by dotted name, and their values."""
    objectives: tuple[Objective, ...] = ("objective",)
    """Metrics to optimise; `objective` is the metric that `search.objective` or the task names. One: unpromising trials
    are stopped early. Two: a Pareto front of full trials."""
    cost_weight: float = 0.0
    """Cost of one second of planning in an episode, in points of the score: `best.json` has the trial with the greatest
    objective minus this cost."""
    num_trials: int | None = None
    """Number of trials; that of the experiment's search if not set."""
    training_share: float = 0.25
    """Training steps of a trial, as a share of those of the experiment; `training` studies only."""

    def __post_init__(self) -> None:
        require(len(self.vary) >= 1, "vary", "at least one field", self.vary)
        require(len(self.fields) <= MAX_VALUES, "vary", f"at most {MAX_VALUES} fields", len(self.fields))
        require(1 <= len(self.objectives) <= 2, "objectives", "one or two", self.objectives)
        require(len(set(self.objectives)) == len(self.objectives), "objectives", "two different ones", self.objectives)
        require(0 <= self.cost_weight < math.inf, "cost_weight", "a number >= 0", self.cost_weight)
        require_between(self, "", num_trials=(1, 1_000_000))
        require(0 < self.training_share <= 1, "training_share", "a number in (0, 1]", self.training_share)
        if self.kind == "planner":
            strange = [name for name in self.fields if not name.startswith("planning.")]
            require(not strange, "vary", "only fields of planning in a study of kind planner", ", ".join(strange))

    @property
    def fields(self) -> list[str]:
        """Every field that a trial sets."""
        return [field for name, values in self.vary.items() for field in (name, *values.also)]

    @property
    def is_pareto(self) -> bool:
        """Whether it has two objectives."""
        return len(self.objectives) == 2

"""What a search varies and what it is after."""

from __future__ import annotations

from typing import Literal

from diffplan.config.codec import config_dataclass, require

Objective = Literal["objective", "score_mean", "success_rate", "plan_seconds"]
Kind = Literal["planner", "training"]


@config_dataclass
class Between:
    """Any number of a range; the range is widened to the experiment's own value."""

    low: float
    """Least value."""
    high: float
    """Greatest value."""
    log: bool = False
    """Whether to draw evenly in the logarithm."""
    also: tuple[str, ...] = ()
    """Other fields that take the same value."""

    def __post_init__(self) -> None:
        require(self.low < self.high, "low", f"less than high ({self.high})", self.low)
        require(not self.log or self.low > 0, "low", "a positive number where log is set", self.low)


@config_dataclass
class Among:
    """One of some values, and the experiment's own."""

    among: tuple[bool | int | float | str, ...]
    """The values; those that the experiment could not have are left out."""
    also: tuple[str, ...] = ()
    """Other fields that take the same value."""

    def __post_init__(self) -> None:
        require(len(self.among) >= 1, "among", "at least one value", self.among)


@config_dataclass
class Scaled:
    """Whole multiples near some shares of the experiment's own value: one study suits experiments of all sizes."""

    shares: tuple[float, ...]
    """The shares; 1 is the experiment's own value."""
    multiple: int = 1
    """Values are multiples of this."""
    also: tuple[str, ...] = ()
    """Other fields that take the same value."""

    def __post_init__(self) -> None:
        require(len(self.shares) >= 1 and min(self.shares) > 0, "shares", "positive numbers", self.shares)
        require(self.multiple >= 1, "multiple", "at least 1", self.multiple)


@config_dataclass
class Study:
    """A search: what it varies, what for, and how large it is."""

    description: str = ""
    """What it is for, in a sentence."""
    kind: Kind = "planner"
    """`planner` varies how a finished model plans; `training` trains a model for each trial."""
    vary: dict[str, Between | Among | Scaled]
    """Fields of the config by dotted name, and their values."""
    objectives: tuple[Objective, ...] = ("objective",)
    """What is sought; `objective` is the metric that `search.objective` or the task names. One: trials that are not
    promising are stopped early. Two: a Pareto front, of full trials."""
    cost_weight: float = 0.0
    """Points of the score that a second of planning in an episode is worth: `best.json` holds the greatest objective
    less this much."""
    num_trials: int | None = None
    """Settings to try; those of the experiment's search if not set."""
    training_share: float = 0.25
    """Share of the experiment's training steps that a trial takes; of `training` studies."""

    def __post_init__(self) -> None:
        require(len(self.vary) >= 1, "vary", "at least one field", self.vary)
        require(1 <= len(self.objectives) <= 2, "objectives", "one or two", self.objectives)
        require(len(set(self.objectives)) == len(self.objectives), "objectives", "two different ones", self.objectives)
        require(self.cost_weight >= 0, "cost_weight", "a number >= 0", self.cost_weight)
        require(self.num_trials is None or self.num_trials >= 1, "num_trials", "at least 1", self.num_trials)
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

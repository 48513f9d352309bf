"""Named studies: what a search varies, and what it is after. A study of one's own is a JSON file of the same fields."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from diffplan.config import SearchConfig, config_from_json
from diffplan.config.codec import config_dataclass, require
from diffplan.errors import ConfigError
from diffplan.suggestion import unknown_name

Metric = Literal["objective", "score_mean", "success_rate", "plan_seconds"]
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
    objectives: tuple[Metric, ...] = ("objective",)
    """What is sought. One: trials that are not promising are stopped early. Two: a Pareto front, of full trials."""
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


PLAN_COST = 50.0
"""What a second of planning is worth to the study `pareto`, in points of the score. Were the ball of Maze2D-UMaze to
wait for its plans, a second would be 100 steps, at 0.72 points a step that it could have been at its goal."""

# Not the horizons: with a horizon model the finest choice costs nothing, and a search of a few dozen trials takes a
# coarse one by chance, which costs where the goal is near.
_SEARCHED: dict[str, Between | Among | Scaled] = {
    "planning.guidance_scale": Between(low=0.0, high=10.0),
    "planning.max_speed_error": Between(low=4.0, high=12.0),
    "planning.max_departure": Between(low=0.1, high=0.4),
    "planning.num_sampling_steps": Among(among=(4, 8, 16)),
    "planning.num_candidates": Among(among=(1, 2, 4)),
}

STUDIES: dict[str, Study] = {
    "planner": Study(
        description="how plans are made: how bold, denoising steps, candidates, guide",
        vary=_SEARCHED,
    ),
    "controller": Study(
        description="how plans are followed: gains of the controller, and when to plan again",
        vary={
            "planning.position_gain": Between(low=3.0, high=30.0, log=True),
            "planning.velocity_gain": Between(low=0.3, high=6.0, log=True),
            "planning.max_deviation": Between(low=0.1, high=1.5),
            "planning.max_lag": Among(among=(0.0, 0.3, 0.5, 0.7, 0.9)),
            "planning.interpolation": Among(among=("linear", "hermite")),
            "planning.replan_interval": Among(among=(0, 20, 50, 100)),
        },
        num_trials=24,
    ),
    "thorough": Study(
        description="the best score, whatever the time: how plans are made and how they are followed",
        vary={
            **_SEARCHED,
            "planning.num_sampling_steps": Among(among=(4, 8)),
            "planning.num_candidates": Among(among=(1, 2)),
            "planning.pace": Between(low=1.0, high=2.5),
            "planning.max_deviation": Between(low=0.8, high=1.6),
            "planning.max_lag": Among(among=(0.0, 0.5, 0.7, 0.9, 1.1)),
            "planning.replan_interval": Among(among=(0, 50)),
            "planning.position_gain": Between(low=3.0, high=30.0, log=True),
            "planning.velocity_gain": Between(low=0.3, high=6.0, log=True),
        },
        num_trials=32,
    ),
    "pareto": Study(
        description="the score against the time to plan: what each millisecond buys",
        vary={
            **_SEARCHED,
            "planning.horizon_multiple": Among(among=(1, 2, 4)),
            "planning.num_sampling_steps": Among(among=(1, 2, 4, 8, 16)),
            "planning.horizon_rule": Among(among=("auto", "scan")),
            "planning.replan_interval": Among(among=(0, 20, 50, 100)),
            "planning.position_gain": Between(low=3.0, high=30.0, log=True),
            "planning.velocity_gain": Between(low=0.3, high=6.0, log=True),
        },
        objectives=("score_mean", "plan_seconds"),
        cost_weight=PLAN_COST,
        num_trials=48,
    ),
    "training": Study(
        description="what is trained: horizon, stride, width, what the network predicts",
        kind="training",
        vary={
            "windows.max_horizon": Scaled(shares=(0.75, 1.0, 1.25), also=("planning.max_horizon",)),
            "windows.stride": Among(among=(3, 5, 8, 10)),
            "network.dim": Scaled(shares=(0.5, 1.0, 1.5), multiple=8),
            "diffusion.prediction": Among(among=("clean", "noise", "velocity")),
            "planning.max_speed_error": Between(low=4.0, high=12.0),
        },
        num_trials=24,
    ),
    "optimizer": Study(
        description="how it is trained: learning rate, batch, average, weights of the loss",
        kind="training",
        vary={
            "training.learning_rate": Between(low=2e-4, high=5e-3, log=True),
            "training.batch_size": Among(among=(32, 64, 128)),
            "training.ema_decay": Among(among=(0.99, 0.995, 0.999)),
            "training.weight_decay": Among(among=(0.0, 1e-4, 1e-2)),
            "diffusion.snr_weighting": Among(among=("none", "snr", "min_snr")),
        },
        num_trials=24,
    ),
}
"""The ready studies."""

DEFAULT_STUDY = "planner"


def find_study(name: str | Path) -> Study:
    """A ready study by its name, or one of one's own from a JSON file.

    Raises:
        ConfigError: no study of that name, suggesting the nearest; no such file, or something else in it.
    """
    if str(name) in STUDIES:
        return STUDIES[str(name)]
    if not str(name).endswith(".json"):
        raise ConfigError(unknown_name("study", str(name), STUDIES))
    try:
        text = Path(name).read_text()
    except OSError as error:
        raise ConfigError(f"{name}: expected a study in a JSON file, got none there ({error.strerror})") from None
    try:
        return config_from_json(Study, text)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def size_search(study: Study, search: SearchConfig) -> SearchConfig:
    """The size of a study on an experiment with a given search."""
    return search if study.num_trials is None else dataclasses.replace(search, num_trials=study.num_trials)

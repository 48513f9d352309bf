"""The environment of an experiment, and how data are collected in it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from diffplan.config.codec import config_dataclass, require, require_between

MAX_SEED = 2**63 - 1
MAX_COLUMNS = 10_000_000
"""Numbers in an observation or an action; far above any image, and below what would exhaust a machine."""


@config_dataclass
class EnvConfig:
    """The environment, and the meaning of its observation columns for a planner, as far as it is known."""

    env_id: str
    """Gymnasium id, or `module:Id` if importing the module registers it."""
    env_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    """Arguments of `gymnasium.make`; JSON values only."""
    task: str | None = None
    """Task of the environment, a name or an import path; if not given, the task that claims its id."""
    position_columns: tuple[int, ...] = ()
    """Observation columns that hold a position."""
    velocity_columns: tuple[int, ...] = ()
    """Observation columns that hold the time derivative of the positions, in the same order; none if not known."""
    goal_columns: tuple[int, ...] = ()
    """Observation columns that a goal of an episode gives values for; none if episodes have no goal."""
    step_seconds: float | None = None
    """Simulated seconds of one environment step; None if not known."""

    def __post_init__(self) -> None:
        require(
            len(self.velocity_columns) in (0, len(self.position_columns)),
            "env.velocity_columns",
            f"as many columns as env.position_columns ({len(self.position_columns)}), or none",
            self.velocity_columns,
        )
        for name in ("position_columns", "velocity_columns", "goal_columns"):
            columns = getattr(self, name)
            require(
                len(set(columns)) == len(columns) and all(0 <= column < MAX_COLUMNS for column in columns),
                f"env.{name}",
                "distinct columns, counted from 0",
                columns,
            )
        require(
            self.step_seconds is None or 0 < self.step_seconds < math.inf,
            "env.step_seconds",
            "a positive number",
            self.step_seconds,
        )
        require(
            not self.velocity_columns or self.step_seconds is not None,
            "env.step_seconds",
            "a number where env.velocity_columns are given",
            self.step_seconds,
        )


@config_dataclass
class CollectionConfig:
    """The collection of a dataset. Its content is a pure function of these settings and the environment."""

    behavior: str = "random"
    """`random`, a behavior of the task, an import path such as `my_module:drive`, or `policy:FILE`, such as
    `policy:sac.zip?noise=0.1`; or a mixture with weights, such as `random:0.2,my_module:drive:0.8`."""
    switch_steps: int | None = None
    """Mean steps after which another component of a mixture takes over (drawn by weight, at random times); None: each
    episode keeps its component."""
    action_noise: float = 0.5
    """Standard deviation of the noise that noisy behaviors add to actions, in units of the action."""
    num_steps: int = 1_000_000
    """Environment steps to collect; rounded up to whole units. Episodes that end early are followed by more units. It
    can be raised later, with --resume."""
    episode_steps: int | None = None
    """Steps in an episode; None for the limit that the environment is registered with."""
    episodes_per_unit: int = 64
    """Episodes in one unit of collection, which becomes one shard."""
    seed: int = 0
    """Seed of every random number in the dataset."""

    def __post_init__(self) -> None:
        require_between(
            self,
            "collection.",
            num_steps=(1, 10**12),
            episodes_per_unit=(1, 10_000_000),
            episode_steps=(1, 1_000_000_000),
            switch_steps=(1, 1_000_000_000),
            seed=(0, MAX_SEED),
        )
        require(0 <= self.action_noise < math.inf, "collection.action_noise", "a number >= 0", self.action_noise)

    @property
    def max_episode_steps(self) -> int:
        """Steps in an episode; raises `ConfigError` if the limit of the environment has not been read yet."""
        require(self.episode_steps is not None, "collection.episode_steps", "a number", self.episode_steps)
        assert self.episode_steps is not None
        return self.episode_steps

    @property
    def max_unit_steps(self) -> int:
        """Steps of a unit whose episodes all have full length."""
        return self.max_episode_steps * self.episodes_per_unit

    @property
    def num_units(self) -> int:
        """Units of collection, if all episodes have full length; there are more if some end early."""
        return -(-self.num_steps // self.max_unit_steps)

    def episodes_of_unit(self, unit: int) -> range:
        """Indices of the episodes of a unit; they do not depend on `num_steps`, so a dataset can grow."""
        return range(unit * self.episodes_per_unit, (unit + 1) * self.episodes_per_unit)

"""The windows of episodes that models are trained on."""

from __future__ import annotations

from typing import Literal

from diffplan.config.codec import config_dataclass, require, require_between
from diffplan.config.planning import MAX_HORIZON


@config_dataclass
class WindowConfig:
    """Training examples: windows of episodes."""

    min_horizon: int = 8
    """Shortest window in transitions; each training batch draws its horizon between this and `max_horizon`."""
    max_horizon: int = 36
    """Longest window in transitions."""
    horizon_multiple: int = 4
    """Drawn horizons are multiples of this, counted from `min_horizon`."""
    stride: int = 5
    """Environment steps between two steps of a window."""
    start_every: int = 1
    """Windows begin at the first step of an episode and at every so many steps after it: 8 where an episode is made of
    parts of 8 steps that plans should not cut."""
    offsets: tuple[int, ...] | None = None
    """Environment steps from the first step of a window to each of the others, ascending, in place of `stride`: with
    `1 8 32` windows have 4 steps, of which the first two are neighbours. Then both horizons are this number of
    steps."""
    deltas: bool = False
    """Observations after the first step of a window are learned as changes from the first one, normalised for each
    step; for windows of one horizon, normalised by `gaussian`."""
    relative_columns: tuple[int, ...] = ()
    """Observation columns that count from the first step of a window, such as how far a robot has run: the model never
    sees where it is, and plans give such columns as changes from the present state. Needs `deltas`."""
    known_columns: tuple[int, ...] = ()
    """Observation columns that are known at the last step of some windows, as where constraints fix them when a plan is
    made; the network is told whether they are. Needs `network.kind` mlp."""
    known_share: float = 0.5
    """Share of the windows in which they are known."""
    symmetries: tuple[str, ...] = ()
    """Symmetries of the environment, of its task or by import path: every training window is changed by each of them at
    random, such as turned about an axis. Needs a normalization other than `quantile`."""
    columns: Literal["observations", "actions_observations"] = "observations"
    """Columns of a transition: the observation only, or the action and then the observation."""
    goal_columns: tuple[int, ...] | None = None
    """Observation columns that a goal fixes at the last step; those of the environment (`env.goal_columns`) if not
    given. Columns for which goals have no value, such as velocities, are fixed to 0."""
    normalization: Literal["limits", "gaussian", "quantile"] = "limits"
    """`limits` maps the range of each column to [-1, 1]; `gaussian` normalises to mean 0, standard deviation 1;
    `quantile` maps to [-1, 1] by the distribution function of the column, so that values are uniform."""

    padding: Literal["skip", "error", "short", "end", "terminal"] = "skip"
    """Episodes that are too short for a window: `skip` leaves them out, `error` refuses them, `short` gives each one
    padded window, `end` begins a window at every step, padded past the end; such padded steps have no loss. With
    `terminal` the last observation of an episode counts, terminated episodes go on with it and a flag says at each step
    whether the episode goes on, both learned; windows that a time limit cuts are left out."""
    storage: Literal["auto", "memory", "mapped", "blocks"] = "auto"
    """Source of the windows: a normalised copy in memory, the mapped shards, or a shuffled pool of blocks for data
    larger than memory or on an object store; `auto` takes the first that fits."""
    task_weights: tuple[float, ...] | None = None
    """Share of each task of a merged dataset; if not set, the shares given when it was merged."""
    best_share: float = 1.0
    """Windows come only from the episodes with the highest returns, which hold at least this share of the steps."""

    def __post_init__(self) -> None:
        require_between(
            self,
            "windows.",
            min_horizon=(2, MAX_HORIZON),
            max_horizon=(2, MAX_HORIZON),
            horizon_multiple=(1, MAX_HORIZON),
            stride=(1, 1_000_000),
            start_every=(1, 1_000_000),
        )
        require(
            self.max_horizon >= self.min_horizon,
            "windows.max_horizon",
            f"at least windows.min_horizon ({self.min_horizon})",
            self.max_horizon,
        )
        require(
            min(self.known_columns, default=0) >= 0
            and len(set(self.known_columns)) == len(self.known_columns)
            and not set(self.known_columns) & set(self.goal_columns or ()),
            "windows.known_columns",
            "distinct columns, none of them of a goal",
            self.known_columns,
        )
        require(0 <= self.known_share <= 1, "windows.known_share", "a number in [0, 1]", self.known_share)
        require(0 < self.best_share <= 1, "windows.best_share", "a number in (0, 1]", self.best_share)
        if self.offsets is not None:
            require(
                len(self.offsets) > 0
                and list(self.offsets) == sorted(set(self.offsets))
                and self.offsets[0] >= 1
                and self.offsets[-1] <= 1_000_000,
                "windows.offsets",
                "ascending numbers of at least 1",
                self.offsets,
            )
            steps = len(self.offsets) + 1
            require(
                self.min_horizon == self.max_horizon == steps,
                "windows.min_horizon and max_horizon",
                f"{steps}, the first step and those of windows.offsets",
                (self.min_horizon, self.max_horizon),
            )
        require(
            min(self.relative_columns, default=0) >= 0
            and len(set(self.relative_columns)) == len(self.relative_columns)
            and not set(self.relative_columns) & set(self.goal_columns or ()),
            "windows.relative_columns",
            "distinct columns, none of them of a goal",
            self.relative_columns,
        )
        require(
            not self.relative_columns or self.normalization != "quantile",
            "windows.normalization",
            "limits or gaussian where windows.relative_columns are set",
            self.normalization,
        )
        require(
            self.padding != "terminal" or self.normalization != "quantile",
            "windows.normalization",
            "limits or gaussian where windows.padding is terminal",
            self.normalization,
        )
        require(
            not self.symmetries or self.normalization != "quantile",
            "windows.normalization",
            "limits or gaussian where windows.symmetries are set",
            self.normalization,
        )
        if self.deltas:
            require(
                self.min_horizon == self.max_horizon,
                "windows.max_horizon",
                f"windows.min_horizon ({self.min_horizon}) where windows.deltas is set",
                self.max_horizon,
            )
            require(
                self.normalization == "gaussian",
                "windows.normalization",
                "gaussian where windows.deltas is set",
                self.normalization,
            )

    @property
    def has_flag(self) -> bool:
        """Whether a step of a window ends with a flag that tells whether the episode goes on."""
        return self.padding == "terminal"

    @property
    def horizons(self) -> tuple[int, ...]:
        """Horizons that training draws from, ascending."""
        return tuple(range(self.min_horizon, self.max_horizon + 1, self.horizon_multiple))

"""What comes with a batch of windows: masks, goals, returns and tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from diffplan.errors import ConfigError


@dataclass(frozen=True)
class Conditions:
    """What a reader gives beside the windows.

    Attributes:
        goal: where goals come from. `window_end`: the last observation of the window. `episode_end`: the observation
            after the last action of the episode. `future`: an observation of the same episode after the window's
            first, each equally likely (hindsight, as in Andrychowicz et al. 2017).
        returns_to_go: whether to give the return from the window's first step to the end of its episode.
        discount: of returns, in (0, 1].
        termination_penalty: taken from the last reward of episodes that terminated; 100 in Janner et al.'s value data.
    """

    goal: Literal["none", "window_end", "episode_end", "future"] = "none"
    returns_to_go: bool = False
    discount: float = 1.0
    termination_penalty: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.discount <= 1:
            raise ConfigError(f"discount: expected a number in (0, 1], got {self.discount}")
        if self.termination_penalty < 0:
            raise ConfigError(f"termination_penalty: expected a number >= 0, got {self.termination_penalty}")


@dataclass(frozen=True)
class WindowBatch:
    """Windows in model space, on the reader's device.

    Attributes:
        x: the windows, float32[windows, horizon, transition_dim].
        mask: which steps are real, bool[windows, horizon]; None where all are.
        goal: goal observations in model space, float32[windows, observation_dim]; None unless asked for.
        returns_to_go: in units of reward, float32[windows]; None unless asked for.
        task: number of each window's task, int64[windows]; None where the dataset has no tasks.
    """

    x: Tensor
    mask: Tensor | None = None
    goal: Tensor | None = None
    returns_to_go: Tensor | None = None
    task: Tensor | None = None

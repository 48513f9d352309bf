"""Conditions of a batch of windows: masks, goals, returns and tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from diffplan.errors import ConfigError


@dataclass(frozen=True)
class Conditions:
    """The conditions that a reader returns with the windows.

    Attributes:
        goal: source of goals. `window_end`: the last observation of the window. `episode_end`: the observation
            after the last action of the episode. `future`: an observation of the same episode after the window's
            first, each equally likely (hindsight, as in Andrychowicz et al. 2017).
        returns_to_go: whether to return the return-to-go of the window's first step.
        discount: discount of returns, in (0, 1].
        termination_penalty: subtracted from the last reward of terminated episodes; 100 in Janner et al. 2022.
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
        mask: steps that are not padding, bool[windows, horizon]; None if there is no padding.
        goal: goal observations in model space, float32[windows, observation_dim]; None unless requested.
        returns_to_go: returns-to-go in units of reward, float32[windows]; None unless requested.
        task: number of each window's task, int64[windows]; None if the dataset has no tasks.
        goes_on: steps at which the episode has not terminated, bool[windows, horizon]; None unless windows go on with
            the last observation of terminated episodes.
    """

    x: Tensor
    mask: Tensor | None = None
    goal: Tensor | None = None
    returns_to_go: Tensor | None = None
    task: Tensor | None = None
    goes_on: Tensor | None = None

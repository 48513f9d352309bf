"""The few types that parts of diffplan exchange. Arrays are in environment units."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Episode:
    """One episode of T steps.

    Attributes:
        episode_index: number of the episode in its dataset.
        seed: seed that the environment was reset with, None where that is not known.
        behavior: name of the behavior that acted.
        observations: float[T + 1, observation_dim]; the last one follows the last action.
        actions: float[T, action_dim].
        rewards: float[T].
        terminated: whether the environment ended the episode.
        truncated: whether a limit ended the episode.
        columns: further named arrays of T rows, such as the goal that the behavior pursued; of T + 1 where the dataset
            keeps a value after the last action.
        task: number of its task in a merged dataset.
        options: options that the environment was reset with, None where that is not known.
    """

    episode_index: int
    seed: int | None
    behavior: str
    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool
    truncated: bool
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    task: int = 0
    options: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.actions)


@dataclass(frozen=True, repr=False)
class Plan:
    """A plan for one environment.

    Attributes:
        observations: float32[horizon, observation_dim]; the first is the observation planned from.
        actions: float32[horizon, action_dim], or None where plans hold observations only.
        stride: environment steps between two plan steps.
        speed_error: largest |Δposition/Δtime - mean velocity| in the plan, units per second; how consistent it is.
            None where positions or velocities are not known.
        consistent: whether `speed_error` and `departure` are within the planner's limits, as far as it has any.
        departure: largest distance of its path from the support of the data, in units of the positions; None if there
            is no limit on it.
        violation: by how much it violates the limits of the guides, in their units; 0 if it keeps them all.
        guide_score: score of the guides; None without guides.
        denoising: float32[sampling.num_steps, horizon, observation_dim], the plan after each denoising step, if
            requested.
        offsets: environment steps from the first plan step to each of the others, where they are not evenly spaced;
            `stride` is then 1.
        flags: whether the episode goes on at each step, float32[horizon] near 1 for yes and -1 for no; None where the
            model knows nothing of ends.
        action: the action to take at the first step, float32[action_dim], from an action head; None without one.
    """

    observations: np.ndarray
    actions: np.ndarray | None
    stride: int
    speed_error: float | None
    consistent: bool
    departure: float | None = None
    violation: float = 0.0
    guide_score: float | None = None
    denoising: np.ndarray | None = None
    offsets: tuple[int, ...] | None = None
    flags: np.ndarray | None = None
    action: np.ndarray | None = None

    @property
    def env_steps(self) -> np.ndarray:
        """Environment steps from the first plan step to each plan step, int[horizon]."""
        if self.offsets is None:
            return np.arange(self.horizon) * self.stride
        return np.array([0, *self.offsets])

    @property
    def horizon(self) -> int:
        """Transitions in the plan."""
        return len(self.observations)

    def __repr__(self) -> str:
        parts = [f"{self.horizon} transitions, {self.stride} environment step{'s' if self.stride > 1 else ''} apart"]
        if self.offsets is not None:
            parts = [f"{self.horizon} transitions, at environment steps {', '.join(map(str, self.env_steps))}"]
        error = "" if self.speed_error is None else f" (speed error {self.speed_error:.3g})"
        parts.append("consistent" if self.consistent else f"not consistent{error}")
        if self.violation:
            parts.append(f"violation {self.violation:.3g}")
        if self.guide_score is not None:
            parts.append(f"guide score {self.guide_score:.4g}")
        return f"<plan of {'; '.join(parts)}>"

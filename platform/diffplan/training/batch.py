"""One batch of training."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from diffplan.layout import Layout


@dataclass(frozen=True)
class TrainingBatch:
    """One forward pass, in model space.

    Attributes:
        x_clean: float32[rows, horizon, transition_dim].
        noise: standard normal, the same shape.
        diffusion_step: int64[rows].
        mask: which steps are not padding, bool[rows, horizon]; None if there is no padding.
        condition: condition of each row, float32[rows], NaN where it is withheld: its task, or the return from its
            first step to the end of its episode, normalised by `TrainingBatches.return_range`. None without one.
        target: value of each row, its return normalised by `TrainingBatches.return_range`, float32[rows]; None if no
            value function is trained.
        goal: later observations of the episodes, float32[rows, observation_dim]; None if the objective has no goals.
        weight: weight of the loss of each row, float32[rows]; None if all are equal.
        known: rows in which the columns `windows.known_columns` are known at the last step, bool[rows]; None if there
            are no such columns.
    """

    x_clean: Tensor
    noise: Tensor
    diffusion_step: Tensor
    mask: Tensor | None = None
    condition: Tensor | None = None
    target: Tensor | None = None
    goal: Tensor | None = None
    weight: Tensor | None = None
    known: Tensor | None = None

    def to(self, device: torch.device) -> TrainingBatch:
        """The batch on a device."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        moved: dict[str, Any] = {name: None if value is None else value.to(device) for name, value in values.items()}
        return TrainingBatch(**moved)


class SamplesWindows(Protocol):
    """Access of an objective to the data before the first step; see `TrainingBatches`."""

    layout: Layout
    """Columns of a transition."""

    def sample(self, num_windows: int, horizon: int) -> Tensor:
        """Windows in model space, float32[num_windows, horizon, transition_dim]."""
        ...

"""A small network that predicts how consistent a plan of each horizon would be, and how close to the data.

Most of the time of a plan goes into trying horizons until one is consistent. Which one is depends mostly smoothly on
start and goal, so a network learns it from some ten thousand plans and predicts it in microseconds. The planner still
checks the plan, and tries longer horizons if it is not consistent: a wrong prediction costs time, never consistency.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

NEARLY_AS_CONSISTENT = 1.1
"""Ratio of speed errors, or of departures, up to which plans are about as consistent as each other."""
LEAST_ERROR, LEAST_DEPARTURE = 1e-6, 1e-3
"""Smaller values are raised to this, because logarithms are predicted."""
NO_LIMIT = 1e30
"""Stands for no limit of the speed error: differences of infinite logarithms are no numbers."""


LEAST_FIT_STEPS, FIT_STEPS_PER_PLAN = 4_000, 0.06
"""Optimizer steps of a fit, by default."""

WAVES = (0.5, 1.0, 2.0, 4.0)
"""Frequencies of the Fourier features of the positions, in periods over their range.

At a wall the horizon jumps between neighbouring places. Networks learn such edges from Fourier features far sooner than
from coordinates (Tancik et al. 2020).
"""


class HorizonModel(nn.Module):
    """Predicts the logarithms of the speed error of plans and of their departure from the data, for each horizon.

    Args:
        observation_dim: size of an observation.
        goal_columns: columns of an observation that a goal gives values for.
        horizons: the horizons, ascending.
        hidden_dim: width of the two hidden layers.
    """

    center: Tensor
    scale: Tensor
    low: Tensor
    span: Tensor

    def __init__(
        self, observation_dim: int, goal_columns: Sequence[int], horizons: tuple[int, ...], hidden_dim: int = 256
    ) -> None:
        super().__init__()
        goal_dim = len(goal_columns)
        input_dim = observation_dim + goal_dim
        self.horizons = horizons
        self.goal_columns = tuple(goal_columns)
        self._places = [*goal_columns, *range(observation_dim, input_dim)]
        self.register_buffer("center", torch.zeros(input_dim))
        self.register_buffer("scale", torch.ones(input_dim))
        self.register_buffer("low", torch.zeros(2 * goal_dim))
        self.register_buffer("span", torch.ones(()))
        self.layers = nn.Sequential(
            nn.Linear(input_dim + 2 * len(WAVES) * 2 * goal_dim, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, 2 * len(horizons)),
        )

    def forward(self, observations: Tensor, goals: Tensor) -> Tensor:
        """Predicted logarithms of speed errors and departures, float[batch, 2, horizons], in environment units."""
        inputs = torch.cat([observations, goals], dim=1)
        places = (inputs[:, self._places] - self.low) / self.span
        angles = 2 * math.pi * torch.cat([wave * places for wave in WAVES], dim=1)
        features = torch.cat([(inputs - self.center) / self.scale, angles.sin(), angles.cos()], dim=1)
        return self.layers(features).unflatten(1, (2, -1))

    def adapt(self, inputs: np.ndarray) -> None:
        """Set center, scale and range from inputs, float32[rows, columns]: observations with the goals beside them."""
        self.center.copy_(torch.from_numpy(inputs.mean(axis=0)))
        self.scale.copy_(torch.from_numpy(np.maximum(inputs.std(axis=0), 1e-6)))
        places = inputs[:, self._places].reshape(len(inputs), 2, -1)
        low, high = places.min(axis=(0, 1)), places.max(axis=(0, 1))
        self.low.copy_(torch.from_numpy(np.tile(low, 2)))
        self.span.fill_(max(float((high - low).max()), 1e-6))  # one for all axes: a wall is as thick on each

    @torch.no_grad()
    def first_consistent(
        self,
        observations: np.ndarray,
        goals: np.ndarray,
        horizons: tuple[int, ...],
        max_speed_errors: np.ndarray,
        max_departure: float = 0.0,
    ) -> np.ndarray:
        """Index of the first horizon that is predicted to be consistent.

        If none is, the first whose prediction is about as good as the best: a longer one would only be slower.

        Args:
            observations: float32[batch, observation_dim].
            goals: float32[batch, goal_dim].
            horizons: the horizons to choose from, ascending; predictions are interpolated between those of the model.
            max_speed_errors: largest speed error of a consistent plan, float[batch].
            max_departure: largest departure of a consistent plan; 0 for no limit.

        Returns:
            int[batch].
        """
        predicted = self(torch.from_numpy(observations), torch.from_numpy(goals)).numpy()
        # By how much each horizon exceeds the limits.
        excess = predicted[:, 0] - np.log(np.clip(max_speed_errors, LEAST_ERROR, NO_LIMIT))[:, None]
        if max_departure:
            excess = np.maximum(excess, predicted[:, 1] - np.log(max(max_departure, LEAST_DEPARTURE)))
        if horizons != self.horizons:
            excess = np.stack([np.interp(horizons, self.horizons, row) for row in excess])
        allowed = np.maximum(0.0, excess.min(axis=1, keepdims=True) + np.log(NEARLY_AS_CONSISTENT))
        return (excess <= allowed).argmax(axis=1)


def fit_horizon_model(
    observations: np.ndarray,
    goals: np.ndarray,
    horizon_indices: np.ndarray,
    speed_errors: np.ndarray,
    departures: np.ndarray,
    horizons: tuple[int, ...],
    goal_columns: Sequence[int],
    *,
    quantile: float = 0.65,
    num_steps: int | None = None,
    batch_size: int = 512,
    seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> HorizonModel:
    """Fit a horizon model to finished plans.

    Args:
        observations: first observations of the plans, float32[plans, observation_dim].
        goals: their goals, float32[plans, goal_dim].
        horizon_indices: index of the horizon of each plan, int[plans].
        speed_errors: float[plans].
        departures: float[plans].
        horizons: the horizons.
        goal_columns: columns of an observation that a goal gives values for.
        quantile: predicted quantile of both, over the noise in plans (pinball loss).
        num_steps: optimizer steps; None to choose them by the number of plans.
        batch_size: plans in each step.
        seed: of weights and batches.
        on_progress: called with the number of every hundredth step.
    """
    num_steps = max(LEAST_FIT_STEPS, round(FIT_STEPS_PER_PLAN * len(observations))) if num_steps is None else num_steps
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = HorizonModel(observations.shape[1], goal_columns, horizons)
    model.adapt(np.concatenate([observations, goals], axis=1))
    starts, ends = torch.from_numpy(observations), torch.from_numpy(goals)
    index = torch.from_numpy(horizon_indices)[:, None, None].expand(-1, 2, 1)
    logs = np.log(np.maximum(speed_errors, LEAST_ERROR)), np.log(np.maximum(departures, LEAST_DEPARTURE))
    target = torch.from_numpy(np.stack(logs, axis=1)).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    generator = torch.Generator().manual_seed(seed)
    for step in range(1, num_steps + 1):
        rows = torch.randint(len(starts), (batch_size,), generator=generator)
        predicted = model(starts[rows], ends[rows]).gather(2, index[rows])[:, :, 0]
        below = target[rows] - predicted
        loss = torch.maximum(quantile * below, (quantile - 1) * below).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        scheduler.step()
        if on_progress is not None and step % 100 == 0:
            on_progress(step)
    return model.eval()

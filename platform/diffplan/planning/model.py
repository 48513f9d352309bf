"""A trained diffusion model as planning sees it: the denoiser with its columns, units and steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from diffplan.config import Config, EnvConfig
from diffplan.data.windows.normalization import Normalizer
from diffplan.diffusion.denoiser import Denoiser
from diffplan.layout import Layout


@dataclass(frozen=True, eq=False)
class PlanningModel:
    """A trained diffusion model, with what planning must know about it.

    It holds no settings and no companions: functions that draw plans take those separately.

    Attributes:
        denoiser: the model, on `device`.
        layout: columns of a transition.
        normalizer: between environment units and model space.
        env: which observation columns are positions and velocities, and how long an environment step takes, as far as
            that is known.
        goal_columns: observation columns that a goal gives values for; none where plans have no goal.
        end_columns: observation columns that are fixed at the last step of a plan to a goal. Columns that the goal has
            no value for are fixed to 0: with velocities among them, plans end at rest. Empty for a model that was
            trained without a fixed end; goals then act only through guides.
        stride: environment steps between two steps of a plan; 1 where the offsets say it.
        offsets: environment steps from the first step of a plan to each of the others, for plans whose steps are not
            evenly spaced; None for those that are.
        shortest_horizon: transitions of the shortest plan that the network can hold.
        condition: what the network is conditioned on.
        num_tasks: number of labels, if it is conditioned on tasks.
        relative_columns: observation columns that plans count from their first step.
        known_columns: observation columns that the network is told of whether they are fixed at the last step.
        return_range: returns that were normalised to 0 and to 1, if it is conditioned on returns.
        device: where the model denoises. Inputs and outputs are on the CPU, and noise is drawn there too, so it is
            the same on every device.
    """

    denoiser: Denoiser
    layout: Layout
    normalizer: Normalizer
    env: EnvConfig
    goal_columns: tuple[int, ...]
    end_columns: tuple[int, ...]
    stride: int
    offsets: tuple[int, ...] | None
    shortest_horizon: int
    condition: Literal["none", "returns", "task"]
    num_tasks: int
    relative_columns: tuple[int, ...]
    known_columns: tuple[int, ...]
    return_range: tuple[float, float] | None
    device: torch.device

    @classmethod
    def make(
        cls,
        config: Config,
        layout: Layout,
        denoiser: Denoiser,
        normalizer: Normalizer,
        *,
        return_range: tuple[float, float] | None = None,
        device: torch.device | str = "cpu",
    ) -> PlanningModel:
        """The model of an experiment.

        Args:
            config: the experiment that it was trained in.
            layout: columns of a transition.
            denoiser: the model; moved to the device.
            normalizer: between environment units and model space.
            return_range: returns that were normalised to 0 and to 1, if the network is conditioned on returns.
            device: where the model denoises.
        """
        device = torch.device(device)
        return cls(
            denoiser=denoiser.eval().to(device),
            layout=layout,
            normalizer=normalizer,
            env=config.env,
            goal_columns=config.goal_value_columns,
            end_columns=config.goal_columns,
            stride=config.windows.stride if config.windows.offsets is None else 1,
            offsets=config.windows.offsets,
            shortest_horizon=max(config.network.min_horizon, 2),
            condition=config.network.condition,
            num_tasks=config.network.num_tasks,
            relative_columns=config.windows.relative_columns,
            known_columns=config.windows.known_columns,
            return_range=return_range,
            device=device,
        )

    @property
    def step_seconds(self) -> float | None:
        """Seconds between two steps of a plan; None where that is not known, or not the same for all steps."""
        if self.env.step_seconds is None or self.offsets is not None:
            return None
        return self.stride * self.env.step_seconds

    def find_times(self, steps: np.ndarray) -> np.ndarray:
        """Seconds from the first step of a plan to others, float64[...]; raises `ValueError` if they are not known."""
        if self.env.step_seconds is None:
            raise ValueError("env.step_seconds: expected a number, got none")
        env_steps = self.stride * steps if self.offsets is None else np.array([0, *self.offsets])[steps]
        return env_steps * self.env.step_seconds

    @property
    def num_diffusion_steps(self) -> int:
        """Levels of noise that the model was trained with."""
        return self.denoiser.schedule.num_diffusion_steps

    def normalize_observations(self, observations: np.ndarray) -> Tensor:
        """First observations of plans in model space, float32[batch, observation_dim], from environment units."""
        if self.layout.transition_dim == self.layout.observation_dim:
            return torch.from_numpy(self.normalizer.normalize(observations))
        transitions = np.zeros((len(observations), self.layout.transition_dim), dtype=np.float32)
        transitions[:, self.layout.observations] = observations
        return torch.from_numpy(self.normalizer.normalize(transitions)[:, self.layout.observations])

    def normalize_at(self, observations: np.ndarray, steps: np.ndarray, first: np.ndarray) -> Tensor:
        """Observations at given steps of plans in model space, float32[batch, observation_dim].

        Args:
            observations: in environment units, float32[batch, observation_dim].
            steps: step of each plan, int[batch].
            first: the first observations of the plans, float32[batch, observation_dim].
        """
        values, deltas = self.normalize_observations(observations), self.normalizer.deltas
        if deltas is None:
            return values
        before = np.maximum(steps - 1, 0)
        center, scale = (torch.from_numpy(values[before]) for values in (deltas.center, deltas.scale))
        changes = (values - self.normalize_observations(first) - center) / scale
        return torch.where(torch.from_numpy(steps > 0)[:, None], changes, values)

    def normalize_plans(self, transitions: np.ndarray) -> Tensor:
        """Plans in model space from those in environment units, float32[batch, horizon, transition_dim]."""
        if self.normalizer.deltas is None:
            return torch.from_numpy(self.normalizer.normalize(transitions))
        return self.normalizer.normalize_windows(torch.from_numpy(transitions))

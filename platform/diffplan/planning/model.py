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
        stride: environment steps between two steps of a plan.
        shortest_horizon: transitions of the shortest plan that the network can hold.
        condition: what the network is conditioned on.
        num_tasks: number of labels, if it is conditioned on tasks.
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
    shortest_horizon: int
    condition: Literal["none", "returns", "task"]
    num_tasks: int
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
            stride=config.windows.stride,
            shortest_horizon=max(config.network.min_horizon, 2),
            condition=config.network.condition,
            num_tasks=config.network.num_tasks,
            return_range=return_range,
            device=device,
        )

    @property
    def step_seconds(self) -> float | None:
        """Seconds between two steps of a plan; None where that is not known."""
        return None if self.env.step_seconds is None else self.stride * self.env.step_seconds

    @property
    def num_diffusion_steps(self) -> int:
        """Levels of noise that the model was trained with."""
        return self.denoiser.schedule.num_diffusion_steps

    def normalize_observations(self, observations: np.ndarray) -> Tensor:
        """Observations in model space, float32[batch, observation_dim], from those in environment units."""
        if not self.layout.action_dim:
            return torch.from_numpy(self.normalizer.normalize(observations))
        transitions = np.zeros((len(observations), self.layout.transition_dim), dtype=np.float32)
        transitions[:, self.layout.observations] = observations
        return torch.from_numpy(self.normalizer.normalize(transitions)[:, self.layout.observations])

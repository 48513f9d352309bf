"""Controllers: from a plan and the present observation to an action."""

from __future__ import annotations

import numpy as np

from diffplan.config import EnvConfig
from diffplan.types import Plan


class TrackingController:
    """Follows plans of positions and velocities, for a batch of environments.

    action = clip(position_gain (x' - x) + velocity_gain (v' - v)), where x', v' are the plan's values one environment
    step ahead, interpolated between its steps. Once a plan has ended, its last position is held at rest.

    Source: the controller of Janner et al. 2022 for Maze2D (`scripts/plan_maze2d.py`), which has both gains 1.

    Args:
        env: which observation columns are positions and velocities.
        position_gain: action per unit of position error.
        velocity_gain: action per unit of velocity error.
        action_low: lower bounds of the action.
        action_high: upper bounds of the action.
    """

    def __init__(
        self,
        env: EnvConfig,
        position_gain: float,
        velocity_gain: float,
        action_low: np.ndarray | float = -1.0,
        action_high: np.ndarray | float = 1.0,
    ) -> None:
        self._positions, self._velocities = list(env.position_columns), list(env.velocity_columns)
        self._gains = position_gain, velocity_gain
        self._bounds = action_low, action_high

    def reset(self, plans: list[Plan]) -> None:
        """Follow new plans from their first step on."""
        self._references = [self._reference(plan) for plan in plans]
        self._env_steps = np.zeros(len(plans), dtype=int)

    def replace(self, i: int, plan: Plan) -> None:
        """Follow a new plan in one environment."""
        self._references[i] = self._reference(plan)
        self._env_steps[i] = 0

    def remaining_env_steps(self) -> np.ndarray:
        """Environment steps until each plan ends, int[num_envs]; 0 once it has ended."""
        lengths = np.array([len(reference) for reference in self._references])
        return np.maximum(lengths - 2 - self._env_steps, 0)  # the last reference is the rest after the plan

    def deviations(self, observations: np.ndarray) -> np.ndarray:
        """Distance between each observation's position and where its plan is now, float[num_envs]."""
        here = self._targets(self._env_steps)[:, : len(self._positions)]
        return np.linalg.norm(here - observations[:, self._positions], axis=1)

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions float32[num_envs, action_dim] for observations float[num_envs, observation_dim]."""
        self._env_steps += 1
        targets = self._targets(self._env_steps)
        num = len(self._positions)
        position_errors = targets[:, :num] - observations[:, self._positions]
        velocity_errors = targets[:, num:] - observations[:, self._velocities]
        position_gain, velocity_gain = self._gains
        actions = position_gain * position_errors + velocity_gain * velocity_errors
        return np.clip(actions, *self._bounds).astype(np.float32)

    def _targets(self, env_steps: np.ndarray) -> np.ndarray:
        """Positions and velocities of the plans at given steps, float64[num_envs, 2 * num_positions]."""
        return np.stack(
            [
                reference[min(step, len(reference) - 1)]
                for reference, step in zip(self._references, env_steps, strict=True)
            ]
        )

    def _reference(self, plan: Plan) -> np.ndarray:
        """Positions and velocities at every environment step of a plan, and rest at its end."""
        columns = plan.observations[:, self._positions + self._velocities].astype(np.float64)
        plan_times = np.arange(plan.horizon) * plan.stride
        env_times = np.arange(plan_times[-1] + 1)
        dense = np.stack([np.interp(env_times, plan_times, column) for column in columns.T], axis=1)
        rest = dense[-1:].copy()
        rest[:, len(self._positions) :] = 0.0
        return np.concatenate([dense, rest])

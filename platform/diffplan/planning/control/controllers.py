"""Controllers: from a plan and the present observation to an action, for a batch of environments."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import numpy as np

from diffplan.config import EnvConfig
from diffplan.errors import PlanningError
from diffplan.planning.interpolation import Interpolation, interpolate
from diffplan.types import Plan


class Controller(Protocol):
    """Follows a plan in each environment of a batch. `PlanFollower` has all but the actions."""

    can_hold: bool
    """Whether its actions make sense after the end of a plan, such as to hold the last position. Where they do not, a
    new plan is made there."""

    def reset(self, plans: list[Plan]) -> None:
        """Follow new plans from their first step on."""
        ...

    def replace(self, i: int, plan: Plan) -> None:
        """Follow a new plan in one environment."""
        ...

    def remaining_env_steps(self) -> np.ndarray:
        """Environment steps until each plan arrives at its last observation, int[num_envs]; 0 from then on."""
        ...

    def elapsed_env_steps(self) -> np.ndarray:
        """How far each plan has come, in environment steps of its own time, int[num_envs]."""
        ...

    def has_ended(self, envs: np.ndarray) -> np.ndarray:
        """Whether the plans of some environments have been executed to their end, bool[num]."""
        ...

    def sooner_horizons(self, envs: np.ndarray) -> np.ndarray:
        """Horizons of the longest plans, of the same stride, that end before those of some environments, int[num]."""
        ...

    def deviations(self, observations: np.ndarray, envs: np.ndarray | None = None) -> np.ndarray:
        """Distance between each observation's position and where its plan is now, float[num].

        Args:
            observations: float[num, observation_dim].
            envs: the environments that they come from, int[num]; None for all.
        """
        ...

    def waited_env_steps(self, envs: np.ndarray) -> np.ndarray:
        """How long the plans of some environments have been paused for them, without a break, int[num]."""
        ...

    def act(self, observations: np.ndarray, envs: np.ndarray | None = None) -> np.ndarray:
        """Actions float32[num, action_dim], and on to the next step of the plans.

        Args:
            observations: float[num, observation_dim].
            envs: the environments that they come from, int[num]; the others stay where they are. None for all.
        """
        ...


class PlanFollower(ABC):
    """A controller without its actions: the plans at every environment step, and how far each has come.

    A plan pauses while the position lags behind it (a reference governor). Else a late robot cuts the corners of its
    plan into walls, and being late cannot be told from being held up.

    Subclasses say by `compute_actions` how to get from an observation to the next one of the plan.

    Args:
        env: which observation columns are positions and velocities.
        action_low: lower bounds of the action.
        action_high: upper bounds of the action.
        interpolation: how plans go on between their steps.
        pace: how many times as fast plans are followed as they were planned; their velocities grow with it.
        max_lag: a plan pauses while the position is further than this from it; 0 never pauses.
    """

    can_hold = True

    def __init__(
        self,
        env: EnvConfig,
        action_low: np.ndarray | float = -1.0,
        action_high: np.ndarray | float = 1.0,
        interpolation: Interpolation = "linear",
        pace: float = 1.0,
        max_lag: float = 0.0,
    ) -> None:
        self._env, self._pace, self._max_lag = env, pace, max_lag or math.inf
        self._interpolation: Interpolation = interpolation
        self._positions, self._velocities = list(env.position_columns), list(env.velocity_columns)
        self._bounds = action_low, action_high

    @abstractmethod
    def compute_actions(self, observations: np.ndarray, targets: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """Actions float[num, action_dim], which are clipped to their bounds.

        Args:
            observations: present observations, float[num, observation_dim].
            targets: planned observations one environment step later, float64[num, observation_dim]; behind the end of a
                plan its last one at rest.
            envs: the environments that they are of, int[num].
        """

    def act(self, observations: np.ndarray, envs: np.ndarray | None = None) -> np.ndarray:
        """Actions float32[num, action_dim]; see `Controller.act`."""
        envs = self._advance(observations, envs)
        actions = self.compute_actions(observations, self._targets(envs), envs)
        return np.clip(actions, *self._bounds).astype(np.float32)

    def reset(self, plans: list[Plan]) -> None:
        """Follow new plans from their first step on."""
        self._plans = list(plans)
        references = [self._reference(plan) for plan in plans]
        self._lengths = np.array([len(reference) for reference in references], dtype=int)
        # Behind the end of a reference its last row, at rest, is repeated.
        self._references = np.stack([_repeat_last(reference, int(self._lengths.max())) for reference in references])
        self._env_steps, self._waited = np.zeros((2, len(plans)), dtype=int)

    def replace(self, i: int, plan: Plan) -> None:
        """Follow a new plan in one environment."""
        self._plans[i] = plan
        reference = self._reference(plan)
        self._lengths[i], width = len(reference), self._references.shape[1]
        if len(reference) > width:
            missing = len(reference) - width
            self._references = np.pad(self._references, ((0, 0), (0, missing), (0, 0)), mode="edge")
        self._references[i] = _repeat_last(reference, self._references.shape[1])
        self._env_steps[i] = self._waited[i] = 0

    def remaining_env_steps(self) -> np.ndarray:
        """Environment steps until each plan arrives at its last observation, int[num_envs]; 0 from then on."""
        return np.maximum(self._lengths - 2 - self._env_steps, 0)  # the last reference is the rest after the plan

    def elapsed_env_steps(self) -> np.ndarray:
        """How far each plan has come, in environment steps of its own time, int[num_envs]."""
        return np.rint(self._env_steps * self._pace).astype(int)

    def has_ended(self, envs: np.ndarray) -> np.ndarray:
        """Whether the plans of some environments have been executed to their end, bool[num]."""
        return self.remaining_env_steps()[envs] == 0

    def count_env_steps(self, plan: Plan) -> int:
        """Environment steps that it takes to follow a plan."""
        return math.ceil((plan.horizon - 1) * plan.stride / self._pace)

    def sooner_horizons(self, envs: np.ndarray) -> np.ndarray:
        """Horizons of the longest plans, of the same stride, that end before those of some environments, int[num]."""
        strides = np.array([self._plans[i].stride for i in envs])
        return np.floor((self.remaining_env_steps()[envs] - 1) * self._pace / strides + 1e-9).astype(int) + 1

    def deviations(self, observations: np.ndarray, envs: np.ndarray | None = None) -> np.ndarray:
        """Distance between each observation's position and where its plan is now, float[num]."""
        ways = (self._targets(self._all if envs is None else envs) - observations)[:, self._positions]
        return np.sqrt((ways**2).sum(axis=1))

    def waited_env_steps(self, envs: np.ndarray) -> np.ndarray:
        """How long the plans of some environments have been paused for them, without a break, int[num]."""
        return self._waited[envs]

    @property
    def _all(self) -> np.ndarray:
        return np.arange(len(self._env_steps))

    def _advance(self, observations: np.ndarray, envs: np.ndarray | None) -> np.ndarray:
        """The environments that act, whose plans go on to their next step or wait."""
        envs = self._all if envs is None else envs
        if self._max_lag == math.inf:
            self._env_steps[envs] += 1
        else:
            waits = self.deviations(observations, envs) > self._max_lag
            self._env_steps[envs] += ~waits
            self._waited[envs] = np.where(waits, self._waited[envs] + 1, 0)
        return envs

    def _targets(self, envs: np.ndarray) -> np.ndarray:
        """Planned observations of environments at their steps, float64[num, observation_dim]."""
        return self._references[envs, np.minimum(self._env_steps[envs], self._lengths[envs] - 1)]

    def _reference(self, plan: Plan) -> np.ndarray:
        """Observations at every environment step of a plan, and then its last position at rest."""
        places = np.arange(self.count_env_steps(plan) + 1) * self._pace  # beyond its end the plan's last step holds
        dense = interpolate(plan, self._env, places, self._interpolation)
        dense[:, self._velocities] *= self._pace
        rest = dense[-1:].copy()
        rest[:, self._velocities] = 0.0
        return np.concatenate([dense, rest])


def _repeat_last(rows: np.ndarray, num: int) -> np.ndarray:
    """Rows up to a number, the last one repeated."""
    return np.concatenate([rows, np.repeat(rows[-1:], num - len(rows), axis=0)])


class TrackingController(PlanFollower):
    """Follows plans of positions and velocities.

    action = clip(position_gain (x' - x) + velocity_gain (v' - v)), where x', v' are the plan's values one environment
    step ahead, interpolated between its steps; the second term is left out where velocities are not known. Once a plan
    has ended, its last position is held at rest.

    Source: the controller of Janner et al. 2022 for point masses, which has both gains 1.

    Args:
        env: which observation columns are positions and velocities.
        position_gain: action per unit of position error.
        velocity_gain: action per unit of velocity error.
        action_low: lower bounds of the action.
        action_high: upper bounds of the action.
        interpolation: how plans go on between their steps.
        pace: how many times as fast plans are followed as they were planned; their velocities grow with it.
        max_lag: a plan pauses while the position is further than this from it; 0 never pauses.

    Raises:
        PlanningError: no positions are known.
    """

    def __init__(
        self,
        env: EnvConfig,
        position_gain: float,
        velocity_gain: float,
        action_low: np.ndarray | float = -1.0,
        action_high: np.ndarray | float = 1.0,
        interpolation: Interpolation = "linear",
        pace: float = 1.0,
        max_lag: float = 0.0,
    ) -> None:
        super().__init__(env, action_low, action_high, interpolation, pace, max_lag)
        if not env.position_columns:
            raise PlanningError(
                "planning.controller: expected actions or inverse_dynamics, for tracking needs env.position_columns, "
                f"and none are known of {env.env_id}"
            )
        self._gains = position_gain, velocity_gain

    def compute_actions(self, observations: np.ndarray, targets: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """Actions that reduce the errors of position and velocity."""
        errors = targets - observations
        position_gain, velocity_gain = self._gains
        actions = position_gain * errors[:, self._positions]
        return actions + velocity_gain * errors[:, self._velocities] if self._velocities else actions


class InverseDynamicsController(PlanFollower):
    """Asks a model which action leads from the present observation to the planned one an environment step ahead.

    Source: Ajay et al. 2023 (Decision Diffuser), section 3.1: plans of observations only, actions by inverse dynamics.

    Args:
        env: which observation columns are positions and velocities.
        predict: (observations, next observations) -> actions, all in environment units, float[num_envs, …].
        action_low: lower bounds of the action.
        action_high: upper bounds of the action.
        interpolation: how plans go on between their steps.
        pace: how many times as fast plans are followed as they were planned; their velocities grow with it.
        max_lag: a plan pauses while the position is further than this from it; 0 never pauses.
    """

    def __init__(
        self,
        env: EnvConfig,
        predict: Callable[[np.ndarray, np.ndarray], np.ndarray],
        action_low: np.ndarray | float = -1.0,
        action_high: np.ndarray | float = 1.0,
        interpolation: Interpolation = "linear",
        pace: float = 1.0,
        max_lag: float = 0.0,
    ) -> None:
        super().__init__(env, action_low, action_high, interpolation, pace, max_lag)
        self._predict = predict

    def compute_actions(self, observations: np.ndarray, targets: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """Actions that the model predicts between observations and targets."""
        return self._predict(observations, targets)


class ActionController(PlanFollower):
    """Executes the planned actions as they are, each for as long as a plan step lasts.

    The last one too, so that a plan ends one plan step after it has arrived at its last observation. Behind its end
    there is nothing to execute: the last action is repeated, and a policy makes a new plan instead.

    Args:
        env: which observation columns are positions, for deviations.
        action_low: lower bounds of the action.
        action_high: upper bounds of the action.
    """

    can_hold = False

    def __init__(
        self, env: EnvConfig, action_low: np.ndarray | float = -1.0, action_high: np.ndarray | float = 1.0
    ) -> None:
        super().__init__(env, action_low, action_high)

    def has_ended(self, envs: np.ndarray) -> np.ndarray:
        """Whether all actions of the plans of some environments have been executed, bool[num]."""
        return np.array([self._env_steps[env] >= self._plans[env].horizon * self._plans[env].stride for env in envs])

    def compute_actions(self, observations: np.ndarray, targets: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """The planned actions."""
        actions = []
        for env in envs:
            plan = self._plans[env]
            if plan.actions is None:
                raise ValueError("plans: expected planned actions, got plans of observations only")
            actions.append(plan.actions[min(int(self._env_steps[env] - 1) // plan.stride, plan.horizon - 1)])
        return np.stack(actions)

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
    """Follows a plan in each environment of a batch. `PlanFollower` implements all of it but the actions."""

    can_hold: bool
    """Whether it can act after the end of a plan, for example hold the last position. If not, a new plan is made at the
    end."""

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
        """Distance between each observation's position and the planned one, float[num].

        Args:
            observations: float[num, observation_dim].
            envs: the environments that they come from, int[num]; None for all.
        """
        ...

    def waited_env_steps(self, envs: np.ndarray) -> np.ndarray:
        """Environment steps for which the plans of some environments have been paused, int[num]; 0 if they are not."""
        ...

    def act(self, observations: np.ndarray, envs: np.ndarray | None = None) -> np.ndarray:
        """Actions float32[num, action_dim]; advances the plans by one environment step.

        Args:
            observations: float[num, observation_dim].
            envs: the environments that they come from, int[num]; the plans of the others do not move. None for all.
        """
        ...


class PlanFollower(ABC):
    """Base of controllers: interpolates plans to environment steps, and tracks how far each has come.

    A plan pauses while the position lags behind it (a reference governor). Otherwise a late robot cuts the corners of
    its plan into walls, and cannot be told from a blocked one.

    Subclasses implement `compute_actions`: the actions from an observation to the next one of the plan.

    Args:
        env: which observation columns are positions and velocities.
        action_low: lower bounds of the action.
        action_high: upper bounds of the action.
        interpolation: between plan steps.
        pace: factor on the speed at which plans are followed; the planned velocities are scaled by it.
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
        """Actions float[num, action_dim]; the caller clips them to their bounds.

        Args:
            observations: present observations, float[num, observation_dim].
            targets: planned observations one environment step later, float64[num, observation_dim]; after the end of a
                plan, its last observation at rest.
            envs: the environments that they come from, int[num].
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
        # References are padded with their last row, which is at rest.
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
        return np.maximum(self._lengths - 2 - self._env_steps, 0)  # the last row of a reference comes after the plan

    def elapsed_env_steps(self) -> np.ndarray:
        """How far each plan has come, in environment steps of its own time, int[num_envs]."""
        return np.rint(self._env_steps * self._pace).astype(int)

    def has_ended(self, envs: np.ndarray) -> np.ndarray:
        """Whether the plans of some environments have been executed to their end, bool[num]."""
        return self.remaining_env_steps()[envs] == 0

    def count_env_steps(self, plan: Plan) -> int:
        """Environment steps that it takes to follow a plan."""
        return math.ceil(int(plan.env_steps[-1]) / self._pace)

    def sooner_horizons(self, envs: np.ndarray) -> np.ndarray:
        """Horizons of the longest plans, of the same stride, that end before those of some environments, int[num]."""
        strides = np.array([self._plans[i].stride for i in envs])
        return np.floor((self.remaining_env_steps()[envs] - 1) * self._pace / strides + 1e-9).astype(int) + 1

    def deviations(self, observations: np.ndarray, envs: np.ndarray | None = None) -> np.ndarray:
        """Distance between each observation's position and the planned one, float[num]."""
        ways = (self._targets(self._all if envs is None else envs) - observations)[:, self._positions]
        return np.sqrt((ways**2).sum(axis=1))

    def waited_env_steps(self, envs: np.ndarray) -> np.ndarray:
        """Environment steps for which the plans of some environments have been paused, int[num]; 0 if they are not."""
        return self._waited[envs]

    @property
    def _all(self) -> np.ndarray:
        return np.arange(len(self._env_steps))

    def _advance(self, observations: np.ndarray, envs: np.ndarray | None) -> np.ndarray:
        """Advance or pause the plans of the environments that act; returns those environments."""
        envs = self._all if envs is None else envs
        if self._max_lag == math.inf:
            self._env_steps[envs] += 1
        else:
            waits = self.deviations(observations, envs) > self._max_lag
            self._env_steps[envs] += ~waits
            self._waited[envs] = np.where(waits, self._waited[envs] + 1, 0)
        return envs

    def _targets(self, envs: np.ndarray) -> np.ndarray:
        """Planned observations of environments at the present step of their plans, float64[num, observation_dim]."""
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
    """Rows padded to a number by repeating the last one."""
    return np.concatenate([rows, np.repeat(rows[-1:], num - len(rows), axis=0)])


class TrackingController(PlanFollower):
    """Follows plans of positions and velocities.

    action = clip(position_gain (x' - x) + velocity_gain (v' - v)), where x', v' are the plan's values one environment
    step ahead, interpolated between its steps; the second term is dropped if velocities are not known. After the end of
    a plan its last position is held.

    Source: the tracking controller of Janner et al. 2022, where both gains are 1.

    Args:
        env: which observation columns are positions and velocities.
        position_gain: action per unit of position error.
        velocity_gain: action per unit of velocity error.
        action_low: lower bounds of the action.
        action_high: upper bounds of the action.
        interpolation: between plan steps.
        pace: factor on the speed at which plans are followed; the planned velocities are scaled by it.
        max_lag: a plan pauses while the position is further than this from it; 0 never pauses.

    Raises:
        PlanningError: no positions are known, or their number is not that of the actions.
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
        action_dim = np.size(action_low)
        if np.ndim(action_low) and action_dim != len(env.position_columns):
            raise PlanningError(
                f"planning.controller: expected inverse_dynamics or a controller of the task, for tracking needs an "
                f"action for each of the {len(env.position_columns)} env.position_columns, and {env.env_id} has "
                f"{action_dim}"
            )
        self._gains = position_gain, velocity_gain

    def compute_actions(self, observations: np.ndarray, targets: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """Actions that reduce the errors of position and velocity."""
        errors = targets - observations
        position_gain, velocity_gain = self._gains
        actions = position_gain * errors[:, self._positions]
        return actions + velocity_gain * errors[:, self._velocities] if self._velocities else actions


class InverseDynamicsController(PlanFollower):
    """Predicts the action that leads from the present observation to the planned one an environment step ahead.

    Source: Ajay et al. 2023 (Decision Diffuser), section 3.1: plans of observations only, actions by inverse dynamics.

    Args:
        env: which observation columns are positions and velocities.
        predict: (observations, next observations) -> actions, all in environment units, float[num_envs, …].
        action_low: lower bounds of the action.
        action_high: upper bounds of the action.
        interpolation: between plan steps.
        pace: factor on the speed at which plans are followed; the planned velocities are scaled by it.
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

    This includes the last action, so a plan ends one plan step after it arrives at its last observation. After that the
    last action would be repeated; a policy makes a new plan instead.

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
        return np.array([self._env_steps[env] >= _count_action_steps(self._plans[env]) for env in envs])

    def compute_actions(self, observations: np.ndarray, targets: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """The planned actions."""
        actions = []
        for env in envs:
            plan = self._plans[env]
            if plan.actions is None:
                raise ValueError("plans: expected planned actions, got plans of observations only")
            step = np.searchsorted(plan.env_steps, int(self._env_steps[env]) - 1, side="right") - 1
            actions.append(plan.actions[step])
        return np.stack(actions)


def _count_action_steps(plan: Plan) -> int:
    """Environment steps of the actions of a plan; the last one lasts as long as the one before."""
    steps = plan.env_steps
    return int(steps[-1] + (steps[-1] - steps[-2] if len(steps) > 1 else plan.stride))


class ActionHeadController:
    """Executes the action that the planner's action head chose for the first step of each plan.

    It holds for one environment step, so plans must be made at every step.

    Args:
        action_low: lower bounds of the action.
        action_high: upper bounds of the action.
    """

    can_hold = False

    def __init__(self, action_low: np.ndarray | float = -1.0, action_high: np.ndarray | float = 1.0) -> None:
        self._bounds = action_low, action_high

    def reset(self, plans: list[Plan]) -> None:
        """Follow new plans."""
        self._actions = np.stack([self._get_action(plan) for plan in plans])
        self._env_steps = np.zeros(len(plans), dtype=int)

    def replace(self, i: int, plan: Plan) -> None:
        """Follow a new plan in one environment."""
        self._actions[i] = self._get_action(plan)
        self._env_steps[i] = 0

    def remaining_env_steps(self) -> np.ndarray:
        """1 until the action has been executed, then 0, int[num_envs]."""
        return np.maximum(1 - self._env_steps, 0)

    def elapsed_env_steps(self) -> np.ndarray:
        """Environment steps since each plan was made, int[num_envs]."""
        return self._env_steps.copy()

    def has_ended(self, envs: np.ndarray) -> np.ndarray:
        """Whether the actions of some environments have been executed, bool[num]."""
        return self._env_steps[envs] >= 1

    def sooner_horizons(self, envs: np.ndarray) -> np.ndarray:
        """0: no plan ends sooner, int[num]."""
        return np.zeros(len(envs), dtype=int)

    def deviations(self, observations: np.ndarray, envs: np.ndarray | None = None) -> np.ndarray:
        """0: a plan begins where the environment is, float[num]."""
        return np.zeros(len(observations))

    def waited_env_steps(self, envs: np.ndarray) -> np.ndarray:
        """0: plans are never paused, int[num]."""
        return np.zeros(len(envs), dtype=int)

    def act(self, observations: np.ndarray, envs: np.ndarray | None = None) -> np.ndarray:
        """Actions float32[num, action_dim]; see `Controller.act`."""
        chosen = slice(None) if envs is None else envs
        self._env_steps[chosen] += 1
        return np.clip(self._actions[chosen], *self._bounds).astype(np.float32)

    @staticmethod
    def _get_action(plan: Plan) -> np.ndarray:
        if plan.action is None:
            raise ValueError("plans: expected the action of an action head, got none")
        return plan.action

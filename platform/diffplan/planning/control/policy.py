"""Policies: a planner, a controller and a rule for when to plan again, for a batch of environments."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch

from diffplan.config import Config, PlanningConfig
from diffplan.planning.control.controllers import (
    ActionController,
    Controller,
    InverseDynamicsController,
    TrackingController,
)
from diffplan.types import Plan

MIN_STEPS_BETWEEN_PLANS = 10
"""A plan is followed for at least this many environment steps before a deviation from it counts."""

MAX_WAIT_OF_PLANS = 20
"""Environment steps that a plan waits for a position that has fallen behind, before something is held to be in the way.
A ball that is only late is back in a few."""

STRICTNESS_FACTOR = 0.8
"""What a plan that could not be followed multiplies the speed error admitted in the next one by."""

MAX_WAIT = 100
"""Calls of `act_some` that an environment waits for others that need a plan too, at most: a plan for one takes about as
long as plans for ten. No episode is changed by it, for one that waits stands still."""


class PlannerLike(Protocol):
    """What a policy asks of a planner; see `Planner`, which may be in another process."""

    config: Config
    settings: PlanningConfig
    inverse_dynamics: Callable[[np.ndarray, np.ndarray], np.ndarray] | None

    def plan(
        self,
        observations: np.ndarray,
        goals: np.ndarray | None,
        generator: torch.Generator,
        *,
        max_speed_errors: np.ndarray | None = None,
    ) -> list[Plan]:
        """A plan for each environment."""
        ...

    def plan_within(
        self,
        observations: np.ndarray,
        goals: np.ndarray,
        generator: torch.Generator,
        max_horizons: np.ndarray,
        *,
        max_speed_errors: np.ndarray | None = None,
    ) -> list[Plan | None]:
        """A plan of at most a given horizon for each environment that has one."""
        ...

    def replan(
        self,
        previous: Sequence[Plan],
        elapsed_env_steps: np.ndarray,
        observations: np.ndarray,
        goals: np.ndarray | None,
        generator: torch.Generator,
        *,
        max_speed_errors: np.ndarray | None = None,
    ) -> list[Plan]:
        """What is left of the plans, planned again."""
        ...


class PlanningPolicy:
    """Plans at the start of an episode, follows the plan, and plans again when the settings say so.

    There are two reasons to plan again: every `replan_interval` steps, for the sake of a sooner arrival (or, with warm
    starts, to mend what is left of the plan); and a position further than `max_deviation` from the plan, or one that
    the plan has long been waiting for (`max_lag`), because something (a wall that the plan cut, a push) holds it up. A
    plan that could not be followed was too bold, so the next must be more consistent than it had to.

    Args:
        planner: makes the plans; its settings give gains and replanning.
        generator: source of the noise in plans.
        action_low: lower bounds of the actions.
        action_high: upper bounds of the actions.

    Attributes:
        plans: the plan followed in each environment.
        num_plans: how often each environment was planned for, int[num_envs]; searches for a sooner plan that found none
            are counted.
        plan_seconds: seconds spent planning, over all environments.
    """

    def __init__(
        self,
        planner: PlannerLike,
        generator: torch.Generator,
        action_low: np.ndarray | float = -1.0,
        action_high: np.ndarray | float = 1.0,
    ) -> None:
        self._planner = planner
        self._generator = generator
        self._controller = make_controller(planner, action_low, action_high)
        self.plans: list[Plan] = []
        self.num_plans = np.zeros(0, dtype=int)
        self.plan_seconds = 0.0

    def reset(self, observations: np.ndarray, goals: np.ndarray | None) -> None:
        """Start episodes: plan in every environment."""
        self._goals = np.array(goals)
        self._env_steps = np.zeros(len(observations), dtype=int)
        self._lost, self._due = (np.zeros(len(observations), dtype=bool) for _ in range(2))
        self._waited = 0
        self._steps_on_plan = np.zeros(len(observations), dtype=int)
        self._max_speed_errors = np.full(len(observations), float(self._planner.settings.max_speed_error))
        self.num_plans = np.zeros(len(observations), dtype=int)
        self.plan_seconds = 0.0
        self.plans = self._plan(observations, np.arange(len(observations)))
        self._controller.reset(self.plans)

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions float32[num_envs, action_dim] for the present observations."""
        envs = np.arange(len(observations))
        self._find_waiting(observations, envs)
        self._plan_for_waiting(observations)
        return self._advance(observations, envs)

    def act_some(self, observations: np.ndarray, running: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Act where that needs no new plan, so that plans are made for many environments at once.

        Environments that need a plan wait for others that do, and must not be stepped meanwhile. They are planned for
        as soon as all others wait or have ended, or the first has waited `MAX_WAIT` calls.

        Args:
            observations: present observations of all environments, float[num_envs, observation_dim].
            running: environments whose episodes go on, bool[num_envs].

        Returns:
            The environments to step now, int[num], at least one if any is running, and their actions
            float32[num, action_dim].
        """
        ready = np.flatnonzero(running & ~self._waiting)
        if self._find_waiting(observations, ready):
            ready = np.flatnonzero(running & ~self._waiting)
        if len(ready) < np.count_nonzero(running):
            self._waited += 1
            if not ready.size or self._waited > MAX_WAIT:
                self._plan_for_waiting(observations)
                ready = np.flatnonzero(running)
        return ready, self._advance(observations[ready], ready)

    @property
    def _waiting(self) -> np.ndarray:
        return self._lost | self._due

    def _find_waiting(self, observations: np.ndarray, envs: np.ndarray) -> bool:
        """Whether some of these environments need a new plan, of the observations of all; remembers which."""
        settings, found = self._planner.settings, False
        if settings.max_deviation or settings.max_lag:
            lost = self._controller.waited_env_steps(envs) >= MAX_WAIT_OF_PLANS
            if settings.max_deviation:
                lost |= self._controller.deviations(observations[envs], envs) > settings.max_deviation
            lost &= self._steps_on_plan[envs] >= MIN_STEPS_BETWEEN_PLANS
            if lost.any():
                self._lost[envs[lost]] = found = True
        if settings.replan_interval:
            steps = self._env_steps[envs]
            due = envs[(steps > 0) & (steps % settings.replan_interval == 0)]
            self._due[due] = True
            found |= bool(due.size)
        return found

    def _plan_for_waiting(self, observations: np.ndarray) -> None:
        """Plan wherever a new plan is needed."""
        if self._lost.any():
            self._recover(observations, np.flatnonzero(self._lost))
        if self._due.any():
            self._improve(observations, np.flatnonzero(self._due))
        self._lost[:] = self._due[:] = False
        self._waited = 0

    def _advance(self, observations: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """Actions for the observations of some environments, all of which have a plan."""
        self._env_steps[envs] += 1
        self._steps_on_plan[envs] += 1
        return self._controller.act(observations, envs)

    def _recover(self, observations: np.ndarray, indices: np.ndarray) -> None:
        """Change over to a new plan where the present one is not being followed."""
        self._max_speed_errors[indices] *= STRICTNESS_FACTOR
        for i, plan in zip(indices, self._plan(observations, indices), strict=True):
            self._change_over(int(i), plan)

    def _improve(self, observations: np.ndarray, indices: np.ndarray) -> None:
        """Change over to a new plan where one arrives sooner than the present one, or mends it.

        Without this rule a policy never arrives: each new plan takes at least the shortest horizon.
        """
        remaining = self._controller.remaining_env_steps()
        if self._planner.settings.warm_start_steps:
            shortest = self._planner.config.network.min_horizon
            stride = self._planner.config.windows.stride
            mendable = remaining * self._planner.settings.pace >= stride * (shortest - 1)
            mendable &= self._controller.elapsed_env_steps() > 0
            self._mend(observations, indices[mendable[indices]])
            return
        indices = indices[remaining[indices] > 0]
        if not indices.size:
            return
        since = time.perf_counter()
        plans = self._planner.plan_within(
            observations[indices],
            self._goals[indices],
            self._generator,
            self._controller.sooner_horizons(indices),
            max_speed_errors=self._max_speed_errors[indices],
        )
        self.plan_seconds += time.perf_counter() - since
        self.num_plans[indices] += 1
        for i, plan in zip(indices, plans, strict=True):
            if plan is not None:
                self._change_over(int(i), plan)

    def _mend(self, observations: np.ndarray, indices: np.ndarray) -> None:
        """Change over to what is left of the plans, planned again from where the environments are."""
        if not indices.size:
            return
        since = time.perf_counter()
        plans = self._planner.replan(
            [self.plans[i] for i in indices],
            self._controller.elapsed_env_steps()[indices],
            observations[indices],
            self._goals[indices],
            self._generator,
            max_speed_errors=self._max_speed_errors[indices],
        )
        self.plan_seconds += time.perf_counter() - since
        self.num_plans[indices] += 1
        for i, plan in zip(indices, plans, strict=True):
            if plan.consistent:
                # It is the same plan, mended: that it cannot be followed must not be forgotten.
                self.plans[i] = plan
                self._controller.replace(int(i), plan)

    def _change_over(self, i: int, plan: Plan) -> None:
        self.plans[i] = plan
        self._steps_on_plan[i] = 0
        self._controller.replace(i, plan)

    def _plan(self, observations: np.ndarray, indices: np.ndarray) -> list[Plan]:
        since = time.perf_counter()
        plans = self._planner.plan(
            observations[indices],
            self._goals[indices],
            self._generator,
            max_speed_errors=self._max_speed_errors[indices],
        )
        self.plan_seconds += time.perf_counter() - since
        self.num_plans[indices] += 1
        return plans


def make_controller(
    planner: PlannerLike, action_low: np.ndarray | float = -1.0, action_high: np.ndarray | float = 1.0
) -> Controller:
    """The controller that a planner's settings name."""
    settings, env = planner.settings, planner.config.env
    if settings.controller == "actions":
        return ActionController(env, action_low, action_high)
    if settings.controller == "inverse_dynamics":
        predict = planner.inverse_dynamics
        assert predict is not None  # the planner refuses such settings without one
        return InverseDynamicsController(
            env, predict, action_low, action_high, settings.interpolation, settings.pace, settings.max_lag
        )
    return TrackingController(
        env,
        settings.position_gain,
        settings.velocity_gain,
        action_low,
        action_high,
        settings.interpolation,
        settings.pace,
        settings.max_lag,
    )

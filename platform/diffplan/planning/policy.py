"""Policies: a planner, a controller and a rule for when to plan again, for a batch of environments."""

from __future__ import annotations

import time

import numpy as np
import torch

from diffplan.planning.controllers import TrackingController
from diffplan.planning.planner import Planner
from diffplan.types import Plan


class PlanningPolicy:
    """Plans at the start of an episode, follows the plan, and plans again every `replan_interval` steps if asked to.

    Args:
        planner: makes the plans; its settings give gains and replanning.
        generator: source of the noise in plans.
        action_low: lower bounds of the actions.
        action_high: upper bounds of the actions.

    Attributes:
        plans: the plan followed in each environment.
        plan_seconds: seconds spent planning, per call of the planner.
        num_plans: plans made, over all environments.
    """

    def __init__(
        self,
        planner: Planner,
        generator: torch.Generator,
        action_low: np.ndarray | float = -1.0,
        action_high: np.ndarray | float = 1.0,
    ) -> None:
        settings = planner.settings
        self._planner = planner
        self._generator = generator
        self._controller = TrackingController(
            planner.config.env, settings.position_gain, settings.velocity_gain, action_low, action_high
        )
        self.plans: list[Plan] = []
        self.plan_seconds: list[float] = []
        self.num_plans = 0

    def reset(self, observations: np.ndarray, goals: np.ndarray) -> None:
        """Start episodes: plan in every environment."""
        self._goals = goals
        self._env_step = 0
        self._follow(observations)

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions float32[num_envs, action_dim] for the present observations."""
        interval = self._planner.settings.replan_interval
        if interval and self._env_step and self._env_step % interval == 0:
            self._replan(observations)
        self._env_step += 1
        return self._controller.act(observations)

    def _follow(self, observations: np.ndarray) -> None:
        self.plans = self._timed_plan(observations, self._goals)
        self._controller.reset(self.plans)

    def _replan(self, observations: np.ndarray) -> None:
        """Plan again where a plan is being followed, and change over where the new plan arrives sooner.

        A plan that is not consistent is given up for any new one. Without this rule a policy never arrives: each new
        plan takes at least the shortest horizon.
        """
        remaining = self._controller.remaining_env_steps()
        running = np.flatnonzero(remaining)
        if not running.size:
            return
        for i, plan in zip(running, self._timed_plan(observations[running], self._goals[running]), strict=True):
            sooner = plan.consistent and plan.stride * (plan.horizon - 1) < remaining[i]
            if sooner or not self.plans[i].consistent:
                self.plans[i] = plan
                self._controller.replace(i, plan)

    def _timed_plan(self, observations: np.ndarray, goals: np.ndarray) -> list[Plan]:
        since = time.perf_counter()
        plans = self._planner.plan(observations, goals, self._generator)
        self.plan_seconds.append(time.perf_counter() - since)
        self.num_plans += len(plans)
        return plans

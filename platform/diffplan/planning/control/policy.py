"""Policies: a planner, a controller and a rule of replanning, for a batch of environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from diffplan.planning.constraints import Constraint
from diffplan.planning.control.episodes import Episodes, MakeStage, PlannerLike
from diffplan.planning.control.registry import ControllerContext, MakeController, make_controller
from diffplan.planning.control.replanning import make_rule
from diffplan.types import Plan

MAX_WAIT = 100
"""Most calls of `act_some` that an environment waits, so that plans are made for several at once: one plan takes about
as long as ten in a batch. Episodes do not change, because an environment that waits is not stepped."""


class PlanningPolicy:
    """Plans at the start of an episode, follows the plan, and replans by the rule of the settings.

    See `diffplan.planning.control.replanning` for the rules, and for what happens at the end of a plan.

    Args:
        planner: makes the plans; its settings name the controller and the rule.
        generator: source of the noise in plans.
        action_low: lower bounds of the actions.
        action_high: upper bounds of the actions.
        controllers: controllers of the task, which the settings may name beside the built-in ones.

    Raises:
        ConfigError: no such controller.
        PlanningError: the controller does not support this environment or model.
    """

    def __init__(
        self,
        planner: PlannerLike,
        generator: torch.Generator,
        action_low: np.ndarray | float = -1.0,
        action_high: np.ndarray | float = 1.0,
        *,
        controllers: Mapping[str, MakeController] | None = None,
    ) -> None:
        settings = planner.settings
        context = ControllerContext(planner.config.env, settings, planner.inverse_dynamics, action_low, action_high)
        self._controller = make_controller(settings.controller.kind, context, controllers)
        self._episodes = Episodes(planner, self._controller, generator)
        self._rule = make_rule(settings.replanning, self._episodes)
        self._num_waits = 0

    @property
    def plans(self) -> list[Plan]:
        """The plan followed in each environment."""
        return self._episodes.plans

    @property
    def num_plans(self) -> np.ndarray:
        """How often each environment was planned for, int[num_envs], with searches that found no sooner plan."""
        return self._episodes.num_plans

    @property
    def plan_seconds(self) -> float:
        """Seconds spent planning, over all environments."""
        return self._episodes.plan_seconds

    def ask(
        self, *, constraints: Sequence[Constraint] = (), guides: Sequence[Any] = (), stage: MakeStage | None = None
    ) -> None:
        """Set constraints and guides for all plans from the next `reset` on.

        Args:
            constraints: `Bounds`, and `Fixed` at the last step of plans or with values per second; values may differ
                between environments.
            guides: guides as `Planner.plan` takes them; none for those of the settings.
            stage: chooses what each new plan must satisfy, from present observations; see `Stage` beside `Episodes`.

        Raises:
            PlanningError: a constraint at a time from now, which would be a different time in every new plan.
        """
        self._episodes.ask(constraints, guides, stage)

    def reset(self, observations: np.ndarray, goals: np.ndarray | None = None) -> None:
        """Start episodes: plan in every environment.

        Args:
            observations: float[num_envs, observation_dim].
            goals: values of the goal columns, float[num_envs, goal_dim]; None for episodes without a goal. They are
                ignored if the model has no goal columns.

        Raises:
            PlanningError: arrays of the wrong shape or with values that are not finite.
        """
        self._episodes.start(observations, goals)
        self._rule.reset(len(observations))
        self._num_waits = 0

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions float32[num_envs, action_dim] for the present observations."""
        envs = np.arange(len(observations))
        self._rule.find(observations, envs)
        self._plan_for_waiting(observations)
        return self._episodes.act(observations, envs)

    def act_some(self, observations: np.ndarray, running: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Act where no new plan is needed, and collect the other environments to plan for many of them at once.

        Environments that need a plan wait and must not be stepped meanwhile. Their plans are made as soon as all
        running environments wait, or one has waited `MAX_WAIT` calls.

        Args:
            observations: present observations of all environments, float[num_envs, observation_dim].
            running: environments whose episodes have not ended, bool[num_envs].

        Returns:
            The environments to step now, int[num] (at least one if any is running), and their actions,
            float32[num, action_dim].
        """
        self._rule.find(observations, np.flatnonzero(running & ~self._rule.waiting))
        ready = np.flatnonzero(running & ~self._rule.waiting)
        if len(ready) < np.count_nonzero(running):
            self._num_waits += 1
            if not ready.size or self._num_waits > MAX_WAIT:
                self._plan_for_waiting(observations)
                ready = np.flatnonzero(running)
        return ready, self._episodes.act(observations[ready], ready)

    def _plan_for_waiting(self, observations: np.ndarray) -> None:
        """Plan wherever a new plan is needed."""
        self._rule.replan(observations)
        self._num_waits = 0

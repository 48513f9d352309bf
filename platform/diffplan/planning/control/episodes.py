"""Episodes in a batch of environments that follow plans, and how they get new ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from diffplan.config import Config, PlanningConfig
from diffplan.errors import PlanningError
from diffplan.planning.consistency import find_speed_limit
from diffplan.planning.constraints import Bounds, Constraint, Fixed
from diffplan.planning.control.controllers import Controller
from diffplan.planning.control.registry import PredictActions
from diffplan.types import Plan

Found = TypeVar("Found")


class Stage(Protocol):
    """What the next plans of some environments must satisfy; `diffplan.tasks.contracts.Ask` is one."""

    @property
    def goals(self) -> np.ndarray | None:
        """Values of the goal columns, float[num, goal_dim]; None for the goals as they are."""
        ...

    @property
    def constraints(self) -> Sequence[Constraint]:
        """Constraints of these plans, at any time, with values for each of them or for all."""
        ...

    @property
    def guides(self) -> Sequence[Any]:
        """Guides of these plans; none for those of the settings."""
        ...


MakeStage = Callable[[np.ndarray, np.ndarray], Stage]
"""(observations float[num, observation_dim], environments int[num]) -> what their next plans must satisfy."""


class PlannerLike(Protocol):
    """The part of a planner that a policy uses; see `Planner`, which may be in another process."""

    config: Config
    settings: PlanningConfig
    inverse_dynamics: PredictActions | None

    def plan(
        self,
        observations: np.ndarray,
        goals: np.ndarray | None,
        generator: torch.Generator,
        *,
        constraints: Sequence[Constraint] = (),
        guides: Sequence[Any] | None = None,
        max_speed_errors: np.ndarray | None = None,
    ) -> list[Plan]:
        """A plan for each environment."""
        ...

    def plan_within(
        self,
        observations: np.ndarray,
        goals: np.ndarray | None,
        generator: torch.Generator,
        max_horizons: np.ndarray,
        *,
        constraints: Sequence[Constraint] = (),
        guides: Sequence[Any] | None = None,
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
        warm_start: float,
        constraints: Sequence[Constraint] = (),
        guides: Sequence[Any] | None = None,
        max_speed_errors: np.ndarray | None = None,
    ) -> list[Plan]:
        """A plan for each environment that starts from the rest of the one before."""
        ...


class Episodes:
    """Episodes in a batch of environments: their goals, the plans that they follow, and their progress.

    Rules of replanning read the attributes and request new plans by `plan`, `plan_sooner` and `plan_warm`.

    Args:
        planner: makes the plans.
        controller: follows them.
        generator: source of the noise in plans.

    Attributes:
        controller: follows the plans.
        goals: float[num_envs, goal_dim]; None if episodes have no goal.
        plans: the plan followed in each environment.
        env_steps: steps since each episode began, int[num_envs].
        steps_on_plan: steps since each environment switched to its plan, int[num_envs].
        max_speed_errors: largest speed error of a consistent plan, float[num_envs]; rules may make it stricter.
        num_plans: how often each environment was planned for, int[num_envs]; this includes searches for a sooner plan
            that found none.
        plan_seconds: seconds spent planning, over all environments.
    """

    def __init__(self, planner: PlannerLike, controller: Controller, generator: torch.Generator) -> None:
        self.controller = controller
        self.goals: np.ndarray | None = None
        self.plans: list[Plan] = []
        self.num_plans = self.env_steps = self.steps_on_plan = np.zeros(0, dtype=int)
        self.max_speed_errors = np.zeros(0)
        self.plan_seconds = 0.0
        self._planner = planner
        self._generator = generator
        self._constraints: tuple[Constraint, ...] = ()
        self._guides: tuple[Any, ...] = ()
        self._make_stage: MakeStage | None = None

    @property
    def arrives(self) -> bool:
        """Whether plans end on a goal."""
        return self.goals is not None and bool(self._planner.config.goal_columns)

    @property
    def shortest_horizon(self) -> int:
        """Transitions of the shortest plan that the model can make."""
        return max(self._planner.config.network.min_horizon, 2)

    def ask(
        self, constraints: Sequence[Constraint], guides: Sequence[Any], make_stage: MakeStage | None = None
    ) -> None:
        """See `PlanningPolicy.ask`."""
        for constraint in constraints:
            if not (isinstance(constraint, Bounds) or constraint.per_second or _is_last(constraint)):
                raise PlanningError(
                    "constraints of an episode: expected Bounds, Fixed at the last step (step=-1 or fraction=1) or "
                    f"Fixed with values per second, which hold in every new plan, got {constraint}; plan such ones by "
                    "Planner.plan"
                )
        self._constraints, self._guides, self._make_stage = tuple(constraints), tuple(guides), make_stage

    def start(self, observations: np.ndarray, goals: np.ndarray | None) -> None:
        """Plan in every environment. Goals are ignored if the model has no goal columns."""
        num = len(observations)
        self.goals = None if goals is None or not self._planner.config.goal_value_columns else np.array(goals)
        self.env_steps, self.steps_on_plan, self.num_plans = np.zeros((3, num), dtype=int)
        self.max_speed_errors = np.full(num, find_speed_limit(self._planner.settings))
        self.plan_seconds = 0.0
        self.plans = self._plan(observations, np.arange(num))
        self.controller.reset(self.plans)

    def act(self, observations: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """Actions float32[num, action_dim] for the observations of some environments."""
        self.env_steps[envs] += 1
        self.steps_on_plan[envs] += 1
        return self.controller.act(observations, envs)

    def plan(self, observations: np.ndarray, envs: np.ndarray) -> None:
        """Switch to new plans in some environments; observations float[num_envs, …] are those of all environments."""
        for i, plan in zip(envs, self._plan(observations, envs), strict=True):
            self._change_over(int(i), plan)

    def plan_sooner(self, observations: np.ndarray, envs: np.ndarray) -> None:
        """Switch to new plans where they arrive sooner than the present ones."""
        horizons = self.controller.sooner_horizons(envs)
        found = self._call(
            observations,
            envs,
            lambda wanted: self._planner.plan_within(
                observations[envs], self._goals_of(envs), self._generator, horizons, **wanted
            ),
        )
        for i, plan in zip(envs, found, strict=True):
            if plan is not None:
                self._change_over(int(i), plan)

    def plan_warm(self, observations: np.ndarray, envs: np.ndarray, warm_start: float) -> None:
        """Switch to new plans with a warm start from the rest of the present ones; see `Planner.replan`."""
        elapsed = self.controller.elapsed_env_steps()[envs]
        found = self._call(
            observations,
            envs,
            lambda wanted: self._planner.replan(
                [self.plans[i] for i in envs],
                elapsed,
                observations[envs],
                self._goals_of(envs),
                self._generator,
                warm_start=warm_start,
                **wanted,
            ),
        )
        for i, plan in zip(envs, found, strict=True):
            self._change_over(int(i), plan)

    def _plan(self, observations: np.ndarray, envs: np.ndarray) -> list[Plan]:
        return self._call(
            observations,
            envs,
            lambda wanted: self._planner.plan(observations[envs], self._goals_of(envs), self._generator, **wanted),
        )

    def _call(self, observations: np.ndarray, envs: np.ndarray, make: Callable[[dict[str, Any]], Found]) -> Found:
        """Call the planner with the constraints and guides of the episodes; counts the plans and the time."""
        wanted: dict[str, Any] = {"max_speed_errors": self.max_speed_errors[envs]}
        constraints, guides = [_take(constraint, envs) for constraint in self._constraints], self._guides
        since = time.perf_counter()
        if self._make_stage is not None:
            stage = self._make_stage(observations[envs], envs)
            constraints, guides = list(stage.constraints), tuple(stage.guides)
            if stage.goals is not None and self.goals is not None:
                self.goals[envs] = stage.goals
        if constraints:
            wanted["constraints"] = constraints
        if guides:
            wanted["guides"] = list(guides)
        found = make(wanted)
        self.plan_seconds += time.perf_counter() - since
        self.num_plans[envs] += 1
        return found

    def _goals_of(self, envs: np.ndarray) -> np.ndarray | None:
        return None if self.goals is None else self.goals[envs]

    def _change_over(self, i: int, plan: Plan) -> None:
        self.plans[i] = plan
        self.steps_on_plan[i] = 0
        self.controller.replace(i, plan)


def _is_last(constraint: Constraint) -> bool:
    """Whether a constraint fixes values at the last step of plans."""
    if not isinstance(constraint, Fixed):
        return False
    fraction = constraint.fraction
    return constraint.step == -1 or (fraction is not None and bool(np.all(np.asarray(fraction) == 1)))


def _take(constraint: Constraint, envs: np.ndarray) -> Constraint:
    """The part of a constraint that is for some of the environments."""
    if isinstance(constraint, Bounds):
        return constraint
    values = np.asarray(constraint.values)
    return replace(
        constraint,
        values=values[envs] if values.ndim == 2 else values,
        fraction=constraint.fraction if constraint.fractions is None else constraint.fractions[envs],
    )

"""What a plan must satisfy, in environment units, and its translation into constraints in model space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from diffplan.diffusion.constraints import Constraints, bound, fix, no_constraints
from diffplan.errors import PlanningError
from diffplan.planning.constraints import Bounds, Constraint, Fixed, check_bounds, check_fixed
from diffplan.planning.model import PlanningModel


@dataclass(frozen=True)
class Placed:
    """Values at one step of each plan.

    Attributes:
        steps: int[batch].
        columns: observation columns.
        values: float32[batch, columns].
    """

    steps: np.ndarray
    columns: list[int]
    values: np.ndarray


def find_lengths(lengths: np.ndarray, device: torch.device | str = "cpu") -> Tensor | None:
    """Horizons of plans, int[batch], as samplers and guides take them: None if all are alike."""
    return torch.from_numpy(lengths).to(device) if (lengths != lengths[0]).any() else None


@dataclass(frozen=True)
class Problem:
    """What a batch of plans must satisfy, in environment units; arrays have been checked.

    Attributes:
        observations: what the plans begin with, float32[batch, observation_dim]; 0 in relative columns.
        goals: what they end on, float32[batch, goal_columns]; None for no goal.
        goal_columns: observation columns that a goal gives values for.
        end_columns: observation columns that are fixed at the end of a plan to a goal; to 0 if the goal has no value.
        position_columns: observation columns that are positions.
        step_seconds: seconds between two steps of a plan; None if not known, or not the same for all steps.
        times: seconds from now to a step of a plan, from int[...] to float[...]; None if not known.
        fixed: further fixed values.
        bounds: bounds.
    """

    observations: np.ndarray
    goals: np.ndarray | None
    goal_columns: tuple[int, ...]
    end_columns: tuple[int, ...]
    position_columns: tuple[int, ...]
    step_seconds: float | None
    times: Callable[[np.ndarray], np.ndarray] | None = None
    fixed: tuple[Fixed, ...] = ()
    bounds: tuple[Bounds, ...] = ()

    def __len__(self) -> int:
        return len(self.observations)

    @classmethod
    def make(
        cls,
        observations: np.ndarray,
        goals: np.ndarray | None,
        constraints: Sequence[Constraint],
        model: PlanningModel,
    ) -> Problem:
        """Check the arguments of a planner, and make a problem of them.

        Raises:
            PlanningError: arrays of the wrong shape, values that are not finite, unknown columns, or goals or times in
                seconds for a model that does not support them.
        """
        positions, observation_dim = model.env.position_columns, model.layout.observation_dim
        observations = np.asarray(observations, dtype=np.float32)
        if observations.ndim != 2 or observations.shape[1] != observation_dim:
            raise PlanningError(f"observations: expected shape (batch, {observation_dim}), got {observations.shape}")
        if model.relative_columns:
            observations = observations.copy()
            observations[:, model.relative_columns] = 0.0
        num, goal_dim = len(observations), len(model.goal_columns)
        if goals is not None:
            if not goal_dim:
                raise PlanningError(
                    "goals: expected none, for this model knows no goal columns; train with --windows.goal_columns, or "
                    "say by constraints and guides what plans should reach"
                )
            goals = np.asarray(goals, dtype=np.float32)
            if goals.shape != (num, goal_dim):
                raise PlanningError(f"goals: expected shape ({num}, {goal_dim}), got {goals.shape}")
        if not (np.isfinite(observations).all() and (goals is None or np.isfinite(goals).all())):
            raise PlanningError("observations and goals: expected finite numbers, got NaN or infinity")
        fixed = tuple(check_fixed(c, positions, num, observation_dim) for c in constraints if isinstance(c, Fixed))
        bounds = tuple(check_bounds(c, positions, observation_dim) for c in constraints if isinstance(c, Bounds))
        if len(fixed) + len(bounds) != len(constraints):
            other = next(c for c in constraints if not isinstance(c, Fixed | Bounds))
            raise PlanningError(f"constraints: expected Fixed and Bounds, got {type(other).__name__}")
        if model.step_seconds is None and any(f.seconds is not None for f in fixed):
            raise PlanningError(
                "Fixed: expected a step or a fraction, got seconds, but how long a step takes is not known here; set "
                "env.step_seconds in training"
            )
        if model.env.step_seconds is None and any(f.per_second for f in fixed):
            raise PlanningError(
                "Fixed: expected values as they are, got values per second, but how long a step takes is not known "
                "here; set env.step_seconds in training"
            )
        return cls(
            observations=observations,
            goals=goals,
            goal_columns=model.goal_columns,
            end_columns=model.end_columns,
            position_columns=positions,
            step_seconds=model.step_seconds,
            times=model.find_times,
            fixed=fixed,
            bounds=bounds,
        )

    def take(self, rows: np.ndarray) -> Problem:
        """The same for some of the batch, in that order."""
        return replace(
            self,
            observations=self.observations[rows],
            goals=None if self.goals is None else self.goals[rows],
            fixed=tuple(
                replace(
                    f,
                    values=np.asarray(f.values)[rows],
                    fraction=f.fraction if f.fractions is None else f.fractions[rows],
                )
                for f in self.fixed
            ),
        )

    def place(self, lengths: np.ndarray) -> list[Placed]:
        """Everything that is fixed, at the steps of plans of these horizons, int[batch].

        Raises:
            PlanningError: a time outside of a plan.
        """
        zero = np.zeros(len(self), dtype=int)
        placed = [Placed(zero, list(range(self.observations.shape[1])), self.observations)]
        if self.goals is not None:
            last = np.zeros_like(self.observations)
            last[:, list(self.goal_columns)] = self.goals
            placed.append(Placed(lengths - 1, list(self.end_columns), last[:, list(self.end_columns)]))
        for fixed in self.fixed:
            steps, columns, values = self.steps_of(fixed, lengths), list(fixed.columns or ()), np.asarray(fixed.values)
            if fixed.per_second:
                assert self.times is not None  # refused without
                values = self.observations[:, columns] + (values * self.times(steps)[:, None]).astype(np.float32)
            placed.append(Placed(steps, columns, values))
        return placed

    def steps_of(self, fixed: Fixed, lengths: np.ndarray) -> np.ndarray:
        """The step of each plan at which a value is fixed, int[batch]; raises `PlanningError` outside of a plan."""
        if fixed.step is not None:
            steps = np.where(fixed.step < 0, lengths + fixed.step, fixed.step)
        elif fixed.seconds is not None:
            steps = np.full(len(lengths), self._step_at(fixed.seconds))
        elif fixed.fraction is not None:
            steps = np.rint(np.asarray(fixed.fraction) * (lengths - 1)).astype(int)
        else:
            raise PlanningError("Fixed: expected a time (step, seconds or fraction), got none; give one")
        if ((steps < 0) | (steps >= lengths)).any():
            raise PlanningError(
                f"Fixed: expected a time within the plan, got step {int(steps.max())} of a plan of horizon "
                f"{int(lengths.min())}; ask for a longer horizon"
            )
        return steps

    @property
    def last_timed_step(self) -> int:
        """The last step at a fixed time from now; plans must reach it."""
        steps = [fixed.step for fixed in self.fixed if fixed.step is not None]
        steps += [self._step_at(fixed.seconds) for fixed in self.fixed if fixed.seconds is not None]
        return max([step if step >= 0 else -step - 1 for step in steps], default=0)

    def _step_at(self, seconds: float) -> int:
        assert self.step_seconds is not None  # times in seconds are refused without
        return round(seconds / self.step_seconds)

    def find_contradiction(self, horizon: int) -> int | None:
        """A step at which two different values are fixed; None if there is none. The horizon must reach every step."""
        timed = replace(self, fixed=tuple(fixed for fixed in self.fixed if fixed.is_timed))
        if not timed.fixed and horizon > 1:
            return None  # a start and a goal do not meet
        known = np.full((len(self), horizon, self.observations.shape[1]), np.nan, dtype=np.float32)
        rows = np.arange(len(self))[:, None]
        for placed in timed.place(np.full(len(self), horizon)):
            before = known[rows, placed.steps[:, None], placed.columns]
            contradicted = (~np.isnan(before) & (before != placed.values)).any(axis=1)
            if contradicted.any():
                return int(placed.steps[contradicted][0])
            known[rows, placed.steps[:, None], placed.columns] = placed.values
        return None

    def constrain(self, lengths: np.ndarray, model: PlanningModel) -> Constraints:
        """The constraints in model space.

        Args:
            lengths: horizon of each plan, int[batch].
            model: the diffusion model.

        Raises:
            PlanningError: fixed values and bounds contradict each other.
        """
        layout = model.layout
        horizon, of_each = int(lengths.max()), find_lengths(lengths)
        ragged = of_each is not None
        constraints = no_constraints(len(self), horizon, layout.transition_dim, of_each)
        try:
            for number, placed in enumerate(self.place(lengths)):
                whole = np.zeros_like(self.observations)
                whole[:, placed.columns] = placed.values
                values = model.normalize_at(whole, placed.steps, self.observations)[:, placed.columns]
                steps = (
                    torch.from_numpy(placed.steps)
                    if ragged or (placed.steps != placed.steps[0]).any()
                    else int(placed.steps[0])
                )
                columns = layout.observation_columns(tuple(placed.columns))
                if number == 0 and layout.has_flag:  # the episode goes on at the first step
                    columns, values = [*columns, layout.flag], torch.cat([values, torch.ones(len(self), 1)], dim=1)
                constraints = fix(constraints, steps, columns, values)
            for bounds in self.bounds:
                columns = list(bounds.columns or ())
                stop = horizon if bounds.last_step is None else min(bounds.last_step + 1, horizon)
                parts = [slice(bounds.first_step, stop)]
                if model.normalizer.deltas is not None:  # bounds on changes differ between steps and plans
                    parts = [slice(step, step + 1) for step in range(bounds.first_step, stop)]
                for steps in parts:
                    low, high = (
                        self._normalize_bounds(b, columns, steps.start, model) for b in (bounds.low, bounds.high)
                    )
                    constraints = bound(constraints, layout.observation_columns(tuple(columns)), low, high, steps)
        except ValueError as error:
            raise PlanningError(str(error)) from None
        return constraints

    def _normalize_bounds(
        self, limits: float | Sequence[float], columns: list[int], step: int, model: PlanningModel
    ) -> Tensor:
        """Bounds of columns at a step in model space, float[1 or batch, columns]; infinite ones stay infinite."""
        first = self.observations[:1] if model.normalizer.deltas is None else self.observations
        values = np.broadcast_to(np.asarray(limits, dtype=np.float32), (len(columns),))
        whole = np.zeros_like(first)
        whole[:, columns] = np.where(np.isfinite(values), values, 0.0)
        normalized = model.normalize_at(whole, np.full(len(first), step), first)[:, columns]
        infinite = torch.from_numpy(np.where(np.isfinite(values), 0.0, values).astype(np.float32))[None]
        return torch.where(torch.isinf(infinite), infinite, normalized)

    def impose(self, plans: np.ndarray, lengths: np.ndarray) -> None:
        """Write fixed values and bounds into plans again, in place: normalising and back loses the last bits.

        Args:
            plans: float32[batch, horizon, observation_dim].
            lengths: horizon of each plan, int[batch].
        """
        for bounds in self.bounds:
            columns = list(bounds.columns or ())
            stop = None if bounds.last_step is None else bounds.last_step + 1
            part = plans[:, bounds.first_step : stop, columns]
            plans[:, bounds.first_step : stop, columns] = np.clip(part, bounds.low, bounds.high)
        rows = np.arange(len(plans))
        for placed in self.place(lengths):
            plans[rows[:, None], placed.steps[:, None], placed.columns] = placed.values

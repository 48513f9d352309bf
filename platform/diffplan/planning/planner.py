"""From observations and goals to plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from diffplan.config import Config, PlanningConfig
from diffplan.data.normalization import Normalizer
from diffplan.diffusion.denoiser import Denoiser
from diffplan.diffusion.guidance import Guide, PlanBatch
from diffplan.diffusion.guide_expressions import parse_guides
from diffplan.diffusion.guides import as_guide, weighted_sum
from diffplan.errors import PlanningError
from diffplan.layout import Layout
from diffplan.planning.horizon_model import HorizonModel
from diffplan.planning.problem import Constraint, Problem
from diffplan.planning.sampling import Asked, sample_plans
from diffplan.planning.search import search_horizons
from diffplan.planning.settings_check import check_settings
from diffplan.planning.support import Support
from diffplan.planning.warm_start import keep_rest
from diffplan.planning.waypoints import has_untimed, plan_untimed
from diffplan.types import Plan

GuideLike = Guide | Callable[[PlanBatch], Tensor] | str


class Planner:
    """Plans with a trained model, for a batch of environments at once.

    Args:
        config: the experiment that the model was trained in.
        layout: columns of a transition.
        denoiser: the model.
        normalizer: between environment units and model space.
        settings: how to plan; None for those of the config.
        horizon_model: predicts which horizon will be consistent; needed by `horizon_rule="predict"`.
        inverse_dynamics: (observations, next observations) -> actions, for the controller of that name.
        support: where the data have been; None where that is not known, and `max_departure` is not asked for.
        return_range: returns that the network was told as 0 and as 1, where it is conditioned on returns.
        value: a learned value, added to the guides of the settings; on the device already.
        device: where the model denoises. Everything that is given and returned is on the CPU, and so is the noise
            drawn, which is therefore the same on every device.

    Raises:
        PlanningError: settings that the model cannot serve.
    """

    def __init__(
        self,
        config: Config,
        layout: Layout,
        denoiser: Denoiser,
        normalizer: Normalizer,
        settings: PlanningConfig | None = None,
        *,
        horizon_model: HorizonModel | None = None,
        inverse_dynamics: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
        support: Support | None = None,
        return_range: tuple[float, float] | None = None,
        value: Guide | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config
        self.layout = layout
        self.device = torch.device(device)
        self.denoiser = denoiser.eval().to(self.device)
        self.normalizer = normalizer
        self.settings = config.planning if settings is None else settings
        self.horizon_model = horizon_model
        self.inverse_dynamics = inverse_dynamics
        self.support = support
        self.return_range = return_range
        check_settings(self)
        self.value = value
        own = [parse_guides(self.settings.guides)] if self.settings.guides else []
        own += [] if value is None else [value]
        self._guide = weighted_sum(*((1.0, guide) for guide in own)) if own else None
        self._steps = denoiser.schedule.sampling_steps(self.settings.num_sampling_steps, self.settings.step_spacing)

    @property
    def step_seconds(self) -> float:
        """Seconds between two steps of a plan."""
        return self.config.windows.stride * self.config.env.step_seconds

    def plan(
        self,
        observations: np.ndarray,
        goals: np.ndarray | None,
        generator: torch.Generator,
        *,
        constraints: Sequence[Constraint] = (),
        guides: Sequence[GuideLike] | None = None,
        guidance_scale: float | None = None,
        horizons: Sequence[int] | None = None,
        num_candidates: int | None = None,
        max_speed_errors: np.ndarray | None = None,
        keep_denoising: bool = False,
    ) -> list[Plan]:
        """Plan from observations, to goals where there are any.

        For each environment the shortest horizon that yields a consistent plan is taken; if none does, the longest.

        Args:
            observations: float[batch, observation_dim] in environment units.
            goals: float[batch, len(position_columns)], positions to end at; None for no goal.
            generator: source of the noise.
            constraints: further values that are fixed (`Fixed`) and bounds that are kept (`Bounds`).
            guides: what is maximised, summed: guides, functions of a `PlanBatch`, expressions or import paths; None for
                those of the settings.
            guidance_scale: strength of the guides; None for that of the settings, or 1 if that is 0 and guides are
                given.
            horizons: horizons to try, in transitions; None for those of the settings.
            num_candidates: plans drawn for each horizon; None for that of the settings.
            max_speed_errors: float[batch], what counts as consistent in each environment; None for the settings'.
            keep_denoising: keep the way from noise to plan as well.

        Returns:
            A plan for each environment.

        Raises:
            PlanningError: arrays of the wrong shape or with values that are not finite, horizons that the model cannot
                hold, or constraints that contradict each other.
            ConfigError: an expression that is no guide.
        """
        problem = self._make_problem(observations, goals, constraints)
        asked = self._ask(generator, guides, guidance_scale, num_candidates, keep_denoising)
        limits = self._limits(max_speed_errors, len(problem))
        candidates = self._check_horizons(problem, self.settings.horizons if horizons is None else tuple(horizons))
        if has_untimed(problem):
            return plan_untimed(self, problem, candidates, limits, asked, self._steps, given=horizons is not None)
        ladder, first, predicted = self.choose_ladder(problem, candidates, limits, given=horizons is not None)
        return search_horizons(self, problem, ladder, first, limits, asked, self._steps, predicted=predicted)

    def plan_within(
        self,
        observations: np.ndarray,
        goals: np.ndarray,
        generator: torch.Generator,
        max_horizons: np.ndarray,
        *,
        max_speed_errors: np.ndarray | None = None,
    ) -> list[Plan | None]:
        """Consistent plans of at most given horizons, as `plan` makes them; no time is spent on longer ones.

        Args:
            observations: as for `plan`.
            goals: as for `plan`.
            generator: as for `plan`.
            max_horizons: the longest plan that is of use in each environment, in transitions, int[batch].
            max_speed_errors: as for `plan`.

        Returns:
            For each environment a plan, or None: no plan that short was consistent, or is foreseen to be.

        Raises:
            PlanningError: as for `plan`; as many horizons as observations are expected.
        """
        problem = self._make_problem(observations, goals, ())
        asked = self._ask(generator, None, None, None, keep_denoising=False)
        limits = self._limits(max_speed_errors, len(problem))
        if np.shape(max_horizons) != (len(problem),):
            raise PlanningError(
                f"max_horizons: expected shape ({len(problem)},), one for each observation, "
                f"got {np.shape(max_horizons)}"
            )
        candidates = self._check_horizons(problem, self.settings.horizons)
        plans: list[Plan | None] = [None] * len(problem)
        num_rungs = np.searchsorted(candidates, max_horizons, side="right")
        if not num_rungs.any():
            return plans
        ladder, first, predicted = self.choose_ladder(problem, candidates, limits)
        rows = np.flatnonzero(first < num_rungs)
        found = search_horizons(
            self,
            problem.take(rows),
            ladder[rows],
            first[rows],
            limits[rows],
            asked,
            self._steps,
            predicted=predicted,
            num_rungs=num_rungs[rows],
        )
        for row, plan in zip(rows, found, strict=True):
            plans[row] = plan if plan.consistent else None
        return plans

    def choose_ladder(
        self, problem: Problem, horizons: tuple[int, ...], limits: np.ndarray, *, given: bool = False
    ) -> tuple[np.ndarray, np.ndarray, bool]:
        """The horizons to try for each plan, which to begin with, and whether that one was predicted.

        Args:
            problem: what is asked.
            horizons: the horizons, ascending.
            limits: speed errors up to which plans are consistent, float[batch].
            given: whether the caller chose the horizons, so that all of them are to be tried.

        Returns:
            int[batch, rungs], int[batch] and whether the horizon model was asked.
        """
        ladder = np.tile(horizons, (len(problem), 1))
        model, goals = self.horizon_model, problem.goals
        # What a horizon model was taught are plans from a start to a goal and nothing else.
        if (
            model is None
            or goals is None
            or given
            or problem.fixed
            or problem.bounds
            or self.settings.horizon_rule == "scan"
        ):
            return ladder, np.zeros(len(problem), dtype=int), False
        departure = self.settings.max_departure if self.support is not None else 0.0
        return ladder, model.first_consistent(problem.observations, goals, horizons, limits, departure), True

    @property
    def shortest_horizon(self) -> int:
        """Transitions of the shortest plan that the network can hold."""
        return max(self.config.network.min_horizon, 2)

    def plan_horizon(
        self,
        observations: np.ndarray,
        goals: np.ndarray | None,
        horizon: int,
        generator: torch.Generator,
        **asked: object,
    ) -> list[Plan]:
        """Plan with one given horizon; takes what `plan` does."""
        return self.plan(observations, goals, generator, horizons=(horizon,), **asked)  # type: ignore[arg-type]

    def replan(
        self,
        previous: Sequence[Plan],
        elapsed_env_steps: np.ndarray,
        observations: np.ndarray,
        goals: np.ndarray | None,
        generator: torch.Generator,
        *,
        constraints: Sequence[Constraint] = (),
        guides: Sequence[GuideLike] | None = None,
        guidance_scale: float | None = None,
        max_speed_errors: np.ndarray | None = None,
    ) -> list[Plan]:
        """Plan from what is left of the plans before: noise it to `warm_start_level` and denoise it again.

        A plan to a goal gets shorter by what has elapsed, and still arrives when it was to; one without a goal keeps
        its horizon, and its last step stands for what comes after. Few denoising steps are enough, for most of the plan
        is there already. Source: Janner et al. 2022, section 5.4 (warm-starting).

        Args:
            previous: the plan that was followed in each environment.
            elapsed_env_steps: environment steps since it was made, int[batch].
            observations: as for `plan`.
            goals: as for `plan`.
            generator: as for `plan`.
            constraints: as for `plan`, with times from now.
            guides: as for `plan`.
            guidance_scale: as for `plan`.
            max_speed_errors: as for `plan`.

        Returns:
            A plan for each environment, of one candidate.

        Raises:
            PlanningError: as for `plan`; as many plans and elapsed steps as observations are expected.
        """
        problem = self._make_problem(observations, goals, constraints)
        asked = replace(self._ask(generator, guides, guidance_scale, 1, keep_denoising=False), repair=True)
        if not len(previous) == len(elapsed_env_steps) == len(problem):
            raise PlanningError(
                f"replan: expected {len(problem)} plans and elapsed steps, one for each observation, "
                f"got {len(previous)} and {len(elapsed_env_steps)}"
            )
        if has_untimed(problem):
            raise PlanningError(
                "replan: expected a time (step, seconds or fraction) of every Fixed, got none; give one"
            )
        if np.min(elapsed_env_steps, initial=0) < 0:
            raise PlanningError(f"replan: expected elapsed steps of at least 0, got {np.min(elapsed_env_steps)}")
        shortest = None if goals is None else self.shortest_horizon
        stride = self.config.windows.stride
        rest, lengths = keep_rest(previous, elapsed_env_steps, self.config.env, self.layout, stride, shortest)
        initial = torch.from_numpy(self.normalizer.normalize(rest))
        schedule = self.denoiser.schedule
        first = max(round(self.settings.warm_start_level * schedule.num_diffusion_steps) - 1, 0)
        num_steps = min(max(self.settings.warm_start_steps, 1), first + 1)
        steps = schedule.sampling_steps(num_steps, self.settings.step_spacing, first)
        limits = self._limits(max_speed_errors, len(problem))
        return sample_plans(self, problem, lengths, limits, asked, steps, initial)

    def _make_problem(
        self, observations: np.ndarray, goals: np.ndarray | None, constraints: Sequence[Constraint]
    ) -> Problem:
        return Problem.make(
            observations,
            goals,
            constraints,
            self.config.env,
            self.config.goal_columns,
            self.step_seconds,
            self.layout.observation_dim,
        )

    def _ask(
        self,
        generator: torch.Generator,
        guides: Sequence[GuideLike] | None,
        guidance_scale: float | None,
        num_candidates: int | None,
        keep_denoising: bool,
    ) -> Asked:
        settings = self.settings
        scale = settings.guidance_scale if guidance_scale is None else guidance_scale
        if not (np.isfinite(scale) and scale >= 0):
            raise PlanningError(f"guidance_scale: expected a number >= 0, got {scale}")
        if isinstance(guides, str):
            raise PlanningError(f"guides: expected several in a list, got the text {guides!r}; write [{guides!r}]")
        if guides is None:
            guide = self._guide if scale or settings.selection == "guide" else None
        else:
            try:
                chosen = [parse_guides((g,)) if isinstance(g, str) else as_guide(g) for g in guides]
            except ValueError as error:
                raise PlanningError(f"guides: {error}") from None
            guide = weighted_sum(*((1.0, g) for g in chosen)) if chosen else None
            if guidance_scale is None and not settings.guidance_scale:
                scale = 1.0
        num = settings.num_candidates if num_candidates is None else num_candidates
        if num < 1:
            raise PlanningError(f"num_candidates: expected at least 1, got {num}")
        return Asked(generator, guide, scale, num, keep_denoising)

    def _limits(self, max_speed_errors: np.ndarray | None, num: int) -> np.ndarray:
        if max_speed_errors is None:
            return np.full(num, float(self.settings.max_speed_error))
        limits = np.asarray(max_speed_errors, dtype=np.float64)
        if limits.shape != (num,):
            raise PlanningError(
                f"max_speed_errors: expected shape ({num},), one for each observation, got {limits.shape}"
            )
        return limits

    def _check_horizons(self, problem: Problem, horizons: tuple[int, ...]) -> tuple[int, ...]:
        shortest = self.shortest_horizon
        if not horizons or min(horizons) < shortest:
            raise PlanningError(
                f"horizons: expected numbers of at least {shortest}, the shortest plan that this network can hold, "
                f"got {horizons}"
            )
        enough = tuple(sorted(h for h in set(horizons) if h > problem.last_timed_step))
        if not enough:
            raise PlanningError(
                f"Fixed: expected a time within the plan, got step {problem.last_timed_step} of a plan of horizon "
                f"{max(horizons)} at most; ask for a longer horizon"
            )
        # One in which two values meet at a step, such as a way-point and the goal, is as good as too short.
        contradictions = {h: problem.find_contradiction(h) for h in enough}
        if None not in contradictions.values():
            raise PlanningError(
                f"Fixed: step {contradictions[enough[-1]]} was fixed before to other values; remove one of the two"
            )
        return tuple(h for h in enough if contradictions[h] is None)

    def normalize_observations(self, observations: np.ndarray) -> Tensor:
        """Observations in model space, float32[batch, observation_dim], from those in environment units."""
        if not self.layout.action_dim:
            return torch.from_numpy(self.normalizer.normalize(observations))
        transitions = np.zeros((len(observations), self.layout.transition_dim), dtype=np.float32)
        transitions[:, self.layout.observations] = observations
        return torch.from_numpy(self.normalizer.normalize(transitions)[:, self.layout.observations])


def with_settings(planner: Planner, **changes: object) -> Planner:
    """The same model planning with some settings changed."""
    return Planner(
        planner.config,
        planner.layout,
        planner.denoiser,
        planner.normalizer,
        replace(planner.settings, **changes),  # type: ignore[arg-type]
        horizon_model=planner.horizon_model,
        inverse_dynamics=planner.inverse_dynamics,
        support=planner.support,
        return_range=planner.return_range,
        value=planner.value,
        device=planner.device,
    )

"""From observations and goals to plans."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from diffplan.config import Config, HeadControl, PlanningConfig, with_overrides
from diffplan.data.windows.normalization import Normalizer
from diffplan.diffusion.denoiser import Denoiser
from diffplan.diffusion.guidance import Guide
from diffplan.errors import PlanningError
from diffplan.layout import Layout
from diffplan.planning.companions.action_head import ActionHeads
from diffplan.planning.companions.horizon_model import HorizonModel
from diffplan.planning.companions.support import Support
from diffplan.planning.consistency import find_speed_limit
from diffplan.planning.constraints import Constraint
from diffplan.planning.guidance import GuideLike, choose_guide, score_plans, sum_own_guides
from diffplan.planning.ladder import Ladder, choose_ladder, find_possible_horizons
from diffplan.planning.legs import draw_in_legs
from diffplan.planning.model import PlanningModel
from diffplan.planning.problem import Problem
from diffplan.planning.refining import find_projection, fix_ends, leaves_end
from diffplan.planning.sampling import PlanRequest, sample_plans
from diffplan.planning.search import search_horizons
from diffplan.planning.selection import AVERAGES
from diffplan.planning.settings_check import check_settings
from diffplan.planning.warm_start import check_previous, choose_steps, keep_rest
from diffplan.planning.waypoints import has_untimed, plan_untimed
from diffplan.types import Plan


class Planner:
    """Plans with a trained model, for a batch of environments; hands each part of this package what it needs.

    Args:
        config: the experiment that the model was trained in.
        layout: columns of a transition.
        denoiser: the model.
        normalizer: between environment units and model space.
        settings: how to plan; None for those of the config.
        horizon_model: predicts which horizon will be consistent; needed by `planning.horizon.rule predict`.
        inverse_dynamics: (observations, next observations) -> actions, for the controller of that name.
        support: positions that the data have visited; None if not known: `planning.horizon.max_departure` is then
            ignored.
        return_range: returns that were normalised to 0 and to 1, if the network is conditioned on returns.
        value: a learned value, added to the guides of the settings; on the device already.
        action_heads: for the controller `action_head`.
        device: where the model denoises. Inputs and outputs are on the CPU, and noise is drawn there too, so it is
            the same on every device.

    Attributes:
        model: the model with its columns, units and steps.

    Raises:
        PlanningError: settings that the model does not support.
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
        action_heads: ActionHeads | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config
        self.model = PlanningModel.make(config, layout, denoiser, normalizer, return_range=return_range, device=device)
        self.settings = config.planning if settings is None else settings
        self.horizon_model = horizon_model
        self.inverse_dynamics = inverse_dynamics
        self.support = support
        self.value = value
        self.action_heads = action_heads
        check_settings(
            self.model,
            self.settings,
            has_horizon_model=horizon_model is not None,
            has_inverse_dynamics=inverse_dynamics is not None,
            has_action_heads=action_heads is not None,
        )
        self._own_guide = sum_own_guides(self.settings, value, config.env)
        refine = self.settings.selection.refine
        self._project = None if refine is None else find_projection(refine, config.env)
        sampling, schedule = self.settings.sampling, self.model.denoiser.schedule
        self._steps = schedule.sampling_steps(sampling.num_steps, sampling.step_spacing)

    @property
    def judges_consistency(self) -> bool:
        """Whether anything is known, and limited, that makes a plan inconsistent; if not, every plan is consistent."""
        limits = self.settings.horizon
        has_speeds = limits.max_speed_error is not None and bool(self.model.env.velocity_columns)
        return has_speeds or (limits.max_departure > 0 and self.support is not None)

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
        """Plan from observations, to goals if there are any.

        Each environment gets the shortest horizon that yields a consistent plan; if none does, the longest.

        Args:
            observations: float[batch, observation_dim] in environment units.
            goals: values of the goal columns (`PlanningModel.goal_columns`) that plans end on, float[batch, goal_dim];
                None for no goal.
            generator: source of the noise.
            constraints: further fixed values (`Fixed`) and bounds (`Bounds`).
            guides: guides to maximise the sum of: guide objects, functions of a `PlanBatch`, expressions or import
                paths; None for those of the settings.
            guidance_scale: strength of the guides; None for that of the settings, or 1 if that is 0 and guides are
                given.
            horizons: horizons to try, in transitions; None for those of the settings.
            num_candidates: plans drawn for each horizon; None for that of the settings.
            max_speed_errors: largest speed error of a consistent plan in each environment, float[batch]; None for that
                of the settings.
            keep_denoising: also keep the plan after each denoising step.

        Returns:
            A plan for each environment.

        Raises:
            PlanningError: arrays of the wrong shape or with values that are not finite, horizons that the model cannot
                hold, or constraints that contradict each other.
            ConfigError: an expression that is no guide.
        """
        problem = Problem.make(observations, goals, constraints, self.model)
        request = self._request(generator, guides, guidance_scale, num_candidates, keep_denoising)
        limits = self._limits(max_speed_errors, len(problem))
        tried = find_possible_horizons(
            problem, self.settings.horizon.tried if horizons is None else tuple(horizons), self.model.shortest_horizon
        )

        def search(part: Problem) -> list[Plan]:
            # The horizon model does not skip horizons that the caller names.
            ladder = self._choose_ladder(part, tried, limits, predict=horizons is None)
            return self._search(part, ladder, limits, request)

        if has_untimed(problem):
            return self._rescore(request.guide, problem, plan_untimed(problem, search))
        return search(problem)

    def plan_within(
        self,
        observations: np.ndarray,
        goals: np.ndarray | None,
        generator: torch.Generator,
        max_horizons: np.ndarray,
        *,
        constraints: Sequence[Constraint] = (),
        guides: Sequence[GuideLike] | None = None,
        guidance_scale: float | None = None,
        max_speed_errors: np.ndarray | None = None,
    ) -> list[Plan | None]:
        """Consistent plans of at most given horizons, as `plan` makes them; no time is spent on longer ones.

        Args:
            observations: as for `plan`.
            goals: as for `plan`.
            generator: as for `plan`.
            max_horizons: the longest horizon to try in each environment, in transitions, int[batch].
            constraints: as for `plan`, each with a time.
            guides: as for `plan`.
            guidance_scale: as for `plan`.
            max_speed_errors: as for `plan`.

        Returns:
            For each environment a plan; None if no plan that short was consistent, or the horizon model predicts none.

        Raises:
            PlanningError: as for `plan`; as many horizons as observations are expected.
        """
        problem = Problem.make(observations, goals, constraints, self.model)
        request = self._request(generator, guides, guidance_scale)
        _refuse_untimed(problem, "plan_within")
        limits = self._limits(max_speed_errors, len(problem))
        if np.shape(max_horizons) != (len(problem),):
            raise PlanningError(
                f"max_horizons: expected shape ({len(problem)},), one for each observation, "
                f"got {np.shape(max_horizons)}"
            )
        horizons = find_possible_horizons(problem, self.settings.horizon.tried, self.model.shortest_horizon)
        plans: list[Plan | None] = [None] * len(problem)
        stop = np.searchsorted(horizons, max_horizons, side="right")
        if not stop.any():
            return plans
        ladder = replace(self._choose_ladder(problem, horizons, limits), stop=stop)
        rows = np.flatnonzero(ladder.first < stop)
        found = self._search(problem.take(rows), ladder.take(rows), limits[rows], request)
        for row, plan in zip(rows, found, strict=True):
            plans[row] = plan if plan.consistent else None
        return plans

    def plan_horizon(
        self,
        observations: np.ndarray,
        goals: np.ndarray | None,
        horizon: int,
        generator: torch.Generator,
        **named: object,
    ) -> list[Plan]:
        """Plan with one given horizon; other arguments as for `plan`."""
        return self.plan(observations, goals, generator, horizons=(horizon,), **named)  # type: ignore[arg-type]

    def replan(
        self,
        previous: Sequence[Plan],
        elapsed_env_steps: np.ndarray,
        observations: np.ndarray,
        goals: np.ndarray | None,
        generator: torch.Generator,
        *,
        warm_start: float = 0.3,
        constraints: Sequence[Constraint] = (),
        guides: Sequence[GuideLike] | None = None,
        guidance_scale: float | None = None,
        max_speed_errors: np.ndarray | None = None,
    ) -> list[Plan]:
        """Replan with a warm start: noise the remaining part of each previous plan in part and denoise it again.

        A plan to a goal is shortened by the elapsed steps and keeps its time of arrival. A plan without a goal keeps
        its horizon: its last step is repeated at the end. Few denoising steps are enough, because most of the plan is
        there already. Source: Janner et al. 2022, section 5.4 (warm-starting).

        Args:
            previous: the plan that was followed in each environment.
            elapsed_env_steps: environment steps since that plan was made, int[batch].
            observations: as for `plan`.
            goals: as for `plan`.
            generator: as for `plan`.
            warm_start: share of the diffusion steps that the rest is noised to, in (0, 1]; the same share of the
                denoising steps, at least one, is taken again.
            constraints: as for `plan`, with times from now.
            guides: as for `plan`.
            guidance_scale: as for `plan`.
            max_speed_errors: as for `plan`.

        Returns:
            A plan for each environment: of one candidate, or of all where candidates are averaged.

        Raises:
            PlanningError: as for `plan`; as many plans and elapsed steps as observations are expected.
        """
        problem = Problem.make(observations, goals, constraints, self.model)
        check_previous(previous, elapsed_env_steps, len(problem))
        _refuse_untimed(problem, "replan")
        model, settings = self.model, self.settings
        steps = choose_steps(model, settings, warm_start)
        num = None if settings.selection.rule in AVERAGES else 1
        request = self._request(generator, guides, guidance_scale, num_candidates=num)
        rest, lengths = keep_rest(previous, elapsed_env_steps, model, has_goals=goals is not None)
        return self._sample(
            problem,
            lengths,
            self._limits(max_speed_errors, len(problem)),
            replace(request, diffusion_steps=steps, repair=True),
            initial=model.normalize_plans(rest),
        )

    def _request(
        self,
        generator: torch.Generator,
        guides: Sequence[GuideLike] | None = None,
        guidance_scale: float | None = None,
        num_candidates: int | None = None,
        keep_denoising: bool = False,
    ) -> PlanRequest:
        guide, scale = choose_guide(self.settings, self._own_guide, guides, guidance_scale, self.config.env)
        num = self.settings.selection.num_candidates if num_candidates is None else num_candidates
        if num < 1:
            raise PlanningError(f"num_candidates: expected at least 1, got {num}")
        return PlanRequest(generator, self._steps, guide, scale, num, keep_denoising)

    def _limits(self, max_speed_errors: np.ndarray | None, num: int) -> np.ndarray:
        if max_speed_errors is None:
            return np.full(num, find_speed_limit(self.settings))
        limits = np.asarray(max_speed_errors, dtype=np.float64)
        if limits.shape != (num,):
            raise PlanningError(
                f"max_speed_errors: expected shape ({num},), one for each observation, got {limits.shape}"
            )
        return limits

    def _choose_ladder(
        self, problem: Problem, horizons: tuple[int, ...], limits: np.ndarray, *, predict: bool = True
    ) -> Ladder:
        return choose_ladder(
            self.settings,
            problem,
            horizons,
            limits,
            horizon_model=self.horizon_model if predict else None,
            max_departure=self.settings.horizon.max_departure if self.support is not None else 0.0,
        )

    def _search(self, problem: Problem, ladder: Ladder, limits: np.ndarray, request: PlanRequest) -> list[Plan]:
        def draw(
            problem: Problem, lengths: np.ndarray, max_speed_errors: np.ndarray, *, repair: bool = False
        ) -> list[Plan]:
            return self._sample(problem, lengths, max_speed_errors, replace(request, repair=repair))

        return search_horizons(
            partial(draw_in_legs, self.model, draw, partial(self._rescore, request.guide)),
            problem,
            ladder,
            limits,
            num_candidates=request.num_candidates,
            may_repair=request.guidance_scale > 0,
        )

    def _sample(
        self,
        problem: Problem,
        lengths: np.ndarray,
        max_speed_errors: np.ndarray,
        request: PlanRequest,
        initial: torch.Tensor | None = None,
    ) -> list[Plan]:
        controller, head = self.settings.controller, None
        if self.action_heads is not None and isinstance(controller, HeadControl):
            head = self.action_heads.find(controller.reads)
        draw = partial(sample_plans, self.model, self.settings, support=self.support, action_head=head)
        # A warm start has the end of the plan before.
        if self._project is not None and initial is None and leaves_end(problem, lengths, self.model):
            num = self.settings.selection.num_drafts
            drafts = replace(request, guidance_scale=0.0, num_candidates=num, keep_denoising=False)
            problem = fix_ends(problem, draw(problem, lengths, max_speed_errors, drafts), self.model, self._project)
        return draw(problem, lengths, max_speed_errors, request, initial=initial)

    def _rescore(self, guide: Guide | None, problem: Problem, plans: list[Plan]) -> list[Plan]:
        return plans if guide is None else score_plans(self.model, self.settings, problem, plans, guide)


def _refuse_untimed(problem: Problem, method: str) -> None:
    if has_untimed(problem):
        raise PlanningError(f"{method}: expected a time (step, seconds or fraction) of every Fixed, got none; give one")


def with_settings(planner: Planner, settings: PlanningConfig | Mapping[str, Any]) -> Planner:
    """The same model planning with other settings.

    Args:
        planner: the planner.
        settings: the settings, or those to change by dotted names, such as `{"sampling.num_steps": 4}`.

    Raises:
        ConfigError: an unknown field, or a wrong value.
        PlanningError: settings that the model does not support.
    """
    if not isinstance(settings, PlanningConfig):
        settings = with_overrides(planner.settings, settings)
    return _copy(planner, settings, planner.support)


def with_support(planner: Planner, support: Support | None) -> Planner:
    """The same planner with another support of the data; None for none."""
    return _copy(planner, planner.settings, support)


def _copy(planner: Planner, settings: PlanningConfig, support: Support | None) -> Planner:
    model = planner.model
    return Planner(
        planner.config,
        model.layout,
        model.denoiser,
        model.normalizer,
        settings,
        horizon_model=planner.horizon_model,
        inverse_dynamics=planner.inverse_dynamics,
        support=support,
        return_range=model.return_range,
        value=planner.value,
        action_heads=planner.action_heads,
        device=model.device,
    )

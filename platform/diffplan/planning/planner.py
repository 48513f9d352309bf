"""From observations and goals to plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from diffplan.config import Config, PlanningConfig
from diffplan.data.normalization import Normalizer
from diffplan.diffusion.classifier_free import ClassifierFreeDenoiser
from diffplan.diffusion.denoiser import Denoiser
from diffplan.diffusion.guidance import Guidance, Guide, PlanBatch
from diffplan.diffusion.guide_expressions import parse_guides
from diffplan.diffusion.guides import as_guide, weighted_sum
from diffplan.diffusion.samplers import SAMPLERS, Callback, Denoises
from diffplan.errors import PlanningError
from diffplan.layout import Layout
from diffplan.planning.horizon import compute_speed_errors
from diffplan.planning.horizon_model import HorizonModel
from diffplan.planning.interpolation import interpolate
from diffplan.planning.problem import Constraint, Problem
from diffplan.planning.selection import VIOLATION_TOLERANCE, rank
from diffplan.planning.waypoints import time_waypoints
from diffplan.types import Plan

ROWS_AT_ONCE = 16
"""Plans that a scan over horizons draws in one batch, where it has fewer environments than that: more cost more than
they save, since the first consistent horizon ends the scan."""

GuideLike = Guide | Callable[[PlanBatch], Tensor] | str


@dataclass(frozen=True)
class _Asked:
    """What one call asks for, beside the problem."""

    generator: torch.Generator
    guide: Guide | None
    guidance_scale: float
    num_candidates: int
    keep_denoising: bool


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
        return_range: returns that the network was told as 0 and as 1, where it is conditioned on returns.

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
        return_range: tuple[float, float] | None = None,
    ) -> None:
        self.config = config
        self.layout = layout
        self.denoiser = denoiser.eval()
        self.normalizer = normalizer
        self.settings = config.planning if settings is None else settings
        self.horizon_model = horizon_model
        self.inverse_dynamics = inverse_dynamics
        self.return_range = return_range
        check_settings(self)
        self._guide = parse_guides(self.settings.guides) if self.settings.guides else None
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
        problem, ladder = time_waypoints(self, problem, candidates, generator)
        first = np.zeros(len(problem), dtype=int)
        predicts = self.settings.horizon_rule == "predict" and horizons is None and not constraints
        if predicts and self.horizon_model is not None and problem.goals is not None:
            first = self.horizon_model.first_consistent(problem.observations, problem.goals, candidates, limits)
        return self._search(problem, ladder, first, predicts, limits, asked)

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
        asked = self._ask(generator, guides, guidance_scale, 1, keep_denoising=False)
        if not len(previous) == len(elapsed_env_steps) == len(problem):
            raise PlanningError(
                f"replan: expected {len(problem)} plans and elapsed steps, one for each observation, "
                f"got {len(previous)} and {len(elapsed_env_steps)}"
            )
        stride, shortest = self.config.windows.stride, self.config.network.min_horizon
        lengths = np.array([plan.horizon for plan in previous])
        if goals is not None:
            lengths = np.maximum(lengths - np.asarray(elapsed_env_steps) // stride, max(shortest, 2))
        rest = np.zeros((len(problem), int(lengths.max()), self.layout.transition_dim), dtype=np.float32)
        for i, (plan, elapsed, length) in enumerate(zip(previous, elapsed_env_steps, lengths, strict=True)):
            last = (plan.horizon - 1) * plan.stride
            times = (
                np.linspace(elapsed, max(last, elapsed), length)
                if goals is not None
                else elapsed + stride * np.arange(length)
            )
            rest[i, :length, self.layout.observations] = interpolate(plan, self.config.env, times, "hermite")
            if plan.actions is not None:
                steps = np.minimum(times // plan.stride, plan.horizon - 1).astype(int)
                rest[i, :length, self.layout.actions] = plan.actions[steps]
        initial = torch.from_numpy(self.normalizer.normalize(rest))
        schedule = self.denoiser.schedule
        first = max(round(self.settings.warm_start_level * schedule.num_diffusion_steps) - 1, 0)
        num_steps = min(max(self.settings.warm_start_steps, 1), first + 1)
        steps = schedule.sampling_steps(num_steps, self.settings.step_spacing, first)
        limits = self._limits(max_speed_errors, len(problem))
        return self._attempt(problem, lengths, limits, asked, steps, initial)

    def make_guidance(self, problem: Problem, guide: Guide, scale: float, num_candidates: int) -> Guidance:
        """A guide as the sampler takes it, for plans of a problem with as many candidates each."""
        goals = None
        if problem.goals is not None:
            goals = torch.from_numpy(np.repeat(problem.goals, num_candidates, axis=0))

        def view(x: Tensor, rows: Tensor | None, diffusion_step: int) -> PlanBatch:
            return PlanBatch(
                transitions=self.normalizer.unnormalize(x),
                normalized=x,
                layout=self.layout,
                position_columns=self.config.env.position_columns,
                velocity_columns=self.config.env.velocity_columns,
                step_seconds=self.step_seconds,
                diffusion_step=diffusion_step,
                goals=goals if goals is None or rows is None else goals[rows],
            )

        settings = self.settings
        return Guidance(
            guide,
            view,
            scale,
            settings.num_guide_steps,
            settings.guide_target,
            settings.guide_scaling == "variance",
            settings.max_guide_gradient,
            settings.guide_stop_step,
        )

    def _search(
        self,
        problem: Problem,
        ladder: np.ndarray,
        first: np.ndarray,
        one_at_a_time: bool,
        limits: np.ndarray,
        asked: _Asked,
    ) -> list[Plan]:
        """Plans of the first horizon on each environment's ladder that is consistent and keeps all limits.

        Args:
            problem: what is asked.
            ladder: horizons to try, ascending, int[batch, rungs].
            first: where to begin, int[batch].
            one_at_a_time: whether to try one rung before the next, for it is likely to be the last.
            limits: speed errors up to which plans are consistent, float[batch].
            asked: what else is asked.
        """
        num_rungs = ladder.shape[1]
        best: list[Plan | None] = [None] * len(problem)
        waiting, rung = np.arange(len(problem)), first.copy()
        while waiting.size:
            width = 1 if one_at_a_time else max(1, ROWS_AT_ONCE // (len(waiting) * asked.num_candidates))
            offsets = np.arange(width)
            tried = np.minimum(rung[waiting][:, None] + offsets, num_rungs - 1)
            # The last rung stands once for each environment, however far the offsets would go beyond it.
            wanted = rung[waiting][:, None] + offsets < num_rungs
            rows, places = np.nonzero(wanted)
            lengths = ladder[waiting[rows], tried[rows, places]]
            found = self._attempt(problem.take(waiting[rows]), lengths, limits[waiting[rows]], asked, self._steps)
            done = np.zeros(len(waiting), dtype=bool)
            for row, plan in zip(rows, found, strict=True):
                if not done[row]:
                    i = waiting[row]
                    best[i] = _better(best[i], plan)
                    done[row] = plan.consistent and plan.violation <= VIOLATION_TOLERANCE
            rung[waiting] += width
            waiting = waiting[~done & (rung[waiting] < num_rungs)]
        return [plan for plan in best if plan is not None]

    def _attempt(
        self,
        problem: Problem,
        lengths: np.ndarray,
        limits: np.ndarray,
        asked: _Asked,
        steps: Sequence[int],
        initial: Tensor | None = None,
    ) -> list[Plan]:
        """The best of the candidates of one horizon for each environment."""
        num = asked.num_candidates
        every = np.repeat(np.arange(len(problem)), num)
        whole = problem if num == 1 else problem.take(every)
        row_lengths = lengths[every]
        constraints = whole.constrain(row_lengths, self.layout, self._normalize_observations)
        guidance = None
        if asked.guide is not None:
            guidance = self.make_guidance(problem, asked.guide, asked.guidance_scale, num)
        kept: list[Tensor] = []
        keep: Callback | None = (lambda state: kept.append(state.x_noisy)) if asked.keep_denoising else None
        x = SAMPLERS[self.settings.sampler](
            self._condition(len(whole)),
            constraints,
            asked.generator,
            steps,
            initial=initial,
            guidance=guidance if asked.guidance_scale else None,
            temperature=self.settings.temperature,
            callback=keep,
        )
        transitions = self.normalizer.unnormalize(x).numpy()
        observations = transitions[:, :, self.layout.observations]
        whole.impose(observations, row_lengths)
        env = self.config.env
        errors = compute_speed_errors(
            observations, env.position_columns, env.velocity_columns, self.step_seconds, row_lengths
        ).reshape(-1, num)
        violations, scores = np.zeros_like(errors), None
        if guidance is not None:
            with torch.no_grad():
                # Of the plans as they are given out.
                exact = torch.from_numpy(self.normalizer.normalize(transitions))
                violations = guidance.violation(exact, constraints.lengths).numpy().reshape(-1, num)
                scores = guidance.score(exact, -1, constraints.lengths).numpy().reshape(-1, num)
        chosen = rank(violations, errors, limits, scores, self.settings.selection)[:, 0]
        noisy = self.normalizer.unnormalize(torch.stack(kept, dim=1)).numpy() if kept else None
        plans = []
        for i, (candidate, limit, length) in enumerate(zip(chosen, limits, lengths, strict=True)):
            row = i * num + candidate
            plans.append(
                Plan(
                    observations=observations[row, :length],
                    actions=transitions[row, :length, self.layout.actions] if self.layout.action_dim else None,
                    stride=self.config.windows.stride,
                    speed_error=float(errors[i, candidate]),
                    consistent=bool(errors[i, candidate] <= limit),
                    violation=float(violations[i, candidate]),
                    guide_score=None if scores is None else float(scores[i, candidate]),
                    denoising=None if noisy is None else noisy[row, :, :length, self.layout.observations],
                )
            )
        return plans

    def _condition(self, num: int) -> Denoises:
        """The denoiser, told the return or the task of the settings if there is one."""
        settings, kind = self.settings, self.config.network.condition
        told = {"none": None, "returns": settings.target_return, "task": settings.task}[kind]
        if told is None:
            return self.denoiser
        if kind == "returns" and self.return_range is not None:
            low, high = self.return_range
            told = (told - low) / (high - low)
        return ClassifierFreeDenoiser(self.denoiser, torch.full((num,), float(told)), settings.condition_scale)

    def _make_problem(
        self, observations: np.ndarray, goals: np.ndarray | None, constraints: Sequence[Constraint]
    ) -> Problem:
        return Problem.make(
            observations,
            goals,
            constraints,
            self.config.env,
            self.config.windows.goal_columns,
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
    ) -> _Asked:
        settings = self.settings
        scale = settings.guidance_scale if guidance_scale is None else guidance_scale
        if guides is None:
            guide = self._guide if scale or settings.selection == "guide" else None
        else:
            chosen = [parse_guides((g,)) if isinstance(g, str) else as_guide(g) for g in guides]
            guide = weighted_sum(*((1.0, g) for g in chosen)) if chosen else None
            if guidance_scale is None and not settings.guidance_scale:
                scale = 1.0
        num = settings.num_candidates if num_candidates is None else num_candidates
        if num < 1:
            raise PlanningError(f"num_candidates: expected at least 1, got {num}")
        return _Asked(generator, guide, scale, num, keep_denoising)

    def _limits(self, max_speed_errors: np.ndarray | None, num: int) -> np.ndarray:
        if max_speed_errors is None:
            return np.full(num, float(self.settings.max_speed_error))
        return np.asarray(max_speed_errors, dtype=np.float64)

    def _check_horizons(self, problem: Problem, horizons: tuple[int, ...]) -> tuple[int, ...]:
        shortest = max(self.config.network.min_horizon, 2)
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
        return enough

    def _normalize_observations(self, observations: np.ndarray) -> Tensor:
        if not self.layout.action_dim:
            return torch.from_numpy(self.normalizer.normalize(observations))
        transitions = np.zeros((len(observations), self.layout.transition_dim), dtype=np.float32)
        transitions[:, self.layout.observations] = observations
        return torch.from_numpy(self.normalizer.normalize(transitions)[:, self.layout.observations])


def _better(old: Plan | None, new: Plan) -> Plan:
    """Of two plans, the one that violates less; then the consistent one; then the new one."""

    def badness(plan: Plan) -> tuple[float, bool]:
        return (plan.violation if plan.violation > VIOLATION_TOLERANCE else 0.0, not plan.consistent)

    return new if old is None or badness(new) <= badness(old) else old


def check_settings(planner: Planner) -> None:
    """Raises `PlanningError` for settings that the model cannot serve."""
    settings, config = planner.settings, planner.config
    shortest = config.network.min_horizon
    if settings.min_horizon < shortest:
        raise PlanningError(
            f"planning.min_horizon: expected at least {shortest}, the shortest plan that this network can hold, "
            f"got {settings.min_horizon}"
        )
    steps = config.diffusion.num_diffusion_steps
    if settings.num_sampling_steps > steps:
        raise PlanningError(
            f"planning.num_sampling_steps: expected at most {steps}, the diffusion steps of this model, "
            f"got {settings.num_sampling_steps}"
        )
    if settings.horizon_rule == "predict" and planner.horizon_model is None:
        raise PlanningError(
            "planning.horizon_rule: expected scan, for this checkpoint has no horizon model; fit one with "
            "`diffplan calibrate`"
        )
    if settings.controller == "inverse_dynamics" and planner.inverse_dynamics is None:
        raise PlanningError(
            "planning.controller: expected tracking or actions, for this checkpoint has no inverse dynamics"
        )
    if settings.controller == "actions" and not planner.layout.action_dim:
        raise PlanningError(
            "planning.controller: expected tracking or inverse_dynamics, for plans of this model hold no actions; "
            "train with --windows.columns actions_observations"
        )
    kind = config.network.condition
    for name, value, needed in (("target_return", settings.target_return, "returns"), ("task", settings.task, "task")):
        if value is not None and kind != needed:
            raise PlanningError(
                f"planning.{name}: expected none, for the network was trained with network.condition {kind}, "
                f"got {value}"
            )
    if settings.task is not None and not 0 <= settings.task < config.network.num_tasks:
        raise PlanningError(
            f"planning.task: expected 0 to {config.network.num_tasks - 1}, the tasks of this model, got {settings.task}"
        )


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
        return_range=planner.return_range,
    )

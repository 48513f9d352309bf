"""Drawing plans of given horizons: candidates from the model, the best of them as plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from diffplan.diffusion.classifier_free import ClassifierFreeDenoiser
from diffplan.diffusion.guidance import Guidance, Guide, PlanBatch
from diffplan.diffusion.samplers import SAMPLERS, Callback, Denoises
from diffplan.planning.horizon import compute_speed_errors
from diffplan.planning.problem import Problem
from diffplan.planning.selection import rank
from diffplan.types import Plan

if TYPE_CHECKING:
    from diffplan.planning.planner import Planner


@dataclass(frozen=True)
class Asked:
    """What one call of the planner asks for, beside the problem.

    Attributes:
        generator: source of the noise.
        guide: what is maximised; None for nothing.
        guidance_scale: strength of the guide; with 0 it only scores.
        num_candidates: plans drawn for each horizon.
        keep_denoising: whether to keep the way from noise to plan.
        repair: whether guided plans that still violate a limit are moved until they keep it.
    """

    generator: torch.Generator
    guide: Guide | None
    guidance_scale: float
    num_candidates: int
    keep_denoising: bool
    repair: bool = False


def sample_plans(
    planner: Planner,
    problem: Problem,
    lengths: np.ndarray,
    limits: np.ndarray,
    asked: Asked,
    steps: Sequence[int],
    initial: Tensor | None = None,
) -> list[Plan]:
    """The best of the candidates of one horizon for each environment.

    Args:
        planner: the model and its settings.
        problem: what is asked.
        lengths: horizon of each plan, int[batch].
        limits: speed errors up to which plans are consistent, float[batch].
        asked: what else is asked.
        steps: diffusion steps to denoise at.
        initial: clean plans to start from in model space, one candidate each; None to start from noise.

    Raises:
        PlanningError: what is asked contradicts itself.
    """
    num = asked.num_candidates
    every = np.repeat(np.arange(len(problem)), num)
    whole = problem if num == 1 else problem.take(every)
    row_lengths = lengths[every]
    layout, normalizer, env = planner.layout, planner.normalizer, planner.config.env
    constraints = whole.constrain(row_lengths, layout, planner.normalize_observations).to(planner.device)
    guidance = None if asked.guide is None else _make_guidance(planner, whole, asked.guide, asked.guidance_scale)
    kept: list[Tensor] = []
    keep: Callback | None = (lambda state: kept.append(state.x_noisy)) if asked.keep_denoising else None
    x = SAMPLERS[planner.settings.sampler](
        _make_denoiser(planner, len(whole)),
        constraints,
        asked.generator,
        steps,
        initial=initial,
        guidance=guidance if asked.guidance_scale else None,
        temperature=planner.settings.temperature,
        repeats=planner.settings.num_repeats,
        callback=keep,
    )
    if guidance is not None and asked.guidance_scale and asked.repair:
        x = guidance.repair(x, constraints.project_clean, constraints.lengths)
    transitions = normalizer.unnormalize(x.cpu()).numpy()
    observations = transitions[:, :, layout.observations]
    whole.impose(observations, row_lengths)
    errors = compute_speed_errors(
        observations, env.position_columns, env.velocity_columns, planner.step_seconds, row_lengths
    ).reshape(-1, num)
    consistent, departures = errors <= limits[:, None], None
    if planner.settings.max_departure and planner.support is not None:
        found = planner.support.departures(observations, env, planner.step_seconds, row_lengths)
        departures, given = (array.reshape(-1, num) for array in found)
        consistent &= departures <= np.maximum(planner.settings.max_departure, given)
    violations, scores = np.zeros_like(errors), None
    if guidance is not None:
        with torch.no_grad():
            # The plans as they are given out.
            exact = torch.from_numpy(normalizer.normalize(transitions)).to(planner.device)
            violations = guidance.violation(exact, constraints.lengths).cpu().numpy().reshape(-1, num)
            violations = np.nan_to_num(violations, nan=np.inf)  # what cannot be told is not kept
            scores = guidance.score(exact, -1, constraints.lengths).cpu().numpy().reshape(-1, num)
    chosen = rank(violations, errors, consistent, scores, planner.settings.selection)[:, 0]
    noisy = normalizer.unnormalize(torch.stack(kept, dim=1).cpu()).numpy() if kept else None
    plans = []
    for i, (candidate, length) in enumerate(zip(chosen, lengths, strict=True)):
        row = i * num + candidate
        plans.append(
            Plan(
                observations=observations[row, :length],
                actions=transitions[row, :length, layout.actions] if layout.action_dim else None,
                stride=planner.config.windows.stride,
                speed_error=float(errors[i, candidate]),
                consistent=bool(consistent[i, candidate]),
                departure=None if departures is None else float(departures[i, candidate]),
                violation=float(violations[i, candidate]),
                guide_score=None if scores is None else float(scores[i, candidate]),
                denoising=None if noisy is None else noisy[row, :, :length, layout.observations],
            )
        )
    return plans


def _make_guidance(planner: Planner, problem: Problem, guide: Guide, scale: float) -> Guidance:
    """A guide as the sampler takes it, for one plan of each row of a problem."""
    settings, env = planner.settings, planner.config.env
    goals = None if problem.goals is None else torch.from_numpy(problem.goals).to(planner.device)

    def view(x: Tensor, rows: Tensor | None, diffusion_step: int) -> PlanBatch:
        return PlanBatch(
            transitions=planner.normalizer.unnormalize(x),
            normalized=x,
            layout=planner.layout,
            position_columns=env.position_columns,
            velocity_columns=env.velocity_columns,
            step_seconds=planner.step_seconds,
            diffusion_step=diffusion_step,
            goals=goals if goals is None or rows is None else goals[rows],
        )

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


def score_plans(planner: Planner, problem: Problem, plans: Sequence[Plan], guide: Guide) -> list[Plan]:
    """The same plans with what a guide says of them: violation and score."""
    scored = []
    for row, plan in enumerate(plans):
        transitions = np.zeros((1, plan.horizon, planner.layout.transition_dim), dtype=np.float32)
        transitions[0, :, planner.layout.observations] = plan.observations
        if plan.actions is not None:
            transitions[0, :, planner.layout.actions] = plan.actions
        guidance = _make_guidance(planner, problem.take(np.array([row])), guide, 0.0)
        x = torch.from_numpy(planner.normalizer.normalize(transitions)).to(planner.device)
        with torch.no_grad():
            violation, score = float(guidance.violation(x)[0]), float(guidance.score(x, -1)[0])
        scored.append(replace(plan, violation=np.inf if np.isnan(violation) else violation, guide_score=score))
    return scored


def _make_denoiser(planner: Planner, num: int) -> Denoises:
    """The denoiser, told the return or the task of the settings if there is one."""
    settings, kind = planner.settings, planner.config.network.condition
    told = {"none": None, "returns": settings.target_return, "task": settings.task}[kind]
    if told is None:
        return planner.denoiser
    if kind == "returns":
        assert planner.return_range is not None  # the planner refuses a target return without one
        low, high = planner.return_range
        told = (told - low) / (high - low)
    condition = torch.full((num,), float(told), device=planner.device)
    return ClassifierFreeDenoiser(planner.denoiser, condition, settings.condition_scale)

"""Drawing plans of given horizons: candidates from the model, the best of them as plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from diffplan.config import PlanningConfig
from diffplan.diffusion.guidance import Guidance, Guide
from diffplan.diffusion.samplers import SAMPLERS, Callback
from diffplan.errors import PlanningError
from diffplan.planning.companions.action_head import ActionHead
from diffplan.planning.companions.support import Support
from diffplan.planning.condition import make_conditioned_denoiser
from diffplan.planning.consistency import check_consistency
from diffplan.planning.guidance import make_guidance
from diffplan.planning.model import PlanningModel
from diffplan.planning.problem import Problem, find_lengths
from diffplan.planning.selection import AVERAGES, rank, weigh
from diffplan.types import Plan


class Draw(Protocol):
    """Draws one plan for each environment of a problem."""

    def __call__(
        self, problem: Problem, lengths: np.ndarray, max_speed_errors: np.ndarray, *, repair: bool = False
    ) -> list[Plan]:
        """Plans of given horizons.

        Args:
            problem: what the plans must satisfy.
            lengths: horizon of each plan, int[batch].
            max_speed_errors: largest speed error of a consistent plan, float[batch].
            repair: whether guided plans that violate a limit are moved until they keep it.
        """
        ...


@dataclass(frozen=True)
class PlanRequest:
    """The arguments of one call of the planner, apart from the problem.

    Attributes:
        generator: source of the noise.
        diffusion_steps: diffusion steps to denoise at, descending.
        guide: its score is maximised; None for no guide.
        guidance_scale: strength of the guide; with 0 it only scores.
        num_candidates: plans drawn for each horizon.
        keep_denoising: whether to keep the plan after each denoising step.
        repair: whether guided plans that violate a limit are moved until they keep it.
    """

    generator: torch.Generator
    diffusion_steps: Sequence[int]
    guide: Guide | None
    guidance_scale: float
    num_candidates: int
    keep_denoising: bool = False
    repair: bool = False


def sample_plans(
    model: PlanningModel,
    settings: PlanningConfig,
    problem: Problem,
    lengths: np.ndarray,
    max_speed_errors: np.ndarray,
    request: PlanRequest,
    *,
    support: Support | None = None,
    initial: Tensor | None = None,
    action_head: ActionHead | None = None,
) -> list[Plan]:
    """The best of the candidates of one horizon for each environment, or their average.

    Args:
        model: the diffusion model.
        settings: how to plan.
        problem: what the plans must satisfy.
        lengths: horizon of each plan, int[batch].
        max_speed_errors: largest speed error of a consistent plan, float[batch].
        request: the other arguments of the call.
        support: positions that the data have visited; None if not known.
        initial: clean plans to start from in model space, one for each environment; None to start from noise.
        action_head: chooses the actions of the plans; None for none.

    Raises:
        PlanningError: fixed values and bounds contradict each other, or guides or weights lead to infinity.
    """
    num = request.num_candidates
    rows = np.repeat(np.arange(len(problem)), num)
    candidates = problem if num == 1 else problem.take(rows)
    row_lengths = lengths[rows]
    constraints = candidates.constrain(row_lengths, model).to(model.device)
    guidance = None
    if request.guide is not None:
        guidance = make_guidance(model, settings, candidates, request.guide, request.guidance_scale)
    kept: list[Tensor] = []
    keep: Callback | None = (lambda state: kept.append(state.x_noisy)) if request.keep_denoising else None
    x = SAMPLERS[settings.sampling.sampler](
        make_conditioned_denoiser(model, settings, len(candidates), constraints.mask),
        constraints,
        request.generator,
        request.diffusion_steps,
        initial=initial if initial is None or num == 1 else initial.repeat_interleave(num, dim=0),
        guidance=guidance if request.guidance_scale else None,
        temperature=settings.sampling.temperature,
        repeats=settings.sampling.num_repeats,
        callback=keep,
    )
    if guidance is not None and request.guidance_scale and request.repair:
        x = guidance.repair(x, constraints.project_clean, constraints.lengths)
    transitions, observations = _to_environment_units(model, candidates, row_lengths, x, request)
    actions = None if action_head is None else action_head.predict(observations)
    if num > 1 and settings.selection.rule in AVERAGES:
        weights = _weigh(model, settings, guidance, transitions, constraints.lengths, num)
        x = average(x, torch.from_numpy(weights).to(x))
        actions = None if actions is None else average(torch.from_numpy(actions), torch.from_numpy(weights)).numpy()
        rows, num, candidates, row_lengths = np.arange(len(problem)), 1, problem, lengths
        kept = [average(step, torch.from_numpy(weights).to(x)) for step in kept]
        if guidance is not None:
            assert request.guide is not None
            guidance = make_guidance(model, settings, candidates, request.guide, request.guidance_scale)
        transitions, observations = _to_environment_units(model, candidates, row_lengths, x, request)
    found = check_consistency(
        model, observations, row_lengths, max_speed_errors[rows], support, settings.horizon.max_departure
    )
    violations, scores = np.zeros(len(rows)), None
    if guidance is not None:
        with torch.no_grad():
            # Score the plans exactly as they are returned.
            exact = model.normalize_plans(transitions).to(model.device)
            of_plans = find_lengths(row_lengths, model.device)
            violations = guidance.violation(exact, of_plans).cpu().numpy()
            violations = np.nan_to_num(violations, nan=np.inf)  # a limit that cannot be evaluated is not kept
            scores = guidance.score(exact, -1, of_plans).cpu().numpy()
    best = rank(
        violations.reshape(-1, num),
        found.speed_errors.reshape(-1, num),
        found.consistent.reshape(-1, num),
        None if scores is None else scores.reshape(-1, num),
        settings.selection.rule,
    )[:, 0]
    noisy = None
    if kept:
        steps = [model.normalizer.unnormalize_windows(step.cpu()) for step in kept]
        noisy = torch.stack(steps, dim=1).numpy()
    plans = []
    for i, (candidate, length) in enumerate(zip(best, lengths, strict=True)):
        row = i * num + candidate
        plans.append(
            Plan(
                observations=observations[row, :length],
                actions=transitions[row, :length, model.layout.actions] if model.layout.action_dim else None,
                stride=model.stride,
                speed_error=float(found.speed_errors[row]) if model.env.velocity_columns else None,
                consistent=bool(found.consistent[row]),
                departure=None if found.departures is None else float(found.departures[row]),
                violation=float(violations[row]),
                guide_score=None if scores is None else float(scores[row]),
                denoising=None if noisy is None else noisy[row, :, :length, model.layout.observations],
                offsets=model.offsets,
                flags=transitions[row, :length, model.layout.flag] if model.layout.has_flag else None,
                action=None if actions is None else actions[row],
            )
        )
    return plans


def average(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted averages over candidates, float[batch, …].

    Args:
        values: float[batch * candidates, …], the candidates of each environment side by side.
        weights: float[batch, candidates], each row with the sum 1.
    """
    apart = values.unflatten(0, weights.shape)
    return torch.einsum("bc,bc...->b...", weights.to(values), apart)


def _to_environment_units(
    model: PlanningModel, problem: Problem, lengths: np.ndarray, x: Tensor, request: PlanRequest
) -> tuple[np.ndarray, np.ndarray]:
    """Plans in environment units, float32[plans, horizon, transition_dim], and their observations, a view of them."""
    transitions = model.normalizer.unnormalize_windows(x.cpu()).numpy()
    if not np.isfinite(transitions).all():
        cure = "lower guidance_scale or mend the guides" if request.guidance_scale else "train the model again"
        raise PlanningError(f"plans: expected finite numbers, got NaN or infinity; {cure}")
    observations = transitions[:, :, model.layout.observations]
    problem.impose(observations, lengths)
    return transitions, observations


@torch.no_grad()
def _weigh(
    model: PlanningModel,
    settings: PlanningConfig,
    guidance: Guidance | None,
    transitions: np.ndarray,
    lengths: Tensor | None,
    num: int,
) -> np.ndarray:
    """Weights of the candidates in the average of each environment, float64[batch, candidates]."""
    violations, scores = np.zeros((len(transitions) // num, num)), None
    if guidance is not None:
        x = model.normalize_plans(transitions).to(model.device)
        violations = np.nan_to_num(guidance.violation(x, lengths).cpu().numpy(), nan=np.inf).reshape(-1, num)
        scores = guidance.score(x, -1, lengths).cpu().numpy().reshape(-1, num)
    return weigh(violations, scores, settings.selection.rule, settings.selection.temperature)

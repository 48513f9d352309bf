"""Drawing plans of given horizons: candidates from the model, the best of them as plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from diffplan.config import PlanningConfig
from diffplan.diffusion.guidance import Guide
from diffplan.diffusion.samplers import SAMPLERS, Callback
from diffplan.errors import PlanningError
from diffplan.planning.companions.support import Support
from diffplan.planning.condition import make_conditioned_denoiser
from diffplan.planning.consistency import check_consistency
from diffplan.planning.guidance import make_guidance
from diffplan.planning.model import PlanningModel
from diffplan.planning.problem import Problem
from diffplan.planning.selection import rank
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
) -> list[Plan]:
    """The best of the candidates of one horizon for each environment.

    Args:
        model: the diffusion model.
        settings: how to plan.
        problem: what the plans must satisfy.
        lengths: horizon of each plan, int[batch].
        max_speed_errors: largest speed error of a consistent plan, float[batch].
        request: the other arguments of the call.
        support: positions that the data have visited; None if not known.
        initial: clean plans to start from in model space, one candidate each; None to start from noise.

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
        make_conditioned_denoiser(model, settings, len(candidates)),
        constraints,
        request.generator,
        request.diffusion_steps,
        initial=initial,
        guidance=guidance if request.guidance_scale else None,
        temperature=settings.sampling.temperature,
        repeats=settings.sampling.num_repeats,
        callback=keep,
    )
    if guidance is not None and request.guidance_scale and request.repair:
        x = guidance.repair(x, constraints.project_clean, constraints.lengths)
    transitions = model.normalizer.unnormalize(x.cpu()).numpy()
    if not np.isfinite(transitions).all():
        cure = "lower guidance_scale or mend the guides" if request.guidance_scale else "train the model again"
        raise PlanningError(f"plans: expected finite numbers, got NaN or infinity; {cure}")
    observations = transitions[:, :, model.layout.observations]
    candidates.impose(observations, row_lengths)
    found = check_consistency(
        model, observations, row_lengths, max_speed_errors[rows], support, settings.horizon.max_departure
    )
    violations, scores = np.zeros(len(rows)), None
    if guidance is not None:
        with torch.no_grad():
            # Score the plans exactly as they are returned.
            exact = torch.from_numpy(model.normalizer.normalize(transitions)).to(model.device)
            violations = guidance.violation(exact, constraints.lengths).cpu().numpy()
            violations = np.nan_to_num(violations, nan=np.inf)  # a limit that cannot be evaluated is not kept
            scores = guidance.score(exact, -1, constraints.lengths).cpu().numpy()
    best = rank(
        violations.reshape(-1, num),
        found.speed_errors.reshape(-1, num),
        found.consistent.reshape(-1, num),
        None if scores is None else scores.reshape(-1, num),
        settings.selection.rule,
    )[:, 0]
    noisy = model.normalizer.unnormalize(torch.stack(kept, dim=1).cpu()).numpy() if kept else None
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
            )
        )
    return plans

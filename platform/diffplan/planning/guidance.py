"""Guides of a planner: which ones a call uses, and how they reach the sampler and score finished plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from diffplan.config import EnvConfig, PlanningConfig
from diffplan.diffusion.guidance import Guidance, Guide, PlanBatch
from diffplan.diffusion.guide_expressions import parse_guide, parse_guides
from diffplan.diffusion.guides import as_guide, weighted_sum
from diffplan.errors import PlanningError
from diffplan.planning.model import PlanningModel
from diffplan.planning.problem import Problem
from diffplan.tasks.registry import list_guides
from diffplan.types import Plan

GuideLike = Guide | Callable[[PlanBatch], Tensor] | str


def sum_own_guides(settings: PlanningConfig, value: Guide | None, env: EnvConfig) -> Guide | None:
    """The guides of the settings and a learned value, summed; None where there are none.

    Args:
        settings: how to plan.
        value: a learned value; None for none.
        env: the environment, whose task may have guides of its own.

    Raises:
        ConfigError: an expression that is no guide.
    """
    texts = settings.guidance.guides
    own = [parse_guides(texts, list_guides(env))] if texts else []
    own += [] if value is None else [value]
    return weighted_sum(*((1.0, guide) for guide in own)) if own else None


def choose_guide(
    settings: PlanningConfig,
    own: Guide | None,
    guides: Sequence[GuideLike] | None,
    guidance_scale: float | None,
    env: EnvConfig,
) -> tuple[Guide | None, float]:
    """The guide of one call of the planner, and its strength.

    Args:
        settings: how to plan.
        own: the guides of the settings, summed.
        guides: guides of the call; None for those of the settings.
        guidance_scale: strength; None for that of the settings, or 1 if that is 0 and the call has guides.
        env: the environment, whose task may have guides of its own.

    Returns:
        The guide, or None for none, and the strength. With strength 0 the guide only scores plans.

    Raises:
        PlanningError: `guides` holds something that is not a guide, or the strength is not a number >= 0.
        ConfigError: an expression that is no guide.
    """
    scale = settings.guidance.scale if guidance_scale is None else guidance_scale
    if not (np.isfinite(scale) and scale >= 0):
        raise PlanningError(f"guidance_scale: expected a number >= 0, got {scale}")
    if guides is None:
        return (own if scale or settings.selection.rule in ("guide", "soft") else None), scale
    if isinstance(guides, str):
        raise PlanningError(f"guides: expected several in a list, got the text {guides!r}; write [{guides!r}]")
    try:
        chosen = [parse_guide(g, list_guides(env)) if isinstance(g, str) else as_guide(g) for g in guides]
    except ValueError as error:
        raise PlanningError(f"guides: {error}") from None
    if guidance_scale is None and not settings.guidance.scale:
        scale = 1.0
    return (weighted_sum(*((1.0, g) for g in chosen)) if chosen else None), scale


def make_guidance(
    model: PlanningModel, settings: PlanningConfig, problem: Problem, guide: Guide, guidance_scale: float
) -> Guidance:
    """A guide in the form that the sampler takes, for one plan of each row of a problem."""
    goals = None if problem.goals is None else torch.from_numpy(problem.goals).to(model.device)

    def view(x: Tensor, rows: Tensor | None, diffusion_step: int) -> PlanBatch:
        return PlanBatch(
            transitions=model.normalizer.unnormalize_windows(x),
            normalized=x,
            layout=model.layout,
            position_columns=model.env.position_columns,
            velocity_columns=model.env.velocity_columns,
            goal_columns=problem.goal_columns,
            step_seconds=model.step_seconds,
            diffusion_step=diffusion_step,
            goals=goals if goals is None or rows is None else goals[rows],
        )

    return Guidance(
        guide,
        view,
        guidance_scale,
        settings.guidance.num_steps,
        settings.guidance.target,
        settings.guidance.scaling == "variance",
        settings.guidance.max_gradient,
        settings.guidance.stop_step,
        settings.guidance.start_step,
    )


def score_plans(
    model: PlanningModel, settings: PlanningConfig, problem: Problem, plans: Sequence[Plan], guide: Guide
) -> list[Plan]:
    """The same plans with their violation and score under a guide."""
    scored = []
    for row, plan in enumerate(plans):
        transitions = np.zeros((1, plan.horizon, model.layout.transition_dim), dtype=np.float32)
        transitions[0, :, model.layout.observations] = plan.observations
        if plan.actions is not None:
            transitions[0, :, model.layout.actions] = plan.actions
        if plan.flags is not None:
            transitions[0, :, model.layout.flag] = plan.flags
        guidance = make_guidance(model, settings, problem.take(np.array([row])), guide, 0.0)
        x = model.normalize_plans(transitions).to(model.device)
        with torch.no_grad():
            violation, score = float(guidance.violation(x)[0]), float(guidance.score(x, -1)[0])
        scored.append(replace(plan, violation=np.inf if np.isnan(violation) else violation, guide_score=score))
    return scored

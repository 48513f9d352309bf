"""What trials are judged by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diffplan.evaluation.scores import EpisodeResult
from diffplan.tuning.studies import Study

FAILURE_PENALTY = 100.0
"""What an episode that never reaches its goal costs beyond its score: the search must not trade goals for speed."""
LESS_IS_BETTER = {"objective": False, "score_mean": False, "success_rate": False, "plan_seconds": True}
"""Whether a search is after small values of a metric."""


def compute_objective(results: Sequence[EpisodeResult]) -> float:
    """What a search maximises: the mean score less a penalty for episodes that never reach their goal."""
    return float(np.mean([r.score - FAILURE_PENALTY * (not r.success) for r in results]))


def summarize_trial(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    """The metrics of a trial.

    Returns:
        `objective`; `score_mean`; `success_rate`, a share; `plan_seconds`, time spent on the plans of an episode, in a
        batch of episodes side by side; `episodes`.
    """
    return {
        "objective": compute_objective(results),
        "score_mean": float(np.mean([r.score for r in results])),
        "success_rate": float(np.mean([r.success for r in results])),
        "plan_seconds": float(np.mean([r.plan_seconds for r in results])),
        "episodes": len(results),
    }


def compute_merit(study: Study, metrics: dict[str, Any]) -> float:
    """How good a trial is in one number; the trial with the greatest is what `best.json` holds.

    Of a study with one objective it is that, turned so that more is better; of one with two, the score less the penalty
    for missed goals. From either, `cost_weight` points are taken for each second of planning in an episode.
    """
    metric = "objective" if study.is_pareto else study.objectives[0]
    value = -metrics[metric] if LESS_IS_BETTER[metric] else metrics[metric]
    return value - study.cost_weight * metrics["plan_seconds"]

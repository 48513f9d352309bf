"""Metrics of trials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diffplan.config.study import Study
from diffplan.errors import ConfigError
from diffplan.evaluation.scores import EpisodeResult, find_metric
from diffplan.tasks.task import Task

LESS_IS_BETTER = {"objective": False, "score_mean": False, "success_rate": False, "plan_seconds": True}
"""Whether a search minimises a metric of a trial."""
OBJECTIVE_FIELD = "search.objective"


def compute_objective(results: Sequence[EpisodeResult], metric: str, task: Task) -> float:
    """The objective of a search: the mean of a metric over episodes, negated if less of it is better.

    Raises:
        ConfigError: an unknown metric, or one that some episodes do not have: leaving these out would hide failures.
    """
    sign = -1.0 if find_metric(metric, task, OBJECTIVE_FIELD).less_is_better else 1.0
    values = [result.get_metric(metric) for result in results]
    if missing := sum(value is None for value in values):
        raise ConfigError(
            f"{OBJECTIVE_FIELD}: expected a metric that every episode has, got {metric}, which {missing} of "
            f"{len(values)} lack; take {task.objective}"
        )
    return float(np.mean([sign * value for value in values if value is not None]))


def summarize_trial(results: Sequence[EpisodeResult], study: Study, metric: str, task: Task) -> dict[str, Any]:
    """The metrics of a trial.

    Args:
        results: its episodes.
        study: the study, with its objectives.
        metric: the metric that `objective` stands for.
        task: the task of the metrics.

    Returns:
        `objective`; `score_mean`; `success_rate`, a share, None if the environment does not report it; `plan_seconds`,
        planning time of an episode in a batch of episodes; `episodes`.

    Raises:
        ConfigError: an unknown metric, or a trial without one of the objectives.
    """
    successes = [r.success for r in results if r.success is not None]
    metrics = {
        "objective": compute_objective(results, metric, task),
        "score_mean": float(np.mean([r.score for r in results])),
        "success_rate": float(np.mean(successes)) if successes else None,
        "plan_seconds": float(np.mean([r.plan_seconds for r in results])),
        "episodes": len(results),
    }
    for name in study.objectives:
        if metrics[name] is None:
            raise ConfigError(
                f"study.objectives: expected metrics that every trial has, got {name}, which episodes of this task lack"
            )
    return metrics


def compute_merit(study: Study, metrics: dict[str, Any]) -> float:
    """The merit of a trial as one number; `best.json` holds the trial with the greatest.

    For a study with one objective it is that objective, with the sign for which more is better; for a study with two,
    it is `objective`. `cost_weight` points are subtracted for each second of planning in an episode.
    """
    metric = "objective" if study.is_pareto else study.objectives[0]
    value = -metrics[metric] if LESS_IS_BETTER[metric] else metrics[metric]
    return value - study.cost_weight * metrics["plan_seconds"]

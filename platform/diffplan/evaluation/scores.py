"""Scores of episodes, and their summary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from diffplan.errors import ConfigError, unknown_name
from diffplan.tasks.contracts import Metric
from diffplan.tasks.task import Task

GENERAL_METRICS = {
    "return": Metric("return"),
    "score": Metric("score"),
    "length": Metric("steps", format=".0f"),
    "success": Metric("success", format=".1%"),
    "time_to_goal_steps": Metric("steps to the goal", less_is_better=True, format=".0f"),
    "plan_seconds": Metric("seconds of planning", less_is_better=True, format=".3f"),
}
"""Metrics of an episode of any task."""
NUM_BOOTSTRAPPED = 30
"""Episodes from which the interval of a mean is bootstrapped: on normal scores it then covers 93.6 % or more."""


def find_metric(name: str, task: Task, field: str) -> Metric:
    """A metric by name, of every task or of this one; raises `ConfigError`, about a field, for an unknown one."""
    known = {**GENERAL_METRICS, **task.metrics}
    if name not in known:
        raise ConfigError(unknown_name(field, name, known))
    return known[name]


@dataclass(frozen=True)
class EpisodeResult:
    """One evaluated episode.

    Attributes:
        episode: index of the episode among those of its seed.
        seed: seed that the environment was reset with.
        goal: the goal, in environment units; None if episodes have none.
        start: the first observation.
        undiscounted_return: sum of rewards.
        score: normalised score, 0 for a random policy and 100 for the expert reference; the return itself if the
            environment has no references.
        success: whether the goal was reached at any step; None if the environment does not report it.
        time_to_goal_steps: steps until the goal was first reached; None if never.
        length: steps of the episode.
        horizon: transitions in the first plan; None for a policy without plans.
        plan_speed_error: speed error of the first plan; None for a policy without plans.
        num_plans: how often it planned, including searches for a sooner plan that found none.
        plan_seconds: seconds spent on its plans; the time of a batch is shared evenly over the plans in it.
        metrics: further metrics of the task, by name; None where a metric is undefined in this episode.
    """

    episode: int
    seed: int
    goal: list[float] | None
    start: list[float]
    undiscounted_return: float
    score: float
    success: bool | None
    time_to_goal_steps: int | None
    length: int
    horizon: int | None
    plan_speed_error: float | None
    num_plans: int
    plan_seconds: float
    metrics: dict[str, float | None] = field(default_factory=dict)

    def get_metric(self, name: str) -> float | None:
        """A metric by name: one of `GENERAL_METRICS`, or of the task; None if it is undefined in this episode."""
        general = {
            "return": self.undiscounted_return,
            "score": self.score,
            "length": self.length,
            "success": self.success,
            "time_to_goal_steps": self.time_to_goal_steps,
            "plan_seconds": self.plan_seconds,
        }
        value = general[name] if name in general else self.metrics[name]
        return None if value is None else float(value)


def normalize_score(undiscounted_return: float, reference_returns: tuple[float, float] | None) -> float:
    """D4RL's score, 100 (return - random) / (expert - random); the return where there are no references."""
    if reference_returns is None:
        return undiscounted_return
    random, expert = reference_returns
    return 100 * (undiscounted_return - random) / (expert - random)


def compute_interval(values: Sequence[float], seed: int = 0) -> list[float] | None:
    """95 % interval of the mean, its two ends; None for fewer than two values, which say nothing about their spread.

    Student's t below `NUM_BOOTSTRAPPED` values, and from there on the bootstrap (percentile method, 10 000 resamples),
    which needs no normal distribution but is too narrow for few values: it covers 54 % for two.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return None
    mean = float(array.mean())
    if np.ptp(array) == 0:
        return [mean, mean]
    if len(array) < NUM_BOOTSTRAPPED:
        reach = float(stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array)))
        return [mean - reach, mean + reach]
    result = stats.bootstrap(
        (array,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(seed)
    )
    return [float(result.confidence_interval.low), float(result.confidence_interval.high)]


def compute_rate_interval(successes: Sequence[bool]) -> list[float] | None:
    """95 % interval of a success rate (Wilson's score interval), its two ends; None without episodes.

    Unlike the standard error it is not empty where all episodes succeed or all fail.
    """
    if not len(successes):
        return None
    found = stats.binomtest(int(np.sum(successes)), len(successes)).proportion_ci(0.95, method="wilson")
    return [float(found.low), float(found.high)]


def summarize(
    results: Sequence[EpisodeResult],
    *,
    env_id: str,
    protocol: str,
    references: tuple[float, float] | None,
    wall_seconds: float,
    config: dict[str, Any],
) -> dict[str, Any]:
    """The summary of an evaluation, as JSON values; every number that is printed anywhere comes from it.

    Args:
        results: the episodes.
        env_id: id of their environment.
        protocol: name of the protocol.
        references: returns that score 0 and 100; None if scores are returns.
        wall_seconds: time of the evaluation.
        config: settings of the evaluation.
    """
    if not results:
        raise ValueError("expected at least one episode, got none")
    scores = np.array([r.score for r in results])
    times = [r.time_to_goal_steps for r in results if r.time_to_goal_steps is not None]
    successes = [r.success for r in results if r.success is not None]
    num_plans = sum(r.num_plans for r in results)
    plan_seconds = sum(r.plan_seconds for r in results)
    names = [*GENERAL_METRICS, *results[0].metrics]
    return {
        "env_id": env_id,
        "protocol": protocol,
        "episodes": len(results),
        "references": None if references is None else list(references),
        "score_mean": float(scores.mean()),
        "score_stderr": float(scores.std(ddof=1) / math.sqrt(len(scores))) if len(scores) > 1 else None,
        "score_ci95": compute_interval(scores.tolist()),
        "score_iqm": float(stats.trim_mean(scores, 0.25)),
        "return_mean": float(np.mean([r.undiscounted_return for r in results])),
        "success_rate": float(np.mean(successes)) if successes else None,
        "success_ci95": compute_rate_interval(successes),
        "time_to_goal_steps_mean": float(np.mean(times)) if times else None,
        "metrics": {name: _mean([r.get_metric(name) for r in results]) for name in names},
        "plan_seconds_mean": plan_seconds / num_plans if num_plans else None,
        "plans_per_second": num_plans / plan_seconds if plan_seconds > 0 else None,
        "wall_seconds": wall_seconds,
        "config": config,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of the known values; None if there are none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def results_to_rows(results: Sequence[EpisodeResult]) -> list[dict[str, Any]]:
    """Results as rows of a table, the metrics of the task as further columns."""
    rows = [asdict(result) for result in results]
    return [{**row, **metrics} for row in rows for metrics in [row.pop("metrics")]]

"""Fronts whose answers are known in closed form, and what trials are judged by."""

import dataclasses

import numpy as np
import pytest

from diffplan.config.study import Among, Study
from diffplan.errors import ConfigError
from diffplan.evaluation.scores import EpisodeResult
from diffplan.tasks.contracts import Metric
from diffplan.tasks.registry import DEFAULT_TASK, find_task
from diffplan.tasks.task import Task
from diffplan.tuning.front import find_front
from diffplan.tuning.metrics import compute_merit, compute_objective, summarize_trial


def test_the_front_of_a_disc_is_its_quarter_circle() -> None:
    """Of points x² + y² <= 1 with y large and x small wanted, none beats those of the arc from (-1, 0) to (0, 1)."""
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    points = np.concatenate([r * np.stack([np.sin(angles), np.cos(angles)], axis=1) for r in (1.0, 0.9, 0.3)])
    front = find_front(points.tolist(), [False, True])
    on_arc = {i for i in range(64) if np.sin(angles[i]) >= -1e-12 and np.cos(angles[i]) <= 1e-12}
    assert set(front) == on_arc
    times = points[front, 1]
    assert (np.diff(times) > 0).all()
    assert (np.diff(points[front, 0]) > 0).all()  # along a front, what is gained in one is lost in the other


def test_a_front_agrees_with_its_definition_on_random_points() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        points = generator.integers(0, 6, size=(30, 2)).astype(float)
        front = find_front(points.tolist(), [False, True])

        def beats(a: np.ndarray, b: np.ndarray) -> bool:
            return a[0] >= b[0] and a[1] <= b[1] and bool((a != b).any())

        unbeaten = {tuple(p) for p in points if not any(beats(other, p) for other in points)}
        assert {tuple(points[i]) for i in front} == unbeaten
        assert len(front) == len(unbeaten)  # equal points stand there once


def test_fronts_of_one_objective_and_of_nothing() -> None:
    assert find_front([[3.0], [5.0], [5.0], [1.0]], [False]) == [1]
    assert find_front([], [False, True]) == []


PUSHING = Task(
    name="pushing",
    metrics={
        "pushed": Metric("pushed"),
        "effort": Metric("effort", less_is_better=True),
        "miss": Metric("distance of a miss", less_is_better=True),
    },
    objective="pushed",
)
"""A task without goals: its episodes have no `success`, and those that hit have no `miss`."""
STUDY = Study(vary={"planning.selection.num_candidates": Among(among=(1, 2))})


def result(
    score: float, plan_seconds: float = 0.0, success: bool | None = None, **metrics: float | None
) -> EpisodeResult:
    return EpisodeResult(
        0, 0, None, [0, 0], 2 * score, score, success, None, 300, 8, 0.0, 1, plan_seconds, metrics=metrics
    )


def test_metrics_are_means_over_episodes() -> None:
    results = [result(100, 0.1, True, pushed=3.0), result(0, 0.3, False, pushed=1.0)]
    assert summarize_trial(results, STUDY, "pushed", PUSHING) == {
        "objective": 2.0,
        "score_mean": 50.0,
        "success_rate": 0.5,
        "plan_seconds": pytest.approx(0.2),
        "episodes": 2,
    }


def test_a_search_improves_the_return_unless_the_task_says_otherwise() -> None:
    assert Task(name="any").objective == find_task(DEFAULT_TASK).objective == "return"
    summary = summarize_trial([result(3.0), result(4.0)], STUDY, "return", Task(name="any"))
    assert summary["objective"] == 7.0  # returns are twice the scores here
    assert summary["success_rate"] is None


def test_less_of_some_metrics_is_better() -> None:
    results = [result(0.0, effort=2.0), result(0.0, effort=4.0)]
    assert compute_objective(results, "effort", PUSHING) == -3.0
    assert compute_objective([result(1.0, 0.5)], "plan_seconds", PUSHING) == -0.5


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("speed", ["search.objective", "speed", "pushed", "return"]),
        ("miss", ["search.objective", "got miss", "1 of 3", "take pushed"]),
        ("success", ["search.objective", "got success", "3 of 3"]),
        ("time_to_goal_steps", ["search.objective", "3 of 3"]),
    ],
)
def test_a_metric_that_episodes_lack_is_refused_in_one_line(metric: str, words: list[str]) -> None:
    """The mean over the episodes that have it would praise failures: only those that miss have a `miss`."""
    results = [result(1.0, pushed=1.0, miss=0.5), result(1.0, pushed=1.0, miss=None), result(1.0, pushed=1.0, miss=1.5)]
    with pytest.raises(ConfigError) as error:
        compute_objective(results, metric, PUSHING)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_study_is_not_after_the_success_of_episodes_that_know_none() -> None:
    study = dataclasses.replace(STUDY, objectives=("objective", "success_rate"))
    with pytest.raises(ConfigError, match=r"study\.objectives: .*success_rate") as error:
        summarize_trial([result(1.0)], study, "return", PUSHING)
    assert "\n" not in str(error.value)
    assert summarize_trial([result(1.0, success=False)], study, "return", PUSHING)["success_rate"] == 0.0


def test_the_cost_weight_trades_points_for_seconds() -> None:
    quick, slow = (
        summarize_trial([result(score, seconds)], STUDY, "score", PUSHING)
        for score, seconds in ((150, 0.02), (155, 0.22))
    )
    for weight, expected in ((0.0, slow), (24.0, slow), (26.0, quick)):
        study = dataclasses.replace(STUDY, objectives=("score_mean", "plan_seconds"), cost_weight=weight)
        assert max((quick, slow), key=lambda metrics: compute_merit(study, metrics)) is expected
        assert compute_merit(study, slow) == pytest.approx(155 - weight * 0.22)
    assert compute_merit(dataclasses.replace(STUDY, objectives=("plan_seconds",)), quick) == pytest.approx(-0.02)

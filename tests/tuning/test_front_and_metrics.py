"""Fronts whose answers are known in closed form, and what trials are judged by."""

import numpy as np
import pytest

from diffplan.config.study import Among, Study
from diffplan.evaluation.scores import EpisodeResult
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


def result(score: float, success: bool, plan_seconds: float = 0.0) -> EpisodeResult:
    return EpisodeResult(0, 0, [0, 0], [0, 0, 0, 0], 0.0, score, success, None, 300, 8, 0.0, 1, plan_seconds)


def test_missing_goals_cost_more_than_speed_gains() -> None:
    safe, bold = [result(150, True)] * 10, [result(155, True)] * 9 + [result(-17, False)]
    assert compute_objective(safe) == 150
    assert compute_objective(bold) == pytest.approx((9 * 155 - 117) / 10)
    assert compute_objective(bold) < compute_objective(safe)


def test_metrics_are_means_over_episodes() -> None:
    assert summarize_trial([result(100, True, 0.1), result(0, False, 0.3)]) == {
        "objective": 0.0,
        "score_mean": 50.0,
        "success_rate": 0.5,
        "plan_seconds": pytest.approx(0.2),
        "episodes": 2,
    }


def test_the_cost_weight_trades_points_for_seconds() -> None:
    vary = {"planning.num_candidates": Among(among=(1, 2))}
    quick, slow = summarize_trial([result(150, True, 0.02)]), summarize_trial([result(155, True, 0.22)])
    for weight, expected in ((0.0, slow), (24.0, slow), (26.0, quick)):
        study = Study(vary=vary, objectives=("score_mean", "plan_seconds"), cost_weight=weight)
        assert max((quick, slow), key=lambda metrics: compute_merit(study, metrics)) is expected
        assert compute_merit(study, slow) == pytest.approx(155 - weight * 0.22)
    assert compute_merit(Study(vary=vary, objectives=("plan_seconds",)), quick) == pytest.approx(-0.02)

"""What is measured of an episode in a maze, for episodes whose numbers are known by hand."""

import numpy as np
import pytest

from diffplan.config import EnvConfig
from diffplan.evaluation.record import Record
from diffplan.evaluation.rollout import evaluate_episodes, measure_episodes
from diffplan.evaluation.scores import EpisodeResult
from diffplan.tasks.contracts import FinishedEpisodes
from diffplan.tasks.maze2d.metrics import METRICS
from diffplan.tasks.registry import find_task
from diffplan.tuning.metrics import compute_objective

TASK = find_task("maze2d")
UMAZE = EnvConfig(env_id="diffplan/Maze2D-UMaze-v1")


def measure(paths, success, goals, scores):
    """Metrics of episodes that are positions float[num_steps + 1, 2] and when they are at their goal."""
    starts = np.array([[*path[0], 0, 0] for path in paths])
    record = Record(starts)
    for step in range(max(map(len, paths)) - 1):
        envs = np.array([i for i, path in enumerate(paths) if step + 1 < len(path)])
        observations = np.array([[*paths[i][step + 1], 0, 0] for i in envs])
        record.add(envs, observations, np.zeros(len(envs)), np.array([success[i][step] for i in envs]))
    return measure_episodes(TASK, FinishedEpisodes(UMAZE, record, starts, np.array(goals), np.array(scores)))


def test_metrics_of_known_episodes():
    """From (3, 1) to within 0.5 of (3, 3), in the lower arm of the U: straight, by a detour, never, and at once."""
    straight = [(3.0, 1.0 + 0.1 * i) for i in range(21)]
    detour = [(3.0, 1.0), (3.0, 1.75), (3.0, 1.0), *straight[1:]]  # 1.5 longer
    lost = [(3.0, 1.0)] * 4
    there = [(3.0, 3.0)] * 3
    metrics = measure(
        [straight, detour, lost, there],
        [[n >= 15 for n in range(20)], [n >= 17 for n in range(22)], [False] * 3, [True] * 2],
        [[3.0, 3.0]] * 4,
        [150.0, 120.0, -17.0, 160.0],
    )
    assert list(metrics) == list(METRICS)
    assert metrics["score_less_misses"] == [150.0, 120.0, -117.0, 160.0]
    assert metrics["path_efficiency"][0] == pytest.approx(1.5 / 1.5, abs=0.07)
    assert metrics["path_efficiency"][1] == pytest.approx(1.5 / 3.0, abs=0.04)
    assert metrics["path_efficiency"][2:] == [None, None]
    assert metrics["collision_steps"] == [0.0] * 4
    (along_the_wall,) = measure([[(2.9, 1.0), *[(3.21, 1.0)] * 5]], [[False] * 5], [[3, 3]], [0.0])["collision_steps"]
    assert along_the_wall == 5.0


def test_episodes_are_measured_as_a_whole():
    """The waypoint controller is nearly as short as can be, random actions never are."""
    env = EnvConfig(env_id="diffplan/Maze2D-UMaze-v1", env_kwargs={"redraw_goal": True})
    results, _ = evaluate_episodes(TASK.policies["waypoint"], env, range(8), seed=1)
    for result in results:
        assert list(result.metrics) == list(METRICS)
        assert result.get_metric("score_less_misses") == result.score
        assert result.metrics["path_efficiency"] is None or 0.5 < result.metrics["path_efficiency"] <= 1.001
        assert result.metrics["collision_steps"] >= 0
    assert sum(result.metrics["path_efficiency"] is not None for result in results) >= 4


def result(score: float, success: bool) -> EpisodeResult:
    metrics = {"score_less_misses": score - 100 * (not success)}
    return EpisodeResult(0, 0, [0, 0], [0] * 4, 0.0, score, success, None, 300, 8, 0.0, 1, 0.0, metrics=metrics)


def test_missing_goals_cost_more_than_speed_gains():
    assert TASK.objective == "score_less_misses"
    safe, bold = [result(150, True)] * 10, [result(155, True)] * 9 + [result(-17, False)]
    assert compute_objective(safe, TASK.objective, TASK) == 150
    assert compute_objective(bold, TASK.objective, TASK) == pytest.approx((9 * 155 - 117) / 10)
    assert compute_objective(bold, TASK.objective, TASK) < compute_objective(safe, TASK.objective, TASK)

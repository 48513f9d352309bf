import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from diffplan.cluster.evaluate.coordinator import NUM_RECORDED, evaluate
from diffplan.config import EnvConfig
from diffplan.errors import CheckpointError, ClusterError, ConfigError
from diffplan.evaluation.protocol import EPISODES_PER_UNIT
from diffplan.evaluation.scores import EpisodeResult
from diffplan.evaluation.sources import find_policy
from diffplan.evaluation.unit_results import UnitResults

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
EPISODES = EPISODES_PER_UNIT + 5


@pytest.fixture(scope="module")
def result(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluation") / "multi2d"
    evaluate(tiny_checkpoint, out, protocol="multi2d", episodes=EPISODES, seed=3, num_workers=1)
    return out


def test_the_summary_follows_from_the_episodes(result: Path) -> None:
    summary = json.loads((result / "summary.json").read_text())
    episodes = pq.read_table(result / "episodes.parquet").to_pandas()
    assert list(episodes["episode"]) == list(range(EPISODES))
    assert summary["episodes"] == EPISODES
    assert summary["env_id"] == "diffplan/Maze2D-UMaze-v1"
    assert summary["protocol"] == "multi2d"
    assert summary["score_mean"] == pytest.approx(episodes["score"].mean())
    assert summary["score_stderr"] == pytest.approx(episodes["score"].std() / np.sqrt(EPISODES))
    low, high = summary["score_ci95"]
    assert low < summary["score_mean"] < high
    assert summary["success_rate"] == pytest.approx(episodes["success"].mean())
    reached = episodes.loc[episodes["success"], "time_to_goal_steps"]
    assert summary["time_to_goal_steps_mean"] == pytest.approx(reached.mean())
    np.testing.assert_allclose(
        episodes["score"], 100 * (episodes["undiscounted_return"] - 23.85) / (161.86 - 23.85), rtol=1e-12
    )
    assert summary["config"]["planning"]["sampling"]["num_steps"] == 2
    assert summary["plans_per_second"] == pytest.approx(1 / summary["plan_seconds_mean"])


def test_recordings_are_the_first_episodes(result: Path) -> None:
    episodes = pq.read_table(result / "episodes.parquet").to_pandas()
    recordings = np.load(result / "recordings.npz")
    assert len(recordings.files) == 3 * NUM_RECORDED
    for i in range(NUM_RECORDED):
        observations, goal = recordings[f"observations_{i}"], recordings[f"goal_{i}"]
        assert observations.shape == (301, 4)
        np.testing.assert_allclose(observations[0], episodes["start"][i], rtol=1e-6)
        near = np.linalg.norm(observations[1:, :2] - goal, axis=1) <= 0.5
        assert near.sum() == pytest.approx(episodes["undiscounted_return"][i], abs=1)


def test_goals_differ_under_multi2d_only(result: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    goals = np.stack(pq.read_table(result / "episodes.parquet").to_pandas()["goal"])
    assert len(np.unique(goals, axis=0)) == EPISODES
    evaluate(tiny_checkpoint, tmp_path / "maze2d", protocol="maze2d", episodes=4)
    goals = np.stack(pq.read_table(tmp_path / "maze2d" / "episodes.parquet").to_pandas()["goal"])
    assert np.array_equal(goals, np.ones((4, 2)))


def test_the_number_of_workers_changes_no_score(result: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    evaluate(tiny_checkpoint, tmp_path / "two", protocol="multi2d", episodes=EPISODES, seed=3, num_workers=2)
    columns = ["seed", "start", "goal", "undiscounted_return", "success", "horizon"]
    one, two = (pq.read_table(path / "episodes.parquet", columns=columns) for path in (result, tmp_path / "two"))
    assert one.equals(two)


def test_smaller_units_are_other_evaluations_of_the_same_episodes(
    result: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    write = UnitResults.write
    monkeypatch.setattr(
        UnitResults,
        "write",
        lambda self, unit, results: (done.append((unit, len(results))), write(self, unit, results)),
    )
    settings = {"protocol": "multi2d", "episodes": 11, "seed": 3}
    summary = evaluate(tiny_checkpoint, tmp_path / "small", **settings, episodes_per_unit=4)
    assert sorted(done) == [(0, 4), (1, 4), (2, 3)]
    assert summary["config"]["episodes_per_unit"] == 4
    columns = ["episode", "seed", "start", "goal"]
    large, small = (
        pq.read_table(path / "episodes.parquet", columns=columns).slice(0, 11) for path in (result, tmp_path / "small")
    )
    assert small.equals(large)
    with pytest.raises(ConfigError, match="episodes_per_unit: expected at least 1, got 0"):
        evaluate(tiny_checkpoint, tmp_path / "none", **settings, episodes_per_unit=0)


def test_a_goal_of_ones_own(tiny_checkpoint: Path, tmp_path: Path) -> None:
    evaluate(tiny_checkpoint, tmp_path / "own", protocol="maze2d", episodes=2, goal=[3.0, 1.0])
    assert pq.read_table(tmp_path / "own" / "episodes.parquet")["goal"].to_pylist() == [[3.0, 1.0]] * 2
    with pytest.raises(ConfigError, match=r"wall cell \(2, 1\)"):
        evaluate(tiny_checkpoint, tmp_path / "wall", protocol="maze2d", episodes=2, goal=[2.0, 1.0])
    assert not (tmp_path / "wall" / "summary.json").exists()


def test_what_cannot_work_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="protocol"):
        evaluate(tiny_checkpoint, tmp_path / "x", protocol="maze9d")
    with pytest.raises(ConfigError, match="episodes: expected at least 1, got 0"):
        evaluate(tiny_checkpoint, tmp_path / "x", protocol="maze2d", episodes=0)
    with pytest.raises(CheckpointError, match="expected a checkpoint"):
        evaluate(tmp_path, tmp_path / "x", protocol="maze2d")
    with pytest.raises(ClusterError, match="64 CPUs"):
        evaluate(tiny_checkpoint, tmp_path / "x", protocol="maze2d", num_workers=64)


def test_an_interrupted_evaluation_goes_on_with_the_units_it_has(
    result: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, done = tmp_path / "multi2d", []

    def interrupt(self: UnitResults, unit: int, results: list[EpisodeResult]) -> None:
        write(self, unit, results)
        done.append(unit)
        raise KeyboardInterrupt

    write = UnitResults.write
    monkeypatch.setattr(UnitResults, "write", interrupt)
    settings = {"protocol": "multi2d", "episodes": EPISODES, "seed": 3, "num_workers": 1}
    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny_checkpoint, out, **settings)
    monkeypatch.undo()
    assert done == [0]
    assert not (out / "summary.json").exists()
    (out / "recordings.npz").rename(out / "kept.npz")  # made with unit 0, which is not run again
    with pytest.raises(ConfigError, match="begun with another seed"):
        evaluate(tiny_checkpoint, out, **{**settings, "seed": 4}, resume=True)
    evaluate(tiny_checkpoint, out, **settings, resume=True)
    assert not (out / "recordings.npz").exists()
    assert not (out / "units").exists()
    columns = ["episode", "seed", "start", "goal", "undiscounted_return", "success", "horizon"]
    whole, resumed = (pq.read_table(path / "episodes.parquet", columns=columns) for path in (result, out))
    assert resumed.equals(whole)


def test_a_baseline_is_evaluated_like_a_planner(tmp_path: Path) -> None:
    source = find_policy("baseline:waypoint", env=EnvConfig(env_id="diffplan/Maze2D-UMaze-v1"))
    summary = evaluate(source, tmp_path, protocol="maze2d", episodes=4, seed=3)
    assert summary["success_rate"] == 1
    assert summary["plan_seconds_mean"] is None
    assert summary["config"]["baseline"] == "waypoint"
    assert np.load(tmp_path / "recordings.npz")["plan_0"].shape == (0, 4)

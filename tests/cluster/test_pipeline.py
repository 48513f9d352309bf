import json
from pathlib import Path

import pytest

from diffplan import cli
from diffplan.cluster.pipeline import new_run_directory, point_latest, run_pipeline
from diffplan.config import Config, EnvConfig, with_overrides
from diffplan.data.format.dataset import open_dataset
from diffplan.errors import ConfigError
from diffplan.evaluation.table import format_table

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def run(short_fits: None, tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("pipeline") / "run"
    run_pipeline(tiny_config, run, preset="tiny", command="this test", episodes=4)
    return run


def test_a_run_holds_what_others_rely_on(run: Path) -> None:
    for name in (
        "dataset/_dataset.json",
        "checkpoint/model.safetensors",
        "checkpoint/calibration.json",
        "search/best.json",
        "evaluation/maze2d/summary.json",
        "evaluation/multi2d/summary.json",
        "tensorboard",
        "report.html",
    ):
        assert (run / name).exists(), name
    record = json.loads((run / "pipeline.json").read_text())
    assert [stage["name"] for stage in record["stages"]] == [
        "collect", "train", "calibrate", "tune", "evaluate maze2d", "evaluate multi2d", "report",
    ]  # fmt: skip
    assert record["command"] == "this test"


def test_the_status_of_a_run_tells_what_every_stage_did_and_cost(
    run: Path, tiny_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["status", str(run), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    stages = {stage["stage"]: stage for stage in record["stages"]}
    assert {name: (stage["state"], stage["done"], stage["total"]) for name, stage in stages.items()} == {
        "collect": ("done", 6_000, 6_000),
        "train": ("done", tiny_config.training.num_steps, tiny_config.training.num_steps),
        "calibrate": ("done", 200, 200),
        "tune": ("done", 3, 3),
        "evaluate maze2d": ("done", 4, 4),
        "evaluate multi2d": ("done", 4, 4),
        "report": ("done", 1, 1),
    }
    for stage in stages.values():
        assert stage["attempts"] == 1
        assert 0 < stage["cpu_hours"] <= 2 * stage["seconds"] / 3_600 + 1e-9
        assert stage["gpu_hours"] == 0
    assert record["cpu_hours"] == pytest.approx(sum(stage["cpu_hours"] for stage in stages.values()))
    assert cli.main(["status", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "stage", "collect", "train", "calibrate", "tune", "evaluate", "evaluate", "report", "total",
    ]  # fmt: skip
    parts = {"dataset": "collect", "checkpoint": "train", "search": "tune", "evaluation/maze2d": "evaluate"}
    for part, stage in parts.items():
        assert cli.main(["status", str(run / part)]) == 0
        header, line = capsys.readouterr().out.splitlines()[:2]
        assert (header.split()[0], line.split()[:2]) == ("stage", [stage, "done"])


def test_evaluation_plans_with_the_settings_that_the_search_found(run: Path) -> None:
    best = json.loads((run / "search" / "best.json").read_text())["settings"]
    summary = json.loads((run / "evaluation" / "maze2d" / "summary.json").read_text())
    assert summary["config"]["planning"] == best


def test_resuming_runs_only_what_is_missing(run: Path, tiny_config: Config) -> None:
    content = open_dataset(run / "dataset").content_hash()
    model = (run / "checkpoint" / "model.safetensors").stat().st_mtime_ns
    kept = (run / "evaluation" / "maze2d" / "summary.json").read_bytes()
    gone = json.loads((run / "evaluation" / "multi2d" / "summary.json").read_text())
    (run / "evaluation" / "multi2d" / "summary.json").unlink()
    lines: list[str] = []
    summaries = run_pipeline(
        tiny_config, run, preset="tiny", command="again", episodes=4, resume=True, announce=lines.append
    )
    assert [line for line in lines if "done before" in line] == [
        "collect: done before", "train: done before", "calibrate: done before", "tune: done before",
        "evaluate maze2d: done before",
    ]  # fmt: skip
    assert open_dataset(run / "dataset").content_hash() == content
    assert (run / "checkpoint" / "model.safetensors").stat().st_mtime_ns == model
    assert (run / "evaluation" / "maze2d" / "summary.json").read_bytes() == kept
    assert summaries["multi2d"]["score_mean"] == gone["score_mean"]


def test_a_run_is_never_taken_for_another(run: Path, tiny_config: Config) -> None:
    with pytest.raises(ConfigError, match="--resume"):
        run_pipeline(tiny_config, run, preset="tiny", command="")
    other = with_overrides(tiny_config, {"training.seed": 5})
    with pytest.raises(ConfigError, match="other settings"):
        run_pipeline(other, run, preset="tiny", command="", resume=True)


def test_the_table_shows_ours_beside_the_published(run: Path, tiny_config: Config) -> None:
    summary = json.loads((run / "evaluation" / "maze2d" / "summary.json").read_text())
    table = format_table({"maze2d": summary}, tiny_config.env)
    assert f"{summary['score_mean']:.1f}" in table
    assert "Diffuser 113.9" in table
    never = {**summary, "time_to_goal_steps_mean": None}
    assert "never" in format_table({"maze2d": never}, tiny_config.env)
    another = EnvConfig(env_id="diffplan/Maze2D-Open-v1")
    assert "published" not in format_table({"maze2d": never}, another)


def test_new_runs_have_new_names_and_latest_points_at_the_last(tmp_path: Path) -> None:
    first = new_run_directory(tmp_path, "maze2d-umaze")
    first.mkdir()
    second = new_run_directory(tmp_path, "maze2d-umaze")
    assert second != first
    second.mkdir()
    point_latest(first)
    point_latest(second)
    assert (tmp_path / "latest").resolve() == second.resolve()

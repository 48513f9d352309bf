"""The whole path in an object store: nothing of a run lies on this machine but copies."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from s3_server import S3Server, run_s3_server

from diffplan import cli
from diffplan.cluster.pipeline import run_pipeline
from diffplan.cluster.tune.search import tune_planner
from diffplan.config import Config
from diffplan.errors import ConfigError
from diffplan.runs.usage import record_usage
from diffplan.storage.opening import open_store
from diffplan.storage.store import Store
from diffplan.tuning.journal import SearchJournal

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with run_s3_server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.variables.items():
            patch.setenv(name, value)
        patch.setenv("DIFFPLAN_CACHE", str(tmp_path_factory.mktemp("cache")))
        make_bucket(server)
        yield "s3://runs/umaze"


def make_bucket(server: S3Server) -> None:
    server.client().create_bucket(Bucket="runs")


@pytest.fixture(scope="module")
def run(url: str, short_fits: None, tiny_config: Config) -> Store:
    run_pipeline(tiny_config, url, preset="tiny", command="this test", episodes=4)
    return open_store(url)


def read(run: Store, name: str) -> Any:
    return json.loads(run.read(name))


def test_every_stage_leaves_its_output_in_the_store(run: Store) -> None:
    assert {stored.name for stored in run.list("")} == {"config.json", "pipeline.json", "report.html"}
    assert run.list_directories("") == ["checkpoint", "dataset", "evaluation", "search", "tensorboard", "usage"]
    search = {stored.name.rpartition("/")[2] for stored in run.list("search")}
    assert search >= {"best.json", "trials.json", "importances.json", "study.journal", "search.png"}
    assert run.list_directories("search") == ["search/usage"]
    for stage in ("dataset", "evaluation/maze2d"):
        (events,) = run.list(f"{stage}/tensorboard")
        assert "tfevents" in events.name
    for protocol in ("maze2d", "multi2d"):
        names = {stored.name.rpartition("/")[2] for stored in run.list(f"evaluation/{protocol}")}
        assert names == {"summary.json", "episodes.parquet", "recordings.npz"}
        assert run.list(f"evaluation/{protocol}/units") == []
    summary = read(run, "evaluation/maze2d/summary.json")
    assert summary["config"]["planning"] == read(run, "search/best.json")["settings"]
    assert summary["config"]["checkpoint"] == f"{run.uri}/checkpoint"
    page = run.read("report.html").decode()
    for part in ("Maze2D-UMaze", "loss", "multi2d"):
        assert part in page


def test_its_status_is_read_from_the_store(run: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", run.uri, "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert [stage["stage"] for stage in stages] == [
        "collect", "train", "calibrate", "tune", "evaluate maze2d", "evaluate multi2d", "report",
    ]  # fmt: skip
    assert {stage["state"] for stage in stages} == {"done"}
    assert all(stage["cpu_hours"] > 0 and stage["attempts"] == 1 for stage in stages)


def test_resuming_runs_only_what_is_missing(run: Store, tiny_config: Config) -> None:
    with pytest.raises(ConfigError, match=f"{run.uri}: there is a run already; go on with it by --resume"):
        run_pipeline(tiny_config, run.uri, preset="tiny", command="")
    kept = run.read("search/study.journal"), run.read("evaluation/maze2d/summary.json")
    gone = read(run, "evaluation/multi2d/summary.json")
    run.delete("evaluation/multi2d/summary.json")
    lines: list[str] = []
    summaries = run_pipeline(
        tiny_config, run.uri, preset="tiny", command="", episodes=4, resume=True, announce=lines.append
    )
    assert [line for line in lines if "done before" in line] == [
        "collect: done before", "train: done before", "calibrate: done before", "tune: done before",
        "evaluate maze2d: done before",
    ]  # fmt: skip
    assert summaries["multi2d"]["score_mean"] == gone["score_mean"]
    assert (run.read("search/study.journal"), run.read("evaluation/maze2d/summary.json")) == kept


def test_each_command_takes_urls(run: Store, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "evaluate", f"{url}/checkpoint", "--protocol", "maze2d", "--episodes", "2", "--settings",
        f"{url}/search/best.json", "--out", f"{url}-results",
    ]  # fmt: skip
    assert cli.main(arguments) == 0
    assert f"summary: {url}-results/summary.json" in capsys.readouterr().out
    assert read(open_store(f"{url}-results"), "summary.json")["episodes"] == 2
    assert cli.main(["calibrate", f"{url}/checkpoint", "--num_plans", "30"]) == 0
    assert f"calibration: {url}/checkpoint/calibration.json" in capsys.readouterr().out
    assert read(run, "checkpoint/calibration.json")["plans"]["num_plans"] == 30
    assert cli.main(["report", url]) == 0
    assert f"report: {url}/report.html" in capsys.readouterr().out
    assert cli.main([*arguments[:6], "--settings", f"{url}/search/none.json", *arguments[8:]]) == 2
    assert "expected a settings file" in capsys.readouterr().err


def test_a_search_loses_no_finished_trial_with_its_machine(
    run: Store, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver stops when one trial is over, and what it has on its disk is gone."""

    def lose(self: SearchJournal, name: str, metrics: dict[str, Any] | None, is_full: bool) -> None:
        finish(self, name, metrics, is_full)
        raise KeyboardInterrupt

    out, finish = f"{url}-search", SearchJournal.finish
    monkeypatch.setattr(SearchJournal, "finish", lose)
    with pytest.raises(KeyboardInterrupt):
        tune_planner(f"{url}/checkpoint", out)
    monkeypatch.undo()
    store = open_store(out)
    assert [stored.name for stored in store.list("")] == ["study.journal"]
    with pytest.raises(ConfigError, match=f"{out}: there is a search already"):
        tune_planner(f"{url}/checkpoint", out)
    with record_usage(store, "tune", cpus=1), pytest.raises(ConfigError, match="another search is at work there"):
        tune_planner(f"{url}/checkpoint", out, resume=True)
    finished = 0

    def count(self: SearchJournal, name: str, metrics: dict[str, Any] | None, is_full: bool) -> None:
        nonlocal finished
        finished += 1
        finish(self, name, metrics, is_full)

    monkeypatch.setattr(SearchJournal, "finish", count)
    best = tune_planner(f"{url}/checkpoint", out, resume=True)
    assert best["num_trials"] == 3
    assert finished == 2

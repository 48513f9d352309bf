import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from diffplan.cli import main
from diffplan.cli.run_status import read_status
from diffplan.errors import DataError, StoreError
from diffplan.runs import usage as usage_module
from diffplan.runs.usage import STALE_SECONDS, UsageRecorder, read_usage, record_usage
from diffplan.storage.store import LocalStore


def test_an_attempt_records_what_it_held_and_how_far_it_came(tmp_path: Path) -> None:
    with record_usage(tmp_path, "collect", cpus=2, total=100, unit="steps", initial=20) as recorder:
        (running,) = read_usage(tmp_path)
        assert (running.outcome, running.done, running.initial, running.total) == ("running", 20, 20, 100)
        assert running.is_running(time.time())
        assert not running.is_running(running.beat + STALE_SECONDS + 1)
        time.sleep(0.05)
        recorder.hold(4, 1)
        time.sleep(0.05)
        recorder.count(70)
        recorder.show(slowest=1.5)
    (done,) = read_usage(tmp_path)
    assert (done.outcome, done.done, done.values) == ("done", 70, {"slowest": 1.5})
    assert done.seconds >= 0.1
    assert 2 * done.seconds < done.cpu_seconds < 4 * done.seconds
    assert 0.05 <= done.gpu_seconds < done.seconds
    assert done.rate == pytest.approx(50 / done.seconds, rel=0.01)
    assert [path.name for path in (tmp_path / "usage").iterdir()] == [f"{done.attempt}.json"]


@pytest.mark.parametrize(
    ("error", "outcome", "line"),
    [
        (KeyboardInterrupt(), "interrupted", None),
        (DataError("unit 3: expected good data"), "failed", "unit 3: expected good data"),
        (ZeroDivisionError("first\nlast"), "failed", "ZeroDivisionError: last"),
    ],
)
def test_how_an_attempt_ended_is_recorded(error: BaseException, outcome: str, line: str | None, tmp_path: Path) -> None:
    with pytest.raises(type(error)), record_usage(tmp_path, "collect", cpus=1):
        raise error
    (usage,) = read_usage(tmp_path)
    assert (usage.outcome, usage.error) == (outcome, line)


def test_records_are_kept_fresh_while_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_module, "BEAT_SECONDS", 0.05)
    with record_usage(tmp_path, "collect", cpus=1) as recorder:
        (first,) = read_usage(tmp_path)
        recorder.count(1)
        deadline = time.monotonic() + 30
        while (latest := read_usage(tmp_path)[0]).done == 0:
            assert time.monotonic() < deadline, "the record was not refreshed"
            time.sleep(0.01)
        assert latest.beat > first.beat


def test_a_store_that_refuses_the_record_does_not_stop_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: LocalStore, name: str, content: bytes) -> None:
        raise StoreError("refused")

    monkeypatch.setattr(LocalStore, "replace", refuse)
    with record_usage(tmp_path, "collect", cpus=1) as recorder:
        recorder.count(1)
    assert read_usage(tmp_path) == []


def test_a_damaged_record_is_one_line(tmp_path: Path) -> None:
    with record_usage(tmp_path, "collect", cpus=1):
        pass
    (path,) = (tmp_path / "usage").iterdir()
    for content in ("", "[]", "{}", json.dumps({**json.loads(path.read_text()), "beat": "now"})):
        path.write_text(content)
        with pytest.raises(DataError, match="expected the record of an attempt"):
            read_usage(tmp_path)


def test_a_killed_process_is_told_from_one_at_work(tmp_path: Path) -> None:
    """A search that was begun: its journal is there, and its process says no last word."""
    (tmp_path / "study.journal").touch()
    code = (
        "import sys, time; from diffplan.runs.usage import record_usage\n"
        "with record_usage(sys.argv[1], 'tune', cpus=3, total=8, unit='trials') as usage:\n"
        "    usage.count(5); usage._write('running', None); print('begun', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    (stage,) = read_status(tmp_path)
    assert (stage.state, stage.done, stage.total, stage.unit) == ("running", 5, 8, "trials")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    (stage,) = read_status(tmp_path, now=time.time() + STALE_SECONDS + 1)
    assert (stage.state, stage.done, stage.total, stage.attempts) == ("interrupted", 5, 8, 1)
    with record_usage(tmp_path, "tune", cpus=3, total=8, unit="trials", initial=5) as recorder:
        recorder.count(8)
    (tmp_path / "best.json").write_text('{"num_trials": 8}')
    (stage,) = read_status(tmp_path)
    assert (stage.state, stage.done, stage.total, stage.attempts) == ("done", 8, 8, 2)
    assert stage.cpu_hours is not None
    assert stage.seconds is not None
    assert stage.cpu_hours == pytest.approx(3 * stage.seconds / 3_600)


def test_the_rate_is_that_of_the_last_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(usage_module.time, "monotonic", lambda: clock[0])
    with record_usage(tmp_path, "collect", cpus=1, total=10_000) as recorder:
        usage = read_usage(tmp_path)[0]
        other = UsageRecorder(LocalStore(tmp_path), replace(usage, attempt="other"))
        for second, done in ((50, 50), (100, 100), (150, 1_100), (200, 2_100)):
            clock[0] = float(second)
            other.count(done)
            other._write("running", None)
        recorder.count(0)
    assert next(u for u in read_usage(tmp_path) if u.attempt == "other").rate == pytest.approx(20.0)


def test_a_table_has_the_stages_that_were_begun_for_each_maze(tmp_path: Path) -> None:
    (tmp_path / "table_begun.json").write_text("{}")
    for directory, name, text in (
        ("umaze/search", "best.json", '{"num_trials": 8}'),
        ("umaze/policies/iql-maze2d", "policy.json", "{}"),
        ("umaze/policies/bc/run/step_00000100", "config.json", "{}"),
        ("umaze/evaluation/maze2d/mppi", "summary.json", '{"episodes": 100}'),
        ("large/search", "study.journal", ""),
    ):
        (tmp_path / directory).mkdir(parents=True)
        (tmp_path / directory / name).write_text(text)
    stages = [(stage.stage, stage.state, stage.done, stage.total) for stage in read_status(tmp_path)]
    assert stages == [
        ("large: tune", "interrupted", None, None),
        ("umaze: tune", "done", 8, 8),
        ("umaze: train bc", "interrupted", 100, None),
        ("umaze: train iql-maze2d", "done", 1, 1),
        ("umaze: evaluate maze2d mppi", "done", 100, 100),
    ]


def test_a_run_without_records_has_a_state_but_no_cost(tmp_path: Path) -> None:
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "best.json").write_text('{"num_trials": 8}')
    (tmp_path / "evaluation" / "maze2d" / "units").mkdir(parents=True)
    units = tmp_path / "evaluation" / "maze2d" / "units"
    (units / "evaluation.json").write_text('{"episodes": 60, "episodes_per_unit": 25}')
    for unit in (0, 2):
        (units / f"{unit}.json").write_text("[]")
    stages = {stage.stage: stage for stage in read_status(tmp_path)}
    assert {name: stage.state for name, stage in stages.items()} == {
        "collect": "not begun",
        "train": "not begun",
        "calibrate": "not begun",
        "tune": "done",
        "evaluate maze2d": "interrupted",
        "report": "not begun",
    }
    assert (stages["evaluate maze2d"].done, stages["evaluate maze2d"].total) == (50, 60)
    assert all(stage.cpu_hours is None for stage in stages.values())


def test_what_is_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, got in ((tmp_path / "none", "got nothing"), (tmp_path, "got thesis.tex")):
        (tmp_path / "thesis.tex").touch()
        assert main(["status", str(path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "expected a dataset, a training run, a search, an evaluation, a pipeline run or a table" in line
        assert got in line
    (tmp_path / "best.json").write_text("{")
    assert main(["status", str(tmp_path)]) == 2
    assert "expected JSON" in capsys.readouterr().err

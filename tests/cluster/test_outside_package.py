"""The example package runs every stage from outside the platform: by import path, installed, and as a job.

Each is a real pipeline in processes of its own, at the smallest size.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_head import ROOT, Head, start_head

from diffplan.config import Config, config_from_json
from diffplan.data.format.dataset import open_dataset

PACKAGE = ROOT / "docs" / "examples" / "pushing"
PLATFORM = f"{ROOT / 'platform'}:{ROOT / 'envs'}"
SIZES = ("--episodes", "2", "--num_plans", "100", "--num_workers", "1")
NUM_STEPS = 6_000

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run_command(*arguments: object, cwd: Path, path: str = PLATFORM) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    return subprocess.run(
        [sys.executable, "-m", "diffplan.cli", *map(str, arguments)],
        cwd=cwd,
        env={**kept, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def check_run(run: Path, output: str) -> None:
    """Every stage ran, and what the task brings is in the results."""
    stages = [stage["name"] for stage in json.loads((run / "pipeline.json").read_text())["stages"]]
    assert stages == ["collect", "train", "calibrate", "tune", "evaluate near", "evaluate far", "report"]
    assert re.search(r"near .*\nfar ", output), output
    dataset = open_dataset(run / "dataset")
    assert dataset.num_steps == NUM_STEPS
    assert dataset.manifest.action_high == [2.0] * 3
    assert [column.name for column in dataset.manifest.columns][-1] == "goal"
    for protocol in ("near", "far"):
        summary = json.loads((run / "evaluation" / protocol / "summary.json").read_text())
        assert summary["episodes"] == 2
        assert summary["success_rate"] is not None
        assert summary["metrics"]["final_distance"] > 0
        assert 0 <= summary["metrics"]["contact_share"] <= 1
        assert summary["config"]["env"]["env_kwargs"] == {"reach": protocol}
        assert summary["config"]["planning"] == json.loads((run / "search" / "best.json").read_text())["settings"]
    page = (run / "report.html").read_text()
    assert "yellow disc" in page  # words of the task's figures


@pytest.fixture(scope="module")
def by_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by import path, in the directory of a package that nobody installed."""
    run = tmp_path_factory.mktemp("path") / "run"
    done = run_command("pipeline", "pushing.task:TASK/pushing-smoke", "--out", run, *SIZES, cwd=PACKAGE)
    assert done.returncode == 0, done.stdout + done.stderr
    check_run(run, done.stdout)
    return run


def test_by_import_path_nothing_needs_to_be_installed(by_path: Path) -> None:
    config = config_from_json(Config, (by_path / "config.json").read_text())
    assert config.env.task == "pushing.task:TASK"
    assert config.env.goal_columns == (3, 4, 5)


def test_checkpoints_of_a_package_are_evaluated_and_searched(by_path: Path, tmp_path: Path) -> None:
    checkpoint = by_path / "checkpoint"
    done = run_command(
        *("evaluate", checkpoint, "--protocol", "far", "--episodes", 1, "--num_workers", 1, "--out", tmp_path / "far"),
        cwd=PACKAGE,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^far ", done.stdout, re.MULTILINE), done.stdout
    elsewhere = run_command("evaluate", checkpoint, "--protocol", "far", "--out", tmp_path / "none", cwd=tmp_path)
    assert elsewhere.returncode == 2
    assert elsewhere.stderr.count("\n") == 1
    assert "expected a module that can be imported, got 'pushing.task'" in elsewhere.stderr


def test_what_is_compared_with_and_what_the_task_knows_is_found_by_name(tmp_path: Path) -> None:
    arguments = ("--env.env_id", "pushing:pushing/Push-v0", "--env.task", "pushing.task:TASK", "--protocol", "near")
    done = run_command(
        *("evaluate", "baseline:scripted", *arguments, "--episodes", 4, "--num_workers", 1, "--out", tmp_path / "near"),
        cwd=PACKAGE,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "near" / "summary.json").read_text())
    assert summary["success_rate"] == 1
    assert summary["score_mean"] > 80


def test_an_installed_package_is_found_by_name(by_path: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"),
            *("--no-deps", "--no-build-isolation", "--no-index", "--target", target, PACKAGE),
        ],
        check=True,
        capture_output=True,
    )
    path, run = f"{PLATFORM}:{target}", tmp_path / "run"
    listed = run_command("train", "--list", cwd=tmp_path, path=path)
    assert "pushing-small" in listed.stdout
    arguments = ("collect", "pushing/pushing-smoke", "--out", run / "dataset", "--num_workers", 1)
    done = run_command(*arguments, cwd=tmp_path, path=path)
    assert done.returncode == 0, done.stdout + done.stderr
    dataset = open_dataset(run / "dataset")
    assert dataset.env.task == "pushing"
    assert dataset.content_hash() == open_dataset(by_path / "dataset").content_hash()


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with start_head(num_cpus=2) as head:
        yield head


@pytest.mark.soak
def test_as_a_job_the_directory_is_uploaded_with_it(head: Head, by_path: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ("pipeline", "pushing.task:TASK/pushing-smoke", "--out", run, *SIZES)
    with head.start("submit", "--working_dir", PACKAGE, *arguments) as process:
        output, errors = process.communicate(timeout=500)
    assert process.returncode == 0, output + errors
    check_run(run, output)
    assert open_dataset(run / "dataset").content_hash() == open_dataset(by_path / "dataset").content_hash()

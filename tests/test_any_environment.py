"""The whole path on environments that nobody told the platform of, each stage real and a few seconds long."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SMALL = (
    *("--num_steps", 2_000, "--collection.episodes_per_unit", 5),
    *("--training.num_steps", 20, "--training.checkpoint_interval", 20, "--training.picture_interval", 20),
    *("--search.num_trials", 1, "--search.episodes_per_block", 2, "--search.num_blocks", 1),
    *("--episodes", 2),
)
GOALS = {"gymnasium_robotics:PointMaze_UMaze-v3": [0, 1]}
"""Goal columns of environments whose observations tell of goals."""


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    "env_id",
    [
        "Pendulum-v1",
        "gymnasium_robotics:PointMaze_UMaze-v3",
        *(pytest.param(name, marks=pytest.mark.soak) for name in ("Reacher-v5", "Hopper-v5")),
    ],
)
def test_the_whole_path_runs_on(env_id: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["pipeline", "gymnasium", "--env.env_id", env_id, "--out", run, *SMALL]
    done = subprocess.run(
        [sys.executable, "-m", "diffplan.cli", *map(str, command)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    stages = read(run / "pipeline.json")["stages"]
    assert [stage["name"] for stage in stages] == [
        "collect",
        "train",
        "calibrate",
        "tune",
        "evaluate default",
        "report",
    ]
    config = read(run / "checkpoint" / "config.json")["config"]
    assert config["env"]["env_id"] == env_id
    assert config["env"]["goal_columns"] == GOALS.get(env_id, [])
    assert config["env"]["position_columns"] == config["env"]["velocity_columns"] == []
    summary = read(run / "evaluation" / "default" / "summary.json")
    assert summary["episodes"] == 2
    assert math.isfinite(summary["return_mean"])
    assert summary["score_mean"] == summary["return_mean"]  # nothing is known to compare a return with
    assert (summary["success_rate"] is None) == (env_id not in GOALS)
    assert f"{summary['return_mean']:.1f}" in done.stdout
    assert env_id.rpartition(":")[2] in (run / "report.html").read_text()

"""The jobs themselves at the smallest honest size: every stage real, each a few seconds long, on a Ray of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[1]
PROTOCOLS = ("maze2d", "multi2d")


def run(*arguments: object) -> str:
    """A command in the checkout, with what it printed; it must end well."""
    done = subprocess.run([*map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_job(name: str, *arguments: object) -> str:
    return run(sys.executable, f"jobs/{name}.py", *arguments)


def run_command(*arguments: object) -> str:
    return run(sys.executable, "-m", "diffplan.cli", *arguments)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_the_plans_of_a_pipeline_arrive(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_job("pipeline", "maze2d-umaze-smoke", "--out", out, "--episodes", 50)
    assert "every checksum matches" in run_command("data", "verify", out / "dataset")
    for name in ("dataset", "checkpoint/model.safetensors", "search/best.json", "tensorboard", "report.html"):
        assert (out / name).exists(), name
    for protocol in PROTOCOLS:
        summary = read(out / "evaluation" / protocol / "summary.json")
        # A random policy scores 0 and rarely arrives; even the smallest model must do far better.
        assert summary["episodes"] == 50
        assert summary["success_rate"] >= 0.8, summary
        assert summary["score_mean"] >= 60, summary


@pytest.mark.soak
def test_every_method_of_the_papers_table_trains_and_acts(tmp_path: Path) -> None:
    out, packages = tmp_path / "table1", tmp_path / "packages"
    run_job("table1", "--smoke", "--out", out, "--packages", packages)
    # Given again the command has nothing to do.
    run_job("table1", "--smoke", "--out", out, "--results", tmp_path / "again")
    first, again = (read(directory / "table1.json")["rows"] for directory in (out, tmp_path / "again"))
    assert first == again
    assert run_command("plan", packages / "maze2d-umaze", "--start", 3, 1, "--goal", 1, 1)
    rows = {(row["protocol"], row["method"]): row for row in first}
    assert len(rows) == 20, sorted(rows)
    for protocol in PROTOCOLS:
        assert rows[protocol, "waypoint"]["success_rate"] == 1
        assert rows[protocol, "limit"]["score_mean"] >= rows[protocol, "waypoint"]["score_mean"]

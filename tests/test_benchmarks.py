"""Every benchmark runs without arguments; here at the size that only shows that it works."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = {path.stem: str(path) for path in sorted((ROOT / "benchmarks").glob("*.py")) if path.stem != "harness"}
SHOW_HELP = """
import contextlib, io, json, runpy, sys
shown = {}
for script in sys.argv[1:]:
    sys.argv = [script, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        runpy.run_path(script, run_name="__main__")
    shown[script] = out.getvalue()
print(json.dumps(shown))
"""


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """What each benchmark says to `--help`; all in one process, for most of the time is that of imports."""
    command = [sys.executable, "-c", SHOW_HELP, *SCRIPTS.values()]
    ran = subprocess.run(command, cwd=ROOT / "benchmarks", capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", SCRIPTS)
def test_benchmark_has_the_options_of_all(name: str, helps: dict[str, str]) -> None:
    shown = helps[SCRIPTS[name]]
    assert shown.startswith(f"usage: {name}.py ")
    for option in ("--json FILE", "--quick"):
        assert option in shown


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name",
    [
        "data",
        *(
            pytest.param(name, marks=pytest.mark.soak)
            for name in ("collection", "evaluation", "maze2d_limits", "planning", "support", "training")
        ),
    ],
)
def test_benchmark_runs_without_arguments_and_keeps_its_keys(name: str, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    command = [sys.executable, SCRIPTS[name], "--quick", "--json", results]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) > 2  # a table
    found = json.loads(results.read_text())
    measured = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text())
    assert set(measured) <= set(found)


def test_gpu_benchmarks_are_skipped_in_one_line_without_a_gpu(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPTS["planning_gpu"], "--json", tmp_path / "results.json"]
    without = {"CUDA_VISIBLE_DEVICES": "", "PATH": ""}
    ran = subprocess.run(command, cwd=tmp_path, env=without, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "planning_gpu: skipped, for there is no GPU\n"), ran.stderr
    assert not (tmp_path / "results.json").exists()

"""`diffplan train --list` and `diffplan train … --dry_run` as a user meets them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_training import write_straight_paths

from diffplan.cli import main
from diffplan.cli.training_tables import HEADER
from diffplan.tasks.registry import find_preset, list_presets
from diffplan.terminal import format_duration

SMALL = ["--windows.max_horizon", "12", "--windows.stride", "2", "--network.dim", "8", "--network.dim_mults", "1", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "straight"
    write_straight_paths(root)
    return root


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["train", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def list_files(root: Path) -> list[tuple[Path, int]]:
    return sorted((path, os.stat(path).st_mtime_ns) for path in root.rglob("*"))


def test_list_has_every_preset_with_its_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--list")
    assert (code, err) == (0, "")
    header, *lines = out.splitlines()
    for word in ("horizon", "stride", "columns", "diffusion", "parameters", "steps", "batch", "expected time"):
        assert word in header
    rows = {line.split()[0]: line for line in lines[: lines.index("")]}
    assert list(rows) == list_presets()
    assert re.search(
        r" 384 +1 +2 \+ 4 +256 +3,682,118 +2,000,000 +2 x 32 +[\d,.]+ (min|h|days)$", rows["janner-maze2d-large"]
    )
    assert re.search(r" 4-36 +5 +0 \+ 4 +32 +[\d,]+ +3,000 +64 +[\d.]+ (s|min|h)$", rows["maze2d-umaze"])
    for name, row in rows.items():
        preset = find_preset(name)
        if preset.layout is None:  # whatever the environment has
            assert name == "gymnasium"
            assert preset.config.env.env_id == ""
        else:
            assert f" {preset.layout.action_dim} + {preset.layout.observation_dim} " in row
        assert f" {preset.config.training.num_steps:,} " in row
    assert "a rough estimate" in out
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("others", [["maze2d-umaze"], ["--data", "x"]])
def test_list_stands_alone(capsys: pytest.CaptureFixture[str], others: list[str]) -> None:
    for arguments in (["--list", *others], [*others, "--list"]):
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, "")
        assert err == f"error: train --list: expected nothing beside it, got {' '.join(others)}\n"


def test_dry_run_tells_the_cost_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = list_files(data)
    code, out, err = run(
        capsys, "maze2d-open", "--data", data, "--out", "model", "--dry-run", "--training.num_steps", 50, *SMALL
    )
    assert (code, err) == (0, "")
    first, *lines = out.splitlines()
    assert first == f"maze2d-open on {data}: a dry run, nothing is written"
    facts = {line[:12].strip(): line[12:] for line in lines}
    assert "alone it would be faster" in facts.pop("note", "alone it would be faster")
    assert list(facts) == ["parameters", "arithmetic", "windows", "epoch", "memory", "", "step", "batches", "time"]
    assert re.fullmatch(r"[\d,]+", facts["parameters"])
    assert re.fullmatch(r"[\d.]+ GFLOP a step, forward and backward", facts["arithmetic"])
    assert facts["windows"] == "128 in an epoch, 64 in a step"  # starts of the shortest horizon
    assert facts["epoch"] == "2.0 steps; the run of 50 steps has 25.00 epochs"
    for part in ("parameters", "gradients", "optimizer", "average", "activations", "data"):
        assert re.search(rf"{part} [\d.]+ MB", facts[""])
    assert re.fullmatch(r"[\d.]+ ms, [\d.]+ GFLOP/s \(median of 5; .*\)", facts["step"])
    assert facts["batches"].endswith("from memory")
    assert re.fullmatch(r"about [\d.]+ \w+, without checkpoints and validations", facts["time"])
    assert not list(tmp_path.iterdir())
    assert list_files(data) == before


def test_dry_run_needs_no_ray(data: Path, tmp_path: Path) -> None:
    arguments = ["train", "maze2d-open", "--data", str(data), "--out", "model", "--dry_run", *SMALL]
    code = (
        f"import sys; from diffplan.cli import main; code = main({arguments}); sys.exit(code or 'ray' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert not list(tmp_path.iterdir())


def test_dry_run_takes_the_threads_of_a_worker(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    _, out, _ = run(capsys, "maze2d-open", "--data", data, "--out", "x", "--dry_run", "--cpus_per_worker", 1, *SMALL)
    assert "cpu, threads: 1)" in out or "cuda" in out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--data", "no/such"], ["no/such", "diffplan collect"]),
        (["--windows.max_horizon", "400"], ["longest episode has 30"]),
        (["--network.condition", "task", "--network.num_tasks", "2"], ["tasks", "diffplan data merge"]),
        (["--training.num_steps", "0"], ["training.num_steps", "got 0"]),
    ],
    ids=["data", "horizon", "tasks", "steps"],
)
def test_what_cannot_be_trained_is_one_line_and_code_2(
    capsys: pytest.CaptureFixture[str],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: list[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "maze2d-open", "--data", data, "--out", "model", "--dry_run", *SMALL, *change)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert not list(tmp_path.iterdir())


def test_columns_of_the_list_are_explained_in_the_document() -> None:
    document = (Path(__file__).parents[2] / "docs" / "presets.md").read_text()
    table = document.partition("| column | what |")[2].split("\n\n")[0].splitlines()[2:]
    assert tuple(row.split("`")[1] for row in table) == HEADER


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (119, "119 s"),
        (120, "2.0 min"),
        (7_199, "120 min"),
        (7_200, "2.0 h"),
        (100_000, "28 h"),
        (172_800, "2.0 days"),
        (1e9, "11,574 days"),
    ],
)
def test_times_are_told_as_people_do(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text

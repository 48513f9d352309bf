"""The command line as a user meets it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from diffplan.behaviors.collection import UnitCollector, make_manifest
from diffplan.cli import main
from diffplan.config import Config, with_overrides
from diffplan.data.dataset import open_dataset, write_snapshot
from diffplan.data.writer import create_dataset, write_unit
from diffplan.tasks.registry import get_preset
from diffplan.training.batches import TrainingBatches
from diffplan.training.state import TrainingState


@pytest.fixture(scope="module")
def config() -> Config:
    return with_overrides(
        get_preset("maze2d-umaze-smoke"),
        {"collection.num_steps": 1000, "collection.episode_steps": 250, "collection.episodes_per_unit": 2},
    )


@pytest.fixture(scope="module")
def dataset(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "umaze"
    manifest = create_dataset(root, make_manifest(config.env, config.collection))
    collector = UnitCollector(config.env, config.collection)
    for unit in range(config.collection.num_units):
        write_unit(root, manifest, unit, collector.collect(unit))
    write_snapshot(open_dataset(root))
    return root


@pytest.fixture(scope="module")
def checkpoint(config: Config, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffplan.checkpoint import save_checkpoint

    path = tmp_path_factory.mktemp("checkpoint")
    batches = TrainingBatches(config, open_dataset(dataset))
    state = TrainingState(config, batches.layout)
    save_checkpoint(
        path,
        config=config,
        layout=batches.layout,
        step=0,
        normalizer=batches.normalizer,
        weights=state.average_weights(),
        dataset={},
        training_state=state.state_dict(),
    )
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from diffplan.cli import main; main(['--help']);"
        "heavy = {'torch', 'ray', 'pyarrow', 'gymnasium', 'tyro', 'pydantic'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for command in ("collect", "train", "tune", "evaluate", "report", "status", "pipeline", "data"):
        assert f"\n  {command} " in result.stdout


def test_help_names_every_command_that_exists(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("collect", "train", "pipeline", "tune", "evaluate", "report", "status"):
        with pytest.raises(SystemExit) as exit_info:
            main([command, "--help"])
        assert exit_info.value.code == 0
        assert f"usage: diffplan {command}" in capsys.readouterr().out
    code, out, _ = run(capsys, "data", "--help")
    assert code == 0
    assert "usage: diffplan data" in out
    for action in ("info", "verify"):
        assert f"\n  {action} " in out
        with pytest.raises(SystemExit) as exit_info:
            main(["data", action, "--help"])
        assert exit_info.value.code == 0
        assert f"usage: diffplan data {action}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["colect"], ["command", "'colect'", "Did you mean 'collect'"]),
        (["collect", "maze2d-umase", "--out", "x"], ["preset", "Did you mean 'maze2d-umaze'"]),
        (["collect"], ["expected a preset first"]),
        (
            ["collect", "maze2d-umaze", "--out", "x", "--num_steps", "0"],
            ["collection.num_steps", "at least 1", "got 0"],
        ),
        (["collect", "maze2d-umaze", "--out", "x", "--behavior", "waypont"], ["Did you mean 'waypoint'"]),
        (["collect", "maze2d-umaze", "--out", "x", "--env.env_id", "diffplan/Maze2D-Huge-v1"], ["env_id", "Huge"]),
        (["collect", "maze2d-umaze", "--out", "x", "--env.env_kwargs", '{"maze": "###/#O#"}'], ["maze", "3 rows"]),
        (["collect", "maze2d-umaze", "--out", "x", "--num_workers", "0"], ["num_workers", "got 0"]),
        (["train", "maze2d-umaze", "--data", "no/such", "--out", "x"], ["no/such", "diffplan collect"]),
        (["tune", "no/such", "--out", "x"], ["no/such", "diffplan train"]),
        (["evaluate", "no/such", "--out", "x", "--protocol", "maze2d"], ["no/such", "diffplan train"]),
        (["data", "info", "no/such"], ["no/such", "diffplan collect"]),
        (["data", "verify", "no/such"], ["no/such", "diffplan collect"]),
        (["data"], ["expected one of the actions", "verify"]),
        (["data", "verfy", "no/such"], ["'verfy'", "Did you mean 'verify'"]),
        (["report", "no/such"], ["no/such"]),
        (["status", "no/such"], ["no/such", "expected a dataset"]),
        (["pipeline", "maze2d-umaze", "--resume"], ["--out"]),
    ],
    ids=lambda value: "-".join(map(str, value))[:60] if isinstance(value, list) else None,
)
def test_bad_input_is_one_clear_line_and_code_2(
    arguments: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert not list(tmp_path.iterdir())  # nothing half made is left behind


def test_a_horizon_too_short_for_the_network_is_refused(
    capsys: pytest.CaptureFixture[str], dataset: Path, tmp_path: Path
) -> None:
    code, _, err = run(
        capsys, "train", "maze2d-umaze", "--data", dataset, "--out", tmp_path / "x", "--windows.min_horizon", 3
    )
    assert (code, err.count("\n")) == (2, 1)
    assert "windows.min_horizon: expected at least 4" in err


def test_a_horizon_too_long_for_the_episodes_is_refused(
    capsys: pytest.CaptureFixture[str], dataset: Path, tmp_path: Path
) -> None:
    arguments = ["train", "maze2d-umaze", "--data", dataset, "--out", tmp_path / "x", "--windows.max_horizon", 400]
    code, _, err = run(capsys, *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert "longest episode has 250" in err


def test_a_truncated_checkpoint_is_refused(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(checkpoint, damaged)
    content = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(content[:-100])
    code, _, err = run(capsys, "evaluate", damaged, "--protocol", "maze2d", "--out", tmp_path / "x")
    assert (code, err.count("\n")) == (2, 1)
    assert f"model.safetensors: expected {len(content)} bytes, got {len(content) - 100}" in err


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_goal_inside_a_wall_is_refused(capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", checkpoint, "--protocol", "maze2d", "--episodes", 1, "--goal", 2.0, 1.0]
    code, _, err = run(capsys, *arguments, "--out", tmp_path / "x")
    assert code == 2
    assert "wall cell (2, 1)" in err
    assert "Traceback" not in err


def test_unknown_protocol_and_settings_are_refused(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
) -> None:
    arguments = ["evaluate", checkpoint, "--out", tmp_path / "x"]
    code, _, err = run(capsys, *arguments, "--protocol", "maze3d")
    assert code == 2
    assert "Did you mean 'maze2d'" in err
    settings = tmp_path / "settings.json"
    settings.write_text('{"guidance_scal": 1.0}')
    code, _, err = run(capsys, *arguments, "--protocol", "maze2d", "--settings", settings)
    assert code == 2
    assert "Did you mean 'guidance_scale'" in err


def test_data_info_and_verify(capsys: pytest.CaptureFixture[str], dataset: Path, tmp_path: Path) -> None:
    code, out, _ = run(capsys, "data", "info", dataset, "--hash")
    assert code == 0
    assert "1,000" in out
    assert "diffplan/Maze2D-UMaze-v1" in out
    assert open_dataset(dataset).content_hash() in out
    code, out, _ = run(capsys, "data", "verify", dataset)
    assert (code, out) == (0, f"{dataset}: 5 shards, commits and snapshots, every checksum matches\n")
    damaged = tmp_path / "damaged"
    shutil.copytree(dataset, damaged)
    shards = sorted((damaged / "shards").iterdir())
    for shard in shards:
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.chmod(0o644)
        shard.write_bytes(content)
    code, out, err = run(capsys, "data", "verify", damaged)
    assert code == 2
    lines = out.splitlines()
    assert len(lines) == 2
    for line, shard in zip(lines, shards, strict=True):
        assert line.startswith(f"damaged: {shard}: expected checksum")
    assert err.splitlines()[-1].startswith(f"error: {damaged}: 2 of 5 objects are damaged")
    assert "--drop_damaged" in err


def test_data_verify_drops_what_is_damaged(
    capsys: pytest.CaptureFixture[str], config: Config, dataset: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(dataset, damaged)
    shard = next((damaged / "shards").glob("00000001-*"))
    shard.chmod(0o644)
    shard.write_bytes(shard.read_bytes()[:-1])
    assert run(capsys, "data", "info", damaged)[0] == 2  # whose message says what to do
    code, out, _ = run(capsys, "data", "verify", damaged, "--drop_damaged")
    assert code == 0
    first, last = out.splitlines()
    assert first.startswith(f"damaged: {shard}: ")
    assert last.startswith("dropped 1 units [1]")
    assert "--resume" in last
    assert run(capsys, "data", "verify", damaged)[0] == 0
    assert open_dataset(damaged).num_steps == 500
    # Making the unit again gives what was there before.
    manifest = open_dataset(damaged).manifest
    write_unit(damaged, manifest, 1, UnitCollector(config.env, config.collection).collect(1))
    assert open_dataset(damaged).content_hash() == open_dataset(dataset).content_hash()
    assert run(capsys, "data", "verify", damaged)[0] == 0


def test_output_may_be_cut_off(dataset: Path) -> None:
    command = [sys.executable, "-m", "diffplan.cli", "data", "info", str(dataset)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""


def test_a_dataset_that_exists_is_not_overwritten(capsys: pytest.CaptureFixture[str], dataset: Path) -> None:
    before = open_dataset(dataset).content_hash()
    code, _, err = run(capsys, "collect", "maze2d-umaze", "--out", dataset)
    assert code == 2
    assert "--resume" in err
    code, _, err = run(capsys, "collect", "maze2d-umaze", "--out", dataset, "--resume")
    assert code == 2
    assert "collection.episode_steps = 250, expected 1000" in err
    assert open_dataset(dataset).content_hash() == before


def test_jobs_take_the_same_arguments_and_exit_codes() -> None:
    root = Path(__file__).parents[1]
    for name in ("collect", "train", "tune", "evaluate", "pipeline"):
        result = subprocess.run(
            [sys.executable, root / "jobs" / f"{name}.py", "--help"], capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        assert f"usage: diffplan {name}" in result.stdout
    result = subprocess.run(
        [sys.executable, root / "jobs" / "collect.py", "nothing"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: preset")

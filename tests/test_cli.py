"""The command line as a user meets it."""

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_runs import collect

from diffplan.behaviors.collection import UnitCollector
from diffplan.cli import main
from diffplan.cli.command import AnyCommand, Command, Group
from diffplan.cli.main import COMMANDS, find_command
from diffplan.cli.overrides import list_fields
from diffplan.cli.parsing import list_own_options
from diffplan.cli.submit import SubmitArguments
from diffplan.config import Config, with_overrides
from diffplan.data.format.dataset import open_dataset
from diffplan.data.format.writer import write_unit
from diffplan.tasks.registry import find_experiment, get_preset
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
    return collect(config.env, config.collection, tmp_path_factory.mktemp("data") / "umaze")


@pytest.fixture(scope="module")
def checkpoint(config: Config, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("checkpoint"), config, dataset)


def save(path: Path, config: Config, dataset: Path) -> Path:
    """A checkpoint that was not trained."""
    from diffplan.checkpoint import save_checkpoint

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
        "heavy = {'torch', 'ray', 'pyarrow', 'gymnasium', 'pydantic', 'matplotlib'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for command in COMMANDS:
        assert f"• {command} " in result.stdout


def list_commands(name: str, command: AnyCommand) -> Iterator[tuple[str, Command[Any]]]:
    if isinstance(command, Command):
        yield name, command
    elif isinstance(command, Group):
        for action, each in command.commands.items():
            yield from list_commands(f"{name} {action}", each)


EVERY_COMMAND = dict(pair for name in COMMANDS for pair in list_commands(name, find_command(name)))


@pytest.mark.parametrize("name", ["", *COMMANDS, "data info", "data import", "baseline train", "baseline train cql"])
def test_help_fits_a_screen(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = run(capsys, *name.split(), "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: {f'diffplan {name}'.strip()} ")
    assert len(out.splitlines()) <= 40


@pytest.mark.parametrize("name", list(EVERY_COMMAND))
def test_help_all_has_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = EVERY_COMMAND[name]
    code, out, err = run(capsys, *name.split(), "--help_all")
    assert (code, err) == (0, "")
    _, own = list_own_options(command.arguments)
    for option in [*own, *list_fields(command.sections)]:
        assert re.search(rf"^[│ ] --{re.escape(option)}\b", out, re.MULTILINE), option


def test_help_all_of_a_preset_shows_its_values(capsys: pytest.CaptureFixture[str]) -> None:
    for preset in ("maze2d-umaze", "maze2d-large"):
        steps = get_preset(preset).training.num_steps
        out = run(capsys, "train", preset, "--help_all")[1]
        assert f"Optimizer steps. (default: {steps})" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["colect"], ["command", "'colect'", "Did you mean 'collect'"]),
        (["collect", "maze2d-umase", "--out", "x"], ["preset", "did you mean 'maze2d-umaze'?"]),
        (["collect", "--out", "x"], ["expected a preset or a task first", "diffplan train --list"]),
        (["collect", "maze2d-umaze"], ["collect: expected --out, got none"]),
        (["train", "maze2d-umaze"], ["train: expected --data and --out, got neither"]),
        (["evaluate"], ["evaluate: expected POLICY and --out, got neither"]),
        (["collect", "maze2d-umaze", "--out"], ["--out: expected a value, got none"]),
        (["collect", "maze2d-umaze", "--ouut", "x"], ["got --ouut; did you mean --out?"]),
        (["collect", "maze2d-umaze", "--num-step=3"], ["got --num-step; did you mean --num_steps?"]),
        (
            ["collect", "maze2d-umaze", "--planning.controller.pace", "1"],
            ["got --planning.controller.pace; `diffplan collect --help_all`"],
        ),
        (["collect", "maze2d-umaze", "x", "--out", "x"], ["collect: expected nothing more, got x"]),
        (
            ["collect", "maze2d-umaze", "--out", "x", "--num_workers", "abc"],
            ["--num_workers", "a whole number", "'abc'"],
        ),
        (
            ["collect", "maze2d-umaze", "--out", "x", "--seed", "x"],
            ["collection.seed: expected a whole number, got 'x'"],
        ),
        (["collect", "maze2d-umaze", "--out", "x", "--env.env_kwargs", "3"], ["--env.env_kwargs", "a JSON object"]),
        (["train", "maze2d-umaze", "--learning_rate", "1"], ["did you mean --training.learning_rate?"]),
        (["train", "maze2d-umaze", "--training.num_step", "1"], ["did you mean --training.num_steps?"]),
        (["train", "maze2d-umaze", "--data", "d", "--out", "x", "--resume", "yes"], ["nothing more, got yes"]),
        (["train", "maze2d-umaze", "--data", "d", "--out", "x", "--use_gpu", "2"], ["nothing more, got 2"]),
        (
            ["train", "maze2d-umaze", "--data", "d", "--out", "x", "--training.optimizer", "adamm"],
            ["training.optimizer: expected one of adamw, adam", "did you mean 'adam"],
        ),
        (["train", "--list", "x"], ["train --list: expected nothing beside it, got x"]),
        (["evaluate", "baseline:random", "--out", "x", "--goal", "1", "b"], ["--goal.1: expected a number, got 'b'"]),
        (["evaluate", "baseline:random", "--out", "x"], ["expected --env.env_id"]),
        (["new"], ["new: expected NAME, got none"]),
        (["new", "my-robot"], ["expected a Python name in lower case such as my_robot, got 'my-robot'"]),
        (["collect", "gymnasium", "--out", "x"], ["env.env_id", "give --env.env_id ID"]),
        (["pipeline", "gymnasium", "--env.env_id", "CartPole-v1"], ["CartPole-v1", "continuous actions"]),
        (
            ["evaluate", "baseline:random", "--env_id", "CartPole-v1", "--out", "x"],
            ["CartPole-v1", "continuous actions"],
        ),
        (
            ["evaluate", "pretrained:maze2d-umaze", "--env_id", "CartPole-v1", "--env.task", "gymnasium", "--out", "x"],
            ["expected actions in a 1-d Box, got Discrete(2)"],
        ),
        (["collect", "gymnasium", "--env.env_id", "CartPole-v1", "--out", "x"], ["CartPole-v1", "continuous actions"]),
        (
            ["evaluate", "baseline:rndom", "--env_id", "Pendulum-v1", "--out", "x"],
            ["baseline: expected one of", "Did you mean 'random'"],
        ),
        (["evaluate", "pretrained:maze2d-umase", "--out", "x"], ["Did you mean 'maze2d-umaze'"]),
        (["evaluate", "no/such", "--out", "x", "--episodes", "0"], ["--episodes: expected at least 1, got 0"]),
        (["tune", "no/such", "--out", "x", "--study", "plannr"], ["study: expected one of", "Did you mean 'planner'"]),
        (["tune", "no/such", "--out", "x", "--study", "training"], ["expected --preset PRESET"]),
        (["table", "maze2d"], ["table: expected --out, got none"]),
        (["table", "maze3d", "--out", "x"], ["Did you mean 'maze2d'"]),
        (
            ["table", "gymnasium", "--out", "x"],
            ["expected a family that has a table (locomotion, maze2d, stacking), got"],
        ),
        (["table", "maze2d", "--out", "x", "--methods", "mppj"], ["--methods", "Did you mean 'mppi'"]),
        (["table", "maze2d", "--out", "x", "--seeds", "0"], ["--seeds: expected at least 1, got 0"]),
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


def test_messages_name_only_options_that_there_are() -> None:
    foreign = {"head", "address", "dashboard-agent-listen-port", "follow"}  # of Ray
    known = {"help", "list", *list_own_options(SubmitArguments)[1], *foreign}
    for command in EVERY_COMMAND.values():
        known |= {*list_own_options(command.arguments)[1], *command.aliases, *list_fields(command.sections)}
    for path in (Path(__file__).parents[1] / "platform").rglob("*.py"):
        raised = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Raise)]
        for text in (part for node in raised for part in ast.walk(node) if isinstance(part, ast.Constant)):
            for option in re.findall(r"--([a-z][a-z_.-]*[a-z_])", str(text.value)):
                assert option in known, f"{path}:{text.lineno}: --{option}"


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


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_evaluate_changes_the_environment_and_the_settings_but_not_what_columns_mean(
    capsys: pytest.CaptureFixture[str], config: Config, dataset: Path, tmp_path: Path
) -> None:
    columns = {"position_columns": [0, 1], "velocity_columns": [2, 3], "goal_columns": [0, 1], "step_seconds": 0.02}
    trained = with_overrides(
        config, {**{f"env.{name}": value for name, value in columns.items()}, "env.env_kwargs": {"render_mode": None}}
    )
    checkpoint = save(tmp_path / "checkpoint", trained, dataset)
    (tmp_path / "some.json").write_text('{"sampling": {"num_steps": 3}, "selection": {"num_candidates": 4}}')
    common = ["evaluate", checkpoint, "--protocol", "multi2d", "--episodes", 2, "--settings", tmp_path / "some.json"]
    for given, env_id, kwargs in (
        (["--env_id", "diffplan/Maze2D-Medium-v1"], "diffplan/Maze2D-Medium-v1", {"render_mode": None}),
        (["--env.env_kwargs", '{"maze": "#####/#GOO#/#####"}'], config.env.env_id, {"maze": "#####/#GOO#/#####"}),
    ):
        out = tmp_path / next(iter(kwargs))
        code, _, err = run(capsys, *common, *given, "--planning.selection.num_candidates", 1, "--out", out)
        assert code == 0, err
        evaluated = json.loads((out / "summary.json").read_text())["config"]
        assert evaluated["env"] == {
            "env_id": env_id,
            "env_kwargs": {**kwargs, "redraw_goal": True},
            "task": "maze2d",
            **columns,
        }
        planning = evaluated["planning"]
        assert (planning["sampling"]["num_steps"], planning["selection"]["num_candidates"]) == (3, 1)
        assert planning["horizon"]["max"] == config.planning.horizon.max


def test_unknown_protocol_and_settings_are_refused(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
) -> None:
    arguments = ["evaluate", checkpoint, "--out", tmp_path / "x"]
    code, _, err = run(capsys, *arguments, "--protocol", "maze3d")
    assert code == 2
    assert "Did you mean 'maze2d'" in err
    settings = tmp_path / "settings.json"
    settings.write_text('{"guidance": {"scal": 1.0}}')
    code, _, err = run(capsys, *arguments, "--protocol", "maze2d", "--settings", settings)
    assert code == 2
    assert "Did you mean 'guidance.scale'" in err


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


def test_a_new_package_is_begun(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "new", "my_arm", "--out", "robot")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "package: robot"
    assert (tmp_path / "robot" / "my_arm" / "task.py").is_file()
    (command,) = re.findall(r"diffplan pipeline (\S+) ", out)
    monkeypatch.chdir(tmp_path / "robot")
    monkeypatch.syspath_prepend(tmp_path / "robot")
    assert find_experiment(command).name == "my_arm-smoke"


def test_jobs_take_the_same_arguments_and_exit_codes() -> None:
    root = Path(__file__).parents[1]
    for name in ("collect", "train", "tune", "evaluate", "pipeline"):
        result = subprocess.run(
            [sys.executable, root / "jobs" / f"{name}.py", "--help"], capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        assert f"usage: diffplan {name}" in result.stdout
    result = subprocess.run(
        [sys.executable, root / "jobs" / "collect.py", "nothing", "--out", "x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: expected a preset, or a task")


@pytest.mark.parametrize("words", ["--help", "--version", "collect --help_all", "train --list"])
def test_a_reader_that_closes_our_output_is_no_error(words: str) -> None:
    command = f"{sys.executable} -m diffplan.cli {words} | true; exit ${{PIPESTATUS[0]}}"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")

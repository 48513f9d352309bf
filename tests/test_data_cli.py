"""`diffplan data` as a user meets it."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet
import pytest
from s3_server import run_s3_server
from small_runs import collect

from diffplan.behaviors.collection import UnitCollector
from diffplan.cli import main
from diffplan.cli.data import ACTIONS
from diffplan.cli.data.keeping import parse_source
from diffplan.config import CollectionConfig, EnvConfig
from diffplan.data.format.dataset import TrajectoryDataset, open_dataset, read_manifest
from diffplan.data.format.manifest import Column, Manifest, make_columns, new_dataset_uuid
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.storage.opening import open_store
from diffplan.tasks.maze2d.environment import get_maze
from diffplan.tasks.registry import get_preset
from diffplan.types import Episode

UMAZE = get_preset("maze2d-umaze").env
MEDIUM = get_preset("maze2d-medium").env
COLLECTION = CollectionConfig(behavior="waypoint", num_steps=1000, episode_steps=250, episodes_per_unit=2, seed=3)


@pytest.fixture(scope="module")
def umaze(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collect(UMAZE, COLLECTION, tmp_path_factory.mktemp("data") / "umaze")


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collect(MEDIUM, COLLECTION, tmp_path_factory.mktemp("data") / "medium")


@pytest.fixture
def copy(umaze: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(umaze, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def write_odd(root: Path, lengths: list[int], env: EnvConfig = UMAZE) -> Path:
    """A dataset with a constant column, values that are not finite, and actions outside their bounds."""
    columns = make_columns(4, 2, (Column("image", (5, 8), "uint8"), Column("odd")))
    manifest = Manifest(
        dataset_uuid=new_dataset_uuid(),
        env=dataclasses.asdict(env),
        columns=columns,
        action_low=[-1.0, None],
        action_high=[1.0, None],
    )
    manifest = create_dataset(root, manifest)
    generator = np.random.default_rng(0)
    episodes = []
    for index, length in enumerate(lengths):
        actions = generator.uniform(-1, 1, (length, 2)).astype(np.float32)
        actions[0] = 1.5, -7  # the second has no bounds
        odd = np.full(length, 2.0, np.float32)
        odd[1] = np.nan
        episodes.append(
            Episode(
                episode_index=10 + index,
                seed=None,
                behavior="β",
                observations=generator.uniform(1, 3, (length + 1, 4)).astype(np.float32),
                actions=actions,
                rewards=generator.standard_normal(length).astype(np.float32),
                terminated=True,
                truncated=False,
                columns={"image": generator.integers(0, 255, (length, 5, 8)).astype(np.uint8), "odd": odd},
            )
        )
    write_unit(root, manifest, 0, episodes)
    return root


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["data", *(str(argument) for argument in arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def succeed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    code, out, err = run(capsys, *arguments)
    assert code == 0, err
    return out


def fail(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The error line of a command that must write nothing else."""
    code, out, err = run(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1), (code, out, err)
    assert err.startswith("error: ")
    return err


def find_fact(out: str, name: str) -> str:
    (line,) = [line for line in out.splitlines() if line.startswith(f"{name} ")]
    return line.removeprefix(name).strip()


def find_lines(out: str, start: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith(start)]


def same_content(a: TrajectoryDataset, b: TrajectoryDataset) -> bool:
    """Whether observation, action and reward agree, episode by episode, bit by bit."""
    columns = ("observation", "action", "reward")
    if [r.length for r in a.episodes] != [r.length for r in b.episodes]:
        return False
    finals = all(x.final_observation == y.final_observation for x, y in zip(a.episodes, b.episodes, strict=True))
    return finals and all(np.array_equal(a.read_column(name), b.read_column(name)) for name in columns)


def test_help_lists_every_action_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    out = succeed(capsys, "--help")
    for action in ACTIONS:
        assert re.search(rf"^\W+{action} +[A-Z]", out, re.MULTILINE), action
        text = succeed(capsys, action, "--help")
        assert f"usage: diffplan data {action} " in text
        assert "STR STR" not in text  # positional arguments have names
    assert set(ACTIONS) == {"info", "stats", "head", "verify", "import", "export", "compact", "sweep", "merge"}


def test_info_says_what_the_dataset_says(capsys: pytest.CaptureFixture[str], umaze: Path) -> None:
    dataset = open_dataset(umaze)
    out = succeed(capsys, "info", umaze, "--hash")
    returns = dataset.episodes.column("undiscounted_return")
    assert find_fact(out, "environment") == UMAZE.env_id
    assert find_fact(out, "behaviour") == "waypoint"
    assert find_fact(out, "seed") == "3"
    assert find_fact(out, "uuid") == dataset.manifest.dataset_uuid
    assert find_fact(out, "units") == "2"
    assert find_fact(out, "shards") == "2"
    assert find_fact(out, "steps") == "1,000"
    assert find_fact(out, "episodes") == "4 of 250 steps; 0% terminated, 100% truncated"
    assert find_fact(out, "return") == (f"mean {returns.mean():.2f}, from {returns.min():.2f} to {returns.max():.2f}")
    assert find_fact(out, "snapshots") == "0"
    assert find_fact(out, "orphans") == "none"
    assert find_fact(out, "content") == dataset.content_hash()
    assert "4 times 250" in out
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80
    assert dataset.content_hash() not in succeed(capsys, "info", umaze)


def test_info_draws_the_maze_and_where_the_data_was(capsys: pytest.CaptureFixture[str], umaze: Path) -> None:
    out = succeed(capsys, "info", umaze)
    lines = out.splitlines()
    start = lines.index("coverage of observation[0] and [1]") + 1
    drawn = np.array([list(line.ljust(40)) for line in lines[start : start + 20]])
    maze = get_maze(UMAZE)
    assert maze is not None
    cells = drawn.reshape(5, 4, 5, 8).transpose(0, 2, 1, 3).reshape(5, 5, 32)
    assert ((cells == "█").all(axis=2) == maze.walls).all()
    assert not ((cells == "█").any(axis=2) & ~maze.walls).any()
    positions = open_dataset(umaze).read_column("observation")[:, :2]
    rows, columns = np.floor(positions + 0.7).astype(int).T  # cell i reaches from i - 0.7 to i + 0.3
    expected = np.zeros((5, 5), bool)
    expected[rows, columns] = True
    assert ((cells != " ").any(axis=2) & ~maze.walls == expected).all()
    assert f"{expected.sum()} of 7 free cells visited" in out


def test_info_of_a_snapshot(capsys: pytest.CaptureFixture[str], copy: Path) -> None:
    write_unit(copy, open_dataset(copy).manifest, 2, UnitCollector(UMAZE, COLLECTION).collect(2))
    assert find_fact(succeed(capsys, "info", copy), "steps") == "1,500"
    out = succeed(capsys, "info", copy, "--snapshot", 0)
    assert find_fact(out, "steps") == "1,000"
    assert find_fact(out, "snapshots") == "0; this is 0"
    assert "snapshot" in fail(capsys, "info", copy, "--snapshot", 7)


def test_info_where_the_map_is_of_a_sample(
    capsys: pytest.CaptureFixture[str], umaze: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffplan.cli.data.report.MAX_MAP_ROWS", 300)
    monkeypatch.setattr("diffplan.cli.data.report.PIECE_ROWS", 50)
    assert "a sample of 250 of 1,000 steps" in succeed(capsys, "info", umaze)


def test_info_of_an_environment_without_a_maze(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = write_odd(tmp_path / "odd", [20], EnvConfig(env_id="Nowhere-v0", position_columns=(1, 3)))
    observations = open_dataset(root).read_column("observation")
    out = succeed(capsys, "info", root)
    assert "coverage of observation[1] and [3]" in out
    low, high = observations[:, 3].min(), observations[:, 3].max()
    assert f"upwards: observation[3] from {low:.4f} to {high:.4f}" in out
    assert find_fact(out, "seed") == "unknown"


@pytest.mark.filterwarnings("error")
def test_positions_of_any_size_are_drawn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    columns = make_columns(4, 2, observation_dtype="float64")
    for number, env_id in enumerate([UMAZE.env_id, "Nowhere-v0"]):
        for scale in (0.0, 1e-300, 1e120, 1e149):
            root = tmp_path / f"{number}-{scale}"
            env = dataclasses.asdict(EnvConfig(env_id=env_id))
            manifest = create_dataset(root, Manifest(new_dataset_uuid(), env, columns, [None] * 2, [None] * 2))
            observations = np.full((7, 4), 1e9)
            observations[3:] = np.nextafter(1e9, 2e9)
            if scale:
                observations[::2] = scale
            values = np.zeros((6, 2), np.float32)
            ends = {"terminated": False, "truncated": True}
            write_unit(root, manifest, 0, [Episode(0, 1, "b", observations, values, values[:, 0], **ends)])
            for action in ("info", "stats", "head"):
                assert succeed(capsys, action, root)


def test_info_of_a_merged_dataset(
    capsys: pytest.CaptureFixture[str], umaze: Path, medium: Path, tmp_path: Path
) -> None:
    out = succeed(capsys, "merge", tmp_path / "all", f"u={umaze}", f"m={medium}@3")
    assert "2,000 steps in 8 episodes of 2 tasks" in out
    dataset = open_dataset(tmp_path / "all")
    assert [(task.name, task.weight) for task in dataset.manifest.tasks] == [("u", 1.0), ("m", 3.0)]
    out = succeed(capsys, "info", tmp_path / "all")
    (line,) = find_lines(out, "m  ")
    windows = {horizon: 4 * (250 - horizon + 1) for horizon in (32, 128)}
    assert line.split() == ["m", "3", "75.0%", "2", "4", "1,000", f"{windows[32]}", f"{windows[128]}"]
    assert f"u ({UMAZE.env_id})" in out
    assert f"m ({MEDIUM.env_id})" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "of 7 free cells" in out
    assert f"of {(~get_maze(MEDIUM).walls).sum()} free cells" in out
    before = dataset.content_hash()
    succeed(capsys, "merge", tmp_path / "all", f"u={umaze}", f"m={medium}@3")  # which is done already
    assert open_dataset(tmp_path / "all").content_hash() == before
    assert "--out" in run(capsys, "merge", tmp_path / "all", f"v={umaze}", f"m={medium}@3")[2]


def test_a_source_of_a_merge_may_be_any_path_or_url() -> None:
    assert parse_source("a=b") == ("a", "b", 1.0)
    assert parse_source("a=data/b@0.5") == ("a", "data/b", 0.5)
    assert parse_source("a=s3://key:secret@host:9000/b/c=d@2") == ("a", "s3://key:secret@host:9000/b/c=d", 2.0)
    assert parse_source("a=s3://me@bucket/b") == ("a", "s3://me@bucket/b", 1.0)


def test_stats_are_those_of_the_data(capsys: pytest.CaptureFixture[str], umaze: Path) -> None:
    out = succeed(capsys, "stats", umaze)
    values = open_dataset(umaze).read_column("observation").astype(np.float64)
    start = out.splitlines().index("observation (float32, 4 per step): 1,000 finite values") + 1
    for d, line in enumerate(out.splitlines()[start : start + 4]):
        shown = [float(number) for number in line.split()[1:]]
        v = values[:, d]
        exact = [v.mean(), v.std(), v.min(), v.max()]
        np.testing.assert_allclose([*shown[:3], shown[-1]], exact, atol=6e-4)
        np.testing.assert_allclose(shown[3:8], np.percentile(v, [1, 25, 50, 75, 99]), atol=0.1 * np.ptp(v))
        assert shown[3:8] == sorted(shown[3:8])
    (line,) = find_lines(out, "128 ")
    assert line.split() == ["128", "0", "0.0%", "0.0%", str(4 * (250 - 127))]
    (line,) = find_lines(out, "256 ")
    assert line.split() == ["256", "4", "100.0%", "100.0%", "0"]
    assert max(map(len, out.splitlines())) <= 80


def test_stats_warn_of_what_is_odd(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = succeed(capsys, "stats", write_odd(tmp_path / "odd", [10, 20, 40]))
    warnings = find_lines(out, "warning: ")
    assert "warning: odd: 3 values in it are NaN or infinite" in warnings
    assert "warning: odd: it never changes (2)" in warnings
    assert any(w.startswith("warning: action: [0] goes from") and w.endswith("bounds -1 to 1") for w in warnings)
    assert not any("[1]" in w for w in warnings)
    assert find_lines(out, "16 ")[0].split() == ["16", "1", "33.3%", "14.3%", str(5 + 25)]
    assert "odd (float32, 1 per step): 67 finite values" in out
    assert "3 not finite, constant" in out
    assert "32 of 40 entries are listed" in out
    everything = succeed(capsys, "stats", tmp_path / "odd", "--all_entries")
    assert "  [39]" in everything
    assert "  [39]" not in out


def test_stats_of_sound_data_warn_of_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path, umaze: Path) -> None:
    dataset = open_dataset(umaze)
    out = succeed(capsys, "stats", umaze)
    constant = [n for n, s in dataset.statistics.items() if (s.minimum == s.maximum).any()]
    assert len(find_lines(out, "warning: ")) == len(constant)


def test_head_shows_the_rows_of_an_episode(
    capsys: pytest.CaptureFixture[str], umaze: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    dataset = open_dataset(umaze)
    record = dataset.episodes[2]
    out = succeed(capsys, "head", umaze, "--episode", 2, "--rows", 3)
    assert find_fact(out, "episode") == "2 of 250 steps, truncated"
    assert find_fact(out, "seed") == str(record.seed)
    final = [float(number) for number in find_fact(out, "final").split(",")]
    np.testing.assert_allclose(final, record.final_observation, rtol=1e-4, atol=1e-6)
    lines = out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.split()[:2] == ["t", "[0]"]) + 1
    assert [line.split()[0] for line in lines[start:]] == ["0", "1", "2", "…", "249", "250"]
    for t, line in ((0, lines[start]), (2, lines[start + 2]), (249, lines[start + 4])):
        shown = [float(number) for number in line.replace("trunc", "").split()[1:]]
        names = ("observation", "action", "reward", "goal")
        exact = np.concatenate([np.atleast_1d(dataset.episode_column(2, name)[t]) for name in names])
        np.testing.assert_allclose(shown, exact, atol=6e-4)
    assert lines[start + 4].count("trunc") == 1
    assert "trunc" not in lines[start]
    assert "not shown" not in out


def test_head_fits_the_terminal_and_names_what_does_not(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = write_odd(tmp_path / "odd", [4])
    out = succeed(capsys, "head", root)
    assert max(map(len, out.splitlines())) <= 80
    assert "not shown: image" in out
    assert find_fact(out, "episode").startswith("10 of 4 steps")
    assert "…" not in out  # all rows are shown


@pytest.mark.parametrize("action", ["info", "stats", "head"])
def test_output_is_plain_where_there_is_no_unicode(action: str, tmp_path: Path, umaze: Path) -> None:
    root = write_odd(tmp_path / "odd", [30])
    command = [sys.executable, "-m", "diffplan.cli", "data", action]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    for path in (root, umaze):
        result = subprocess.run([*command, path], capture_output=True, env=environment, check=False)
        assert (result.returncode, result.stderr) == (0, b"")
        assert len(result.stdout.decode("ascii").splitlines()) > 10


@pytest.mark.parametrize("arguments", [["info"], ["stats"], ["head", "--rows", "200"], ["verify"]])
def test_output_may_be_cut_off_early(arguments: list[str], umaze: Path) -> None:
    command = [sys.executable, "-m", "diffplan.cli", "data", arguments[0], umaze, *arguments[1:]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=60) == 0
    assert not re.search("error|Traceback|Broken", errors)


def test_compact_and_sweep(capsys: pytest.CaptureFixture[str], copy: Path) -> None:
    before = open_dataset(copy)
    old = {shard.name for shard in before.shards}
    assert "nothing to join" in succeed(capsys, "compact", copy, "--target_mb", 0.001)
    assert "1 instead of 2" in succeed(capsys, "compact", copy)
    after = open_dataset(copy)
    assert len(after.shards) == 1
    assert after.content_hash() == before.content_hash()
    assert "nothing to join" in succeed(capsys, "compact", copy)
    assert find_fact(succeed(capsys, "info", copy), "orphans").startswith("2 shards")
    assert "deleted 0 objects" in succeed(capsys, "sweep", copy)
    past = 0  # files of 1970, and the snapshot that replaced them
    for path in [*(copy / "shards").iterdir(), *(copy / "snapshots").iterdir()]:
        os.utime(path, (past, past))
    out = succeed(capsys, "sweep", copy, "--dry_run")
    assert {line.split()[2] for line in find_lines(out, "would delete shards/")} == old
    assert {f"shards/{path.name}" for path in (copy / "shards").iterdir()} > old
    num_bytes = sum(shard.num_bytes for shard in before.shards)
    assert f"deleted 2 objects older than 24 h, {num_bytes / 1e6:.1f} MB" in succeed(capsys, "sweep", copy)
    assert not old & {f"shards/{path.name}" for path in (copy / "shards").iterdir()}
    assert open_dataset(copy).content_hash() == before.content_hash()
    assert succeed(capsys, "verify", copy).endswith("every checksum matches\n")


def test_minari_and_back(capsys: pytest.CaptureFixture[str], umaze: Path, tmp_path: Path) -> None:
    out = succeed(capsys, "export", "minari", umaze, "--id", "mine/umaze-v0", "--out", tmp_path / "minari")
    made = tmp_path / "minari" / "mine" / "umaze-v0"
    assert out == f"{made}: 1,000 steps in 4 episodes\n"
    arguments = ["--preset", "maze2d-umaze", "--episodes_per_unit", 3]
    out = succeed(capsys, "import", "minari", made, "--out", tmp_path / "back", *arguments)
    assert out.startswith(f"{tmp_path / 'back'}: 1,000 steps in 4 episodes")
    back = open_dataset(tmp_path / "back")
    assert same_content(back, open_dataset(umaze))
    assert back.env == UMAZE
    assert len(back.shards) == 2
    assert find_fact(succeed(capsys, "info", tmp_path / "back"), "behaviour").startswith("imported from minari")
    line = fail(capsys, "export", "minari", umaze, "--id", "mine/umaze-v0", "--out", tmp_path / "minari")
    assert f"{made}: there is a Minari dataset of this id already" in line


def test_the_environment_of_an_import_can_be_given(
    capsys: pytest.CaptureFixture[str], umaze: Path, tmp_path: Path
) -> None:
    succeed(capsys, "export", "minari", umaze, "--id", "a-v0", "--out", tmp_path / "minari")
    common = ["import", "minari", tmp_path / "minari" / "a-v0", "--out"]
    kwargs = ["--env.env_id", MEDIUM.env_id, "--env.env_kwargs", '{"maze": "#####/#GOO#/#####"}']
    succeed(capsys, *common, tmp_path / "other", *kwargs)
    env = open_dataset(tmp_path / "other").env
    assert (env.env_id, env.env_kwargs) == (MEDIUM.env_id, {"maze": "#####/#GOO#/#####"})
    succeed(capsys, *common, tmp_path / "o2", "--preset", "maze2d-umaze", "--env.step_seconds", 0.02)
    assert open_dataset(tmp_path / "o2").env == dataclasses.replace(UMAZE, step_seconds=0.02)


def write_d4rl(path: Path) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    arrays = {
        "observations": generator.standard_normal((12, 4)).astype(np.float32),
        "actions": generator.uniform(-1, 1, (12, 2)).astype(np.float32),
        "rewards": generator.random(12).astype(np.float32),
        "terminals": np.zeros(12, bool),
        "infos/goal": np.repeat([[1, 1], [3, 1]], [5, 7], axis=0).astype(np.float32),
    }
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return arrays


def test_d4rl_is_imported(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arrays = write_d4rl(tmp_path / "maze.hdf5")
    common = ["import", "d4rl", tmp_path / "maze.hdf5", "--preset", "maze2d-umaze"]
    succeed(capsys, *common, "--out", tmp_path / "out", "--split_on", "infos/goal")
    dataset = open_dataset(tmp_path / "out")
    assert dataset.episodes.length.tolist() == [5, 6]
    assert np.array_equal(dataset.read_column("action"), arrays["actions"][:11])
    succeed(capsys, *common, "--out", tmp_path / "whole")
    assert open_dataset(tmp_path / "whole").episodes.length.tolist() == [11]


def test_warnings_of_an_import_are_a_line_each(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_d4rl(tmp_path / "maze.hdf5")
    with h5py.File(tmp_path / "maze.hdf5", "r+") as file:
        file["actions"][3] = 2, 0
    arguments = ["import", "d4rl", tmp_path / "maze.hdf5", "--preset", "maze2d-umaze", "--out", tmp_path / "out"]
    code, _, err = run(capsys, *arguments)
    assert code == 0
    (line,) = find_lines(err, f"warning: {tmp_path / 'out'}: ")
    assert "1 of 11 actions lie outside the action space, by up to 1" in line
    assert ".py" not in err


@pytest.mark.parametrize("layout", ["plain", "rllib"])
def test_parquet_is_exported(capsys: pytest.CaptureFixture[str], umaze: Path, tmp_path: Path, layout: str) -> None:
    arguments = ["export", "parquet", umaze, "--out", tmp_path / "made", "--layout", layout]
    assert succeed(capsys, *arguments) == f"{tmp_path / 'made'}: 1,000 steps in 4 episodes\n"
    files = sorted(path for path in (tmp_path / "made").rglob("*.parquet") if "episodes" not in path.name)
    table = pyarrow.concat_tables([pyarrow.parquet.read_table(path) for path in files])
    assert len(table) == 1000
    name = "reward" if layout == "plain" else "rewards"
    rewards = open_dataset(umaze).read_column("reward")
    assert np.array_equal(np.sort(table.column(name).to_numpy().ravel()), np.sort(rewards))
    assert str(tmp_path / "made") in fail(capsys, *arguments)  # which exists now


@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_no_dataset_is_one_line_and_leaves_nothing(
    action: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, umaze: Path
) -> None:
    missing, out = tmp_path / "missing", tmp_path / "out"
    arguments = {
        "import": ["minari", missing, "--out", out, "--preset", "maze2d-umaze"],
        "export": ["parquet", missing, "--out", out],
        "merge": [out, f"a={umaze}", f"b={missing}"],
    }
    line = fail(capsys, action, *arguments.get(action, [missing]))
    assert str(missing) in line
    if action != "import":
        assert "diffplan collect" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", ["expected one of the actions", "merge"]),
        ("inof DIR", ["'inof'", "Did you mean 'info'"]),
        ("info DIR --snapshot 9", ["9"]),
        ("stats DIR --snapshot -1", ["-1"]),
        ("head DIR --episode 4", ["4 episodes from 0 to 3", "got 4"]),
        ("head DIR --episode -1", ["got -1"]),
        ("head DIR --rows 0", ["--rows", "got 0"]),
        ("compact DIR --target_mb 0", ["--target_mb", "got 0"]),
        ("compact DIR --target_mb nan", ["--target_mb", "got nan"]),
        ("sweep DIR --older_than_hours 0.5", ["at least 1 h", "got 0.5 h"]),
        ("sweep DIR --older_than_hours nan", ["--older_than_hours", "got nan"]),
        ("merge OUT DIR DIR", ["NAME=PATH", "umaze"]),
        ("merge OUT a=", ["NAME=PATH"]),
        ("merge OUT a=DIR", ["two or more", "got 1"]),
        ("merge OUT", ["expected SOURCES, got none"]),
        ("merge OUT a=DIR a=DIR", ["a name of its own"]),
        ("merge OUT a=DIR b=DIR@-1", ["weights >= 0"]),
        ("merge OUT a=DIR b=DIR@nan", ["weights >= 0"]),
        ("import minary x --out OUT", ["'minary'", "Did you mean 'minari'"]),
        ("import minari none/such-v0 --out OUT", ["none/such-v0", "minari download"]),
        ("import minari DIR --out OUT", ["expected a Minari dataset"]),
        ("import minari x --out OUT --preset maze2d-umase", ["preset", "did you mean 'maze2d-umaze'"]),
        ("import minari x --out OUT --env.step_seconds 2", ["--env.env_id"]),
        ("import minari x --out OUT --frame maze3d", ["--frame", "Did you mean 'maze2d'"]),
        ("import minari x --out OUT --split_on infos/goal", ["--split_on", "only for d4rl"]),
        ("import d4rl x --out OUT", ["--preset"]),
        ("import d4rl x --out OUT --preset maze2d-umaze", ["x"]),
        ("import d4rl DIR/_dataset.json --out OUT --preset maze2d-umaze", ["_dataset.json"]),
        ("import d4rl x --out OUT --frame maze2d", ["--frame", "only for minari"]),
        ("export minary DIR", ["'minary'", "Did you mean 'minari'"]),
        ("export minari DIR --out OUT", ["--id NAMESPACE/NAME-vN"]),
        ("export minari DIR --out OUT --id umaze", ["namespace/name-vN", "'umaze'"]),
        ("export minari DIR --out OUT --id a/b-v0 --layout plain", ["--layout", "only for parquet"]),
        ("export parquet DIR", ["--out DIR"]),
        ("export minari DIR --out s3://bucket/x --id mine/b-v0", ["--out", "local directory", "s3://bucket/x"]),
        ("export parquet DIR --out s3://bucket/x", ["--out", "local directory", "s3://bucket/x"]),
        ("export parquet DIR --out OUT --layout rlib", ["--layout", "Did you mean 'rllib'"]),
        ("export parquet DIR --out OUT --id a/b-v0", ["--id", "only for minari"]),
        ("export parquet DIR --out DIR", ["umaze"]),
    ],
)
def test_bad_arguments_are_one_line(
    arguments: str,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    umaze: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    given = [a.replace("DIR", str(umaze)).replace("OUT", str(tmp_path / "out")) for a in arguments.split()]
    line = fail(capsys, *given)
    for word in words:
        assert word in line
    assert {path.name for path in tmp_path.iterdir()} <= {"none"}  # the place of its datasets, which Minari makes


@pytest.mark.parametrize("action", sorted(set(ACTIONS) - {"import"}))
def test_a_damaged_manifest_is_one_line(
    action: str, capsys: pytest.CaptureFixture[str], copy: Path, tmp_path: Path
) -> None:
    manifest = copy / "_dataset.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"Maze2D", b"Maze3D"))
    arguments = {
        "export": ["parquet", copy, "--out", tmp_path / "out"],
        "merge": [tmp_path / "out", f"a={copy}", f"b={copy}"],
    }
    assert "_dataset.json" in fail(capsys, action, *arguments.get(action, [copy]))


def test_a_damaged_shard_is_not_shown(capsys: pytest.CaptureFixture[str], copy: Path) -> None:
    dataset = open_dataset(copy)
    shard = copy / dataset.shards[0].name
    content = bytearray(shard.read_bytes())
    content[dataset.shards[0].offsets["observation"] + 5] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(content)
    code, out, err = run(capsys, "head", copy)
    assert (code, err.count("\n")) == (2, 1)
    assert shard.name in err
    assert not out
    assert shard.name in run(capsys, "compact", copy)[2]
    assert read_manifest(open_store(copy)).dataset_uuid == dataset.manifest.dataset_uuid


def test_paths_that_fail_are_one_line(
    capsys: pytest.CaptureFixture[str], umaze: Path, medium: Path, tmp_path: Path
) -> None:
    assert "name too long" in fail(capsys, "info", tmp_path / ("a" * 300))
    (tmp_path / "file").write_text("in the way")
    line = fail(capsys, "merge", tmp_path / "file" / "out", f"a={umaze}", f"b={medium}")
    assert f"{tmp_path / 'file'}" in line
    assert "not a directory" in line.lower()


@pytest.mark.parametrize("text", ["{", "[1]", "null"])
def test_arguments_of_an_environment_are_a_json_object(
    text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = fail(capsys, "import", "minari", "x", "--out", tmp_path / "out", "--env.env_kwargs", text)
    assert f"--env.env_kwargs: expected a JSON object such as {{}}, got {text}" in line
    assert not list(tmp_path.iterdir())


def test_datasets_may_lie_in_an_object_store(
    capsys: pytest.CaptureFixture[str], umaze: Path, medium: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFPLAN_CACHE", str(tmp_path / "cache"))
    with run_s3_server() as server:
        for name, value in server.variables.items():
            monkeypatch.setenv(name, value)
        server.client().create_bucket(Bucket="bucket")
        url = "s3://bucket/sets/a=b@c/all"  # what sets names and weights apart occurs in it
        succeed(capsys, "merge", url, f"u={umaze}", f"v={medium}@3")
        succeed(capsys, "merge", tmp_path / "local", f"u={umaze}", f"v={medium}@3")
        assert find_fact(succeed(capsys, "info", url, "--hash"), "content") == find_fact(
            succeed(capsys, "info", tmp_path / "local", "--hash"), "content"
        )
        assert succeed(capsys, "stats", url) == succeed(capsys, "stats", tmp_path / "local")
        assert "shards: 1 instead of 4" in succeed(capsys, "compact", url)
        assert "would delete 0 objects" in succeed(capsys, "sweep", url, "--dry_run")
        succeed(capsys, "export", "parquet", url, "--out", tmp_path / "parquet")
        assert "every checksum matches" in succeed(capsys, "verify", url)
        assert "diffplan collect" in fail(capsys, "head", "s3://bucket/nothing")


def test_an_interrupt_is_one_line(
    capsys: pytest.CaptureFixture[str], umaze: Path, medium: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("diffplan.runs.progress.Progress.move_to", interrupt)  # after the first unit
    code, out, err = run(capsys, "merge", tmp_path / "all", f"a={umaze}", f"b={medium}")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "interrupted"
    monkeypatch.undo()
    succeed(capsys, "merge", tmp_path / "all", f"a={umaze}", f"b={medium}")
    succeed(capsys, "merge", tmp_path / "whole", f"a={umaze}", f"b={medium}")
    assert open_dataset(tmp_path / "all").content_hash() == open_dataset(tmp_path / "whole").content_hash()

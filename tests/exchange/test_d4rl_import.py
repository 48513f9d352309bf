import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from diffplan.config import EnvConfig
from diffplan.data.exchange.d4rl import import_d4rl
from diffplan.data.exchange.minari import export_minari, import_minari
from diffplan.data.format.dataset import TrajectoryDataset, open_dataset
from diffplan.errors import DataError
from diffplan.tasks.maze2d.environment import complete_env

MAZE = EnvConfig(env_id="diffplan/Maze2D-UMaze-v1")
HOPPER = EnvConfig(env_id="Hopper-v5", step_seconds=0.008)
ANTMAZE = EnvConfig(env_id="absent/AntMaze-v0")  # of no package, so it cannot be made


def write(path: Path, arrays: dict[str, Any]) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


def ends(num_rows: int, *rows: int) -> np.ndarray:
    flags = np.zeros(num_rows, bool)
    flags[list(rows)] = True
    return flags


def make_maze2d(num_rows: int = 12) -> dict[str, np.ndarray]:
    """`maze2d-*-v0`: one stream without timeouts, in which the goal changes after rows 3, 4 and 8."""
    generator = np.random.default_rng(0)
    walk = np.cumsum(generator.choice([-0.125, 0.125], (num_rows, 4)), axis=0)
    goals = np.repeat([[1, 1], [3, 1], [1, 1], [1, 3]], [4, 1, 4, num_rows - 9], axis=0).astype(np.float32)
    return {
        "observations": walk.astype(np.float32),
        "actions": generator.uniform(-1, 1, (num_rows, 2)).astype(np.float32),
        "rewards": generator.random(num_rows).astype(np.float32),
        "terminals": ends(num_rows),
        "infos/goal": goals,
        "infos/qpos": generator.standard_normal((num_rows, 2)),
        "infos/qvel": generator.standard_normal((num_rows, 2)),
    }


def make_hopper(num_rows: int = 10) -> dict[str, Any]:
    """`hopper-*-v2`: terminals at rows 3 and 4, a timeout at row 7, and rows 8 and 9 cut off by the file."""
    generator = np.random.default_rng(1)
    observations = generator.standard_normal((num_rows, 11)).astype(np.float32)
    after = np.concatenate([observations[1:], observations[:1] + 1])
    after[[3, 4, 7]] += 1  # what followed before the reset
    return {
        "observations": observations,
        "next_observations": after,
        "actions": generator.uniform(-1, 1, (num_rows, 3)).astype(np.float32),
        "rewards": generator.random(num_rows).astype(np.float32),
        "terminals": ends(num_rows, 3, 4),
        "timeouts": ends(num_rows, 7),
        "infos/action_log_probs": generator.standard_normal(num_rows).astype(np.float32),
        "metadata/algorithm": np.bytes_("SAC"),
        "metadata/iteration": np.array(3),
        "metadata/policy/fc0/weight": np.zeros((5, 5)),
    }


def check(dataset: TrajectoryDataset, episode: int, arrays: dict[str, Any], rows: range, final: np.ndarray) -> None:
    """An episode holds these rows of the file and this final observation, bit by bit."""
    for name in arrays:
        column = {"observations": "observation", "actions": "action", "rewards": "reward"}.get(name)
        column = name.replace("/", ".") if name.startswith("infos/") else column
        if column is not None:
            found = dataset.episode_column(episode, column)
            assert found.dtype == arrays[name].dtype
            assert np.array_equal(found, arrays[name][rows.start : rows.stop]), name
    found = np.array(dataset.episodes[episode].final_observation, dtype=final.dtype)
    assert np.array_equal(found, final)


def test_mujoco_with_next_observations_keeps_every_row(tmp_path: Path) -> None:
    arrays = make_hopper()
    dataset = import_d4rl(write(tmp_path / "hopper-medium-v2.hdf5", arrays), tmp_path / "out", env=HOPPER)
    spans = [range(4), range(4, 5), range(5, 8), range(8, 10)]
    for i, rows in enumerate(spans):
        check(dataset, i, arrays, rows, arrays["next_observations"][rows.stop - 1])
    assert [(e.terminated, e.truncated) for e in dataset.episodes] == [
        (True, False),
        (True, False),
        (False, True),
        (False, False),
    ]
    source = dataset.manifest.source
    assert source["final_observations"] == {"next": 4, "following": 0, "last_row": 0, "repeated": 0}
    assert source["num_dropped_rows"] == 0
    assert source["metadata"] == {"algorithm": "SAC", "iteration": "3"}
    assert dataset.episodes[0].behavior == "hopper-medium-v2"
    assert dataset.env == HOPPER  # whose task names no columns
    assert (dataset.manifest.action_low, dataset.manifest.action_high) == ([-1.0] * 3, [1.0] * 3)


def test_mujoco_without_next_observations_keeps_terminal_rewards(tmp_path: Path) -> None:
    arrays = make_hopper()
    del arrays["next_observations"]
    with pytest.warns(UserWarning, match="2 of 10 rows are dropped: the last ones of episodes that were cut"):
        dataset = import_d4rl(write(tmp_path / "hopper.hdf5", arrays), tmp_path / "out", env=HOPPER)
    observations = arrays["observations"]
    check(dataset, 0, arrays, range(4), observations[3])
    check(dataset, 1, arrays, range(4, 5), observations[4])
    check(dataset, 2, arrays, range(5, 7), observations[7])
    check(dataset, 3, arrays, range(8, 9), observations[9])
    assert len(dataset.episodes) == 4
    assert dataset.manifest.source["final_observations"] == {"next": 0, "following": 0, "last_row": 2, "repeated": 2}
    assert dataset.manifest.source["num_dropped_rows"] == 2
    assert [(e.terminated, e.truncated) for e in dataset.episodes][2:] == [(False, True), (False, False)]


def test_maze2d_is_split_where_the_goal_changes(tmp_path: Path) -> None:
    arrays = make_maze2d()
    path = write(tmp_path / "maze2d-umaze.hdf5", arrays)
    dataset = import_d4rl(path, tmp_path / "out", env=MAZE, split_on="infos/goal", episodes_per_unit=2)
    # The stream goes on over a change of the goal, so only the last row of the file has no next observation.
    for i, rows in enumerate([range(4), range(4, 5), range(5, 9), range(9, 11)]):
        check(dataset, i, arrays, rows, arrays["observations"][rows.stop])
        assert len(np.unique(dataset.episode_column(i, "infos.goal"), axis=0)) == 1
    assert len(dataset.episodes) == 4
    assert dataset.manifest.source["num_dropped_rows"] == 1
    assert dataset.manifest.source["final_observations"] == {"next": 0, "following": 3, "last_row": 1, "repeated": 0}
    assert [e.truncated for e in dataset.episodes] == [True, True, True, False]
    assert dataset.env == complete_env(MAZE)
    assert (dataset.env.position_columns, dataset.env.goal_columns, dataset.env.step_seconds) == ((0, 1), (0, 1), 0.01)

    whole = import_d4rl(path, tmp_path / "whole", env=MAZE)
    assert whole.episodes.length.tolist() == [11]
    check(whole, 0, arrays, range(11), arrays["observations"][11])


def test_a_jump_where_the_goal_changes_is_a_reset(tmp_path: Path) -> None:
    arrays = make_maze2d()
    arrays["observations"][4:] += 1  # a reset after row 3
    with pytest.warns(UserWarning, match="2 of 12 rows are dropped"):
        dataset = import_d4rl(
            write(tmp_path / "maze2d.hdf5", arrays), tmp_path / "out", env=MAZE, split_on="infos/goal"
        )
    check(dataset, 0, arrays, range(3), arrays["observations"][3])
    check(dataset, 1, arrays, range(4, 5), arrays["observations"][5])
    assert dataset.manifest.source["final_observations"] == {"next": 0, "following": 2, "last_row": 2, "repeated": 0}


def test_a_reset_without_a_flag_ends_an_episode(tmp_path: Path) -> None:
    arrays = make_hopper(20)
    arrays["timeouts"][:] = False  # of rows 3, 4 and 7, only the first two are marked now
    with pytest.warns(UserWarning, match=r"1 resets without a flag.*the first in row 7"):
        dataset = import_d4rl(write(tmp_path / "hopper.hdf5", arrays), tmp_path / "out", env=HOPPER)
    assert dataset.episodes.length.tolist() == [4, 1, 3, 12]
    assert [(e.terminated, e.truncated) for e in dataset.episodes][2:] == [(False, True), (False, False)]
    check(dataset, 2, arrays, range(5, 8), arrays["next_observations"][7])


def test_maze2d_with_timeouts(tmp_path: Path) -> None:
    arrays = {**make_maze2d(), "timeouts": ends(12, 5, 11)}
    dataset = import_d4rl(write(tmp_path / "maze2d.hdf5", arrays), tmp_path / "out", env=MAZE)
    check(dataset, 0, arrays, range(5), arrays["observations"][5])
    check(dataset, 1, arrays, range(6, 11), arrays["observations"][11])
    assert [e.truncated for e in dataset.episodes] == [True, True]


def test_antmaze_layout_and_an_environment_that_is_not_installed(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    arrays = {
        "observations": generator.standard_normal((9, 29)),
        "actions": generator.uniform(-1, 1, (9, 8)),
        "rewards": ends(9, 3, 4).astype(np.float64)[:, None],
        "terminals": ends(9, 3, 4).astype(np.float32),
        "timeouts": ends(9, 8).astype(np.float32),
        "infos/goal": generator.standard_normal((9, 2)),
        "infos/note": np.array([b"x"] * 9),
    }
    path = write(tmp_path / "antmaze-umaze.hdf5", arrays)
    with pytest.warns(UserWarning, match="left out infos/note"):
        dataset = import_d4rl(path, tmp_path / "out", env=ANTMAZE, float32=True)
    assert {c.dtype for c in dataset.manifest.columns} == {"float32"}
    assert dataset.episodes.length.tolist() == [4, 1, 3]
    assert dataset.episodes.column("undiscounted_return").tolist() == [1.0, 1.0, 0.0]
    narrow = {**arrays, "rewards": arrays["rewards"][:, 0]}
    del narrow["infos/note"]
    narrow = {name: np.asarray(values).astype(np.float32) for name, values in narrow.items()}
    check(dataset, 2, narrow, range(5, 8), narrow["observations"][8])


def test_d4rl_to_minari_and_back(tmp_path: Path, minari_root: Path) -> None:
    dataset = import_d4rl(write(tmp_path / "hopper.hdf5", make_hopper()), tmp_path / "out", env=HOPPER)
    export_minari(dataset, "hopper/medium-v2")
    again = import_minari(minari_root / "hopper/medium-v2", tmp_path / "again")
    assert again.content_hash() == dataset.content_hash()
    assert json_id(again) == "Hopper-v5"


def json_id(dataset: TrajectoryDataset) -> str:
    import json

    return json.loads(dataset.manifest.env_spec or "{}")["id"]


def without(arrays: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: values for name, values in arrays.items() if name not in names}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (without(make_maze2d(), "terminals"), "expected an array 'terminals', got observations, actions, rewards"),
        ({"data": np.zeros(3)}, "expected an array 'observations', got data"),
        ({**make_maze2d(), "rewards": np.zeros(11)}, "rewards: expected 12 rows, as many as observations"),
        ({**make_maze2d(), "infos/goal": np.zeros((13, 2))}, "infos/goal: expected 12 rows"),
        ({**make_maze2d(), "rewards": np.zeros((12, 2))}, "rewards: expected one number per row"),
        ({**make_maze2d(), "actions": np.array([b"x"] * 12)}, "actions: expected numbers"),
        ({name: values[:0] for name, values in make_maze2d().items()}, "expected at least one row, got none"),
        ({name: values[:1] for name, values in make_maze2d().items()}, "an episode of more than one row"),
        ({**make_maze2d(), "next_observations": np.zeros((12, 3))}, "next_observations: expected the shape"),
        (
            {**make_maze2d(), "observations": np.zeros((12, 5))},
            r"observations: expected shape \(4,\) per row, as diffplan",
        ),
        ({**make_maze2d(), "actions": np.zeros((12, 3))}, r"actions: expected shape \(2,\) per row"),
        (
            {**make_maze2d(), "timeouts": np.where(ends(12, 5), np.nan, 0)},
            "timeouts: expected flags 0 and 1, got nan in",
        ),
        (
            {**make_maze2d(), "terminals": -ends(12, 3).astype(int)},
            "terminals: expected flags 0 and 1, got -1 in row 3",
        ),
        ({**make_maze2d(), "observations": np.zeros((12, 0))}, "observations: expected at least one column"),
        ({**make_hopper(), "next_observations": np.zeros((10, 11))}, "the rows are no sequence of steps"),
        ({**make_maze2d(), "rewards": np.full(12, np.nan)}, "episode 0: rewards: expected finite numbers"),
    ],
)
def test_unfit_files_are_named(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "bad.hdf5", arrays)
    with pytest.raises(DataError, match=message) as caught:
        import_d4rl(path, tmp_path / "out", env=MAZE)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got no file"):
        import_d4rl(tmp_path / "none.hdf5", tmp_path / "out", env=MAZE)
    text = tmp_path / "text.hdf5"
    text.write_text("observations\n")
    with pytest.raises(DataError, match="cannot be read"):
        import_d4rl(text, tmp_path / "out", env=MAZE)
    path = write(tmp_path / "cut.hdf5", make_maze2d(5000))
    for share in (0.2, 0.5, 0.99):
        cut = tmp_path / f"cut-{share}.hdf5"
        cut.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        with pytest.raises(DataError, match="cannot be read") as caught:
            import_d4rl(cut, tmp_path / "out", env=MAZE)
        assert "\n" not in str(caught.value)
    with pytest.raises(
        DataError, match=r"split_on: expected an array of the file \(infos/goal, infos/qpos, infos/qvel\)"
    ):
        import_d4rl(path, tmp_path / "out", env=MAZE, split_on="goal")
    assert not (tmp_path / "out").exists()


def test_one_long_episode_is_pointed_out(tmp_path: Path) -> None:
    path = write(tmp_path / "stream.hdf5", make_maze2d(10_001))
    with pytest.warns(UserWarning, match="all 10,001 rows are one episode; --split_on infos/goal"):
        import_d4rl(path, tmp_path / "out", env=MAZE)


def test_another_file_in_the_same_place_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "hopper.hdf5", make_hopper())
    first = import_d4rl(path, tmp_path / "out", env=HOPPER)
    again = import_d4rl(path, tmp_path / "out", env=HOPPER)
    assert (again.snapshot, again.content_hash()) == (first.snapshot, first.content_hash())
    other = make_hopper()
    other["rewards"] = other["rewards"] + 1
    with pytest.raises(DataError, match="imported from another source"):
        import_d4rl(write(path, other), tmp_path / "out", env=HOPPER)


def test_an_import_that_was_killed_goes_on(tmp_path: Path) -> None:
    arrays = {**make_maze2d(60), "timeouts": ends(60, *range(5, 60, 6))}
    path = write(tmp_path / "maze2d.hdf5", arrays)
    script = f"""
        import os, signal
        from diffplan.config import EnvConfig
        from diffplan.data.exchange.d4rl import import_d4rl
        def kill(done, total):
            if done >= 6:
                os.kill(os.getpid(), signal.SIGKILL)
        import_d4rl({str(path)!r}, {str(tmp_path / "out")!r}, env=EnvConfig(env_id={MAZE.env_id!r}),
                    episodes_per_unit=2, on_progress=kill)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=environment, check=False)
    assert result.returncode == -signal.SIGKILL
    assert len(open_dataset(tmp_path / "out").episodes) == 6
    dataset = import_d4rl(path, tmp_path / "out", env=MAZE, episodes_per_unit=2)
    assert [e.episode_index for e in dataset.episodes] == list(range(10))
    assert dataset.content_hash() == import_d4rl(path, tmp_path / "whole", env=MAZE).content_hash()


def test_data_of_other_files_are_refused(tmp_path: Path) -> None:
    """External links, external storage and virtual arrays would copy the bytes of any file into the dataset."""
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(range(48)))
    other = write(tmp_path / "other.hdf5", {"rewards": np.arange(12.0)})

    def link(file: h5py.File) -> None:
        file["rewards"] = h5py.ExternalLink(str(other), "rewards")

    def store_outside(file: h5py.File) -> None:
        file.create_dataset("rewards", (12,), np.float32, external=[(str(secret), 0, 48)])

    def map_virtually(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((12,), np.float64)
        layout[:] = h5py.VirtualSource(str(other), "rewards", (12,))
        file.create_virtual_dataset("rewards", layout)

    def link_group(file: h5py.File) -> None:
        file["rewards"] = np.zeros(12)
        file["metadata"] = h5py.ExternalLink(str(other), "/")

    for number, refer in enumerate((link, store_outside, map_virtually, link_group)):
        path = write(tmp_path / f"bad-{number}.hdf5", without(make_maze2d(), "rewards"))
        with h5py.File(path, "a") as file:
            refer(file)
        with pytest.raises(DataError, match="expected data in the file itself, got") as caught:
            import_d4rl(path, tmp_path / "out", env=MAZE)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("num_rows", [3 * 10**8, 10**12])
def test_arrays_that_the_file_cannot_hold_are_refused_at_once(num_rows: int, tmp_path: Path) -> None:
    path = tmp_path / "huge.hdf5"
    with h5py.File(path, "w") as file:
        for name, shape in (("observations", (num_rows, 4)), ("actions", (num_rows, 2)), ("rewards", (num_rows,))):
            file.create_dataset(name, shape, np.float32, chunks=(1024, *shape[1:]))
        file.create_dataset("terminals", (num_rows,), bool, chunks=(1024,))
    since = time.monotonic()
    with pytest.raises(DataError, match="expected arrays that the file can hold"):
        import_d4rl(path, tmp_path / "out", env=MAZE)
    assert time.monotonic() - since < 5


def test_groups_that_contain_themselves_end(tmp_path: Path) -> None:
    path = write(tmp_path / "loop.hdf5", make_maze2d())
    with h5py.File(path, "a") as file:
        file["infos/loop"] = file["/"]
    assert import_d4rl(path, tmp_path / "out", env=MAZE).num_steps == 11


@pytest.mark.soak
def test_damaged_files_end_in_one_line(tmp_path: Path) -> None:
    """A byte changed anywhere in the file: it is imported, or refused in one line."""
    content = write(tmp_path / "whole.hdf5", make_maze2d()).read_bytes()
    generator = np.random.default_rng(0)
    refusals = []
    for number in range(400):
        damaged = bytearray(content)
        for place in generator.integers(0, len(content), generator.integers(1, 20)):
            damaged[place] = generator.integers(256)
        path = tmp_path / "damaged.hdf5"
        path.write_bytes(damaged)
        try:
            import_d4rl(path, tmp_path / f"out-{number}", env=MAZE, split_on="infos/goal")
        except DataError as error:
            refusals.append(str(error))
    assert len(refusals) > 20
    assert not any("\n" in refusal for refusal in refusals)

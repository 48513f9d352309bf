import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from diffplan.data.exchange import step_files
from diffplan.data.exchange.parquet import export_parquet
from diffplan.data.format.dataset import TrajectoryDataset, open_dataset
from diffplan.data.format.manifest import Column, Manifest, make_columns, new_dataset_uuid
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.errors import DataError
from diffplan.types import Episode

LENGTHS = [[5, 7, 1], [4], [6, 3]]
ALL_LENGTHS = [length for lengths in LENGTHS for length in lengths]
EXTRA = (
    Column("goal.position", (2,), "float64", has_final=True),
    Column("image", (2, 3), "uint8"),
    Column("success", (), "bool", has_final=True),
    Column("contacts", (2,), "bool"),
    Column("cost", (), "float32"),
    Column("phase", (), "int64"),
)


def make_episode(index: int, length: int, dtype: str) -> Episode:
    generator = np.random.default_rng(index)
    goals = generator.standard_normal((length + 1, 2))
    goals[-1, 0] = np.nan
    actions = generator.uniform([-2.0, 0.0], [2.0, 5.0], (length, 2)).astype(dtype)
    return Episode(
        episode_index=index,
        seed=2**62 + index,
        behavior="waypoint",
        observations=generator.standard_normal((length + 1, 3)).astype(dtype),
        actions=actions,
        rewards=generator.standard_normal(length).astype(dtype),
        terminated=index % 2 == 0,
        truncated=index % 2 == 1,
        columns={
            "goal.position": goals,
            "image": generator.integers(0, 256, (length, 2, 3), dtype=np.uint8),
            "success": generator.integers(0, 2, length + 1).astype(bool),
            "contacts": generator.integers(0, 2, (length, 2)).astype(bool),
            "cost": generator.standard_normal(length).astype(np.float32),
            "phase": generator.integers(0, 2**40, length),
        },
        options={"goal": [1, index]} if index else None,
    )


def make_dataset(root: Path, *, dtype: str = "float32", **changes: Any) -> TrajectoryDataset:
    values: dict[str, Any] = {
        "dataset_uuid": new_dataset_uuid(),
        "env": {"env_id": "diffplan/Maze2D-UMaze-v1"},
        "columns": make_columns(3, 2, EXTRA, observation_dtype=dtype, action_dtype=dtype, reward_dtype=dtype),
        "action_low": [-2.0, 0.0],
        "action_high": [2.0, 5.0],
        "spaces": {"observation": {"type": "Box"}},
    }
    manifest = create_dataset(root, Manifest(**{**values, **changes}))
    index = 0
    for unit, lengths in enumerate(LENGTHS):
        write_unit(root, manifest, unit, [make_episode(index + i, n, dtype) for i, n in enumerate(lengths)])
        index += len(lengths)
    return open_dataset(root)


@pytest.fixture
def dataset(tmp_path: Path) -> TrajectoryDataset:
    return make_dataset(tmp_path / "dataset")


def read_array(table: Any, name: str) -> np.ndarray:
    """A column of a table, [rows, size] for lists."""
    column = table.column(name).combine_chunks()
    if hasattr(column.type, "list_size"):
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    return column.to_numpy(zero_copy_only=False)


def step_parts(out: Path) -> list[Any]:
    return [pq.read_table(path) for path in sorted((out / "steps").iterdir())]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_plain_export_has_every_number_of_the_dataset(tmp_path: Path, dtype: str) -> None:
    dataset = make_dataset(tmp_path / "dataset", dtype=dtype)
    steps = pq.read_table(export_parquet(dataset, tmp_path / "out") / "steps")
    assert steps.column_names == dataset.manifest.arrow_schema.names
    for column in dataset.manifest.columns:
        found, expected = read_array(steps, column.name), dataset.read_column(column.name)
        assert found.dtype == expected.dtype == column.numpy_dtype, column
        assert np.array_equal(found.reshape(expected.shape), expected), column
    lengths = ALL_LENGTHS
    assert read_array(steps, "episode_index").tolist() == np.repeat(np.arange(6), lengths).tolist()
    assert read_array(steps, "t").tolist() == [t for n in lengths for t in range(n)]
    ends = np.cumsum(lengths) - 1
    assert np.flatnonzero(read_array(steps, "termination")).tolist() == ends[::2].tolist()
    assert np.flatnonzero(read_array(steps, "truncation")).tolist() == ends[1::2].tolist()


def test_episodes_table_has_what_is_known_of_each_episode_and_nothing_internal(
    dataset: TrajectoryDataset, tmp_path: Path
) -> None:
    episodes = pq.read_table(export_parquet(dataset, tmp_path / "out") / "episodes.parquet")
    assert not {"unit", "shard", "first_row", "details"} & set(episodes.column_names)
    for i, row in enumerate(episodes.to_pylist()):
        expected = make_episode(i, ALL_LENGTHS[i], "float32")
        assert (row["episode_index"], row["seed"], row["behavior"]) == (i, expected.seed, "waypoint")
        assert (row["length"], row["terminated"], row["truncated"]) == (
            len(expected),
            expected.terminated,
            expected.truncated,
        )
        assert row["undiscounted_return"] == np.sum(expected.rewards, dtype=np.float64)
        assert np.array_equal(np.float32(row["final_observation"]), expected.observations[-1])
        assert np.array_equal(row["final_goal.position"], expected.columns["goal.position"][-1], equal_nan=True)
        assert row["final_success"] is bool(expected.columns["success"][-1])
        assert (row["options"] and json.loads(row["options"])) == expected.options


def test_floats_are_split_by_bytes_and_everything_is_compressed(dataset: TrajectoryDataset, tmp_path: Path) -> None:
    out = export_parquet(dataset, tmp_path / "out")
    group = pq.read_metadata(out / "steps" / "part-00000.parquet").row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    assert {column.compression for column in columns} == {"ZSTD"}
    split = {c.path_in_schema.removesuffix(".list.element") for c in columns if "BYTE_STREAM_SPLIT" in c.encodings}
    assert split == {"observation", "action", "reward", "goal.position", "cost"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_transitions_are_those_of_the_episodes(tmp_path: Path, dtype: str) -> None:
    dataset = make_dataset(tmp_path / "dataset", dtype=dtype)
    out = export_parquet(dataset, tmp_path / "out", layout="rllib")
    steps = pq.read_table(out / "steps")
    assert steps.column_names == ["eps_id", "t", "obs", "actions", "rewards", "new_obs", "terminateds", "truncateds"]
    scaling = json.loads((out / "metadata.json").read_text())["actions"]
    low, high = np.array(scaling["low"]), np.array(scaling["high"])
    ids = np.array(steps.column("eps_id").to_pylist())
    for i, length in enumerate(ALL_LENGTHS):
        expected, rows = make_episode(i, length, dtype), steps.filter(ids == str(i))
        assert read_array(rows, "t").tolist() == list(range(length))
        assert np.array_equal(read_array(rows, "obs"), expected.observations[:-1])
        assert np.array_equal(read_array(rows, "new_obs"), expected.observations[1:])
        assert np.array_equal(read_array(rows, "rewards"), expected.rewards)
        actions = read_array(rows, "actions")
        assert np.abs(actions).max() <= 1
        assert actions.dtype == np.dtype(dtype)
        restored = low + (actions.astype(np.float64) + 1) * (high - low) / 2
        np.testing.assert_allclose(restored, expected.actions, rtol=0, atol=1e-6 if dtype == "float32" else 1e-14)
        assert read_array(rows, "terminateds").tolist() == [False] * (length - 1) + [i % 2 == 0]
        assert read_array(rows, "truncateds").tolist() == [False] * (length - 1) + [i % 2 == 1]


def test_the_ends_of_the_bounds_become_exactly_one(tmp_path: Path) -> None:
    episode = make_episode(0, 2, "float32")
    bounds = np.array([[-2.1, 0.3], [1.9, 5.7]], np.float32)
    columns = make_columns(3, 2)
    low, high = ([float(v) for v in row] for row in bounds)
    manifest = Manifest(new_dataset_uuid(), {"env_id": "x"}, columns, low, high)
    create_dataset(tmp_path / "dataset", manifest)
    write_unit(tmp_path / "dataset", manifest, 0, [replace(episode, actions=bounds)])
    out = export_parquet(open_dataset(tmp_path / "dataset"), tmp_path / "out", layout="rllib")
    assert read_array(pq.read_table(out / "steps"), "actions").tolist() == [[-1, -1], [1, 1]]


@pytest.mark.parametrize("layout", ["plain", "rllib"])
def test_only_the_episodes_of_the_dataset_are_written(dataset: TrajectoryDataset, tmp_path: Path, layout: Any) -> None:
    """As of a snapshot that is older than the compaction of its shards."""
    some = replace(dataset, episodes=dataset.episodes.select(np.array([0, 2, 3, 5])))
    steps = pq.read_table(export_parquet(some, tmp_path / "out", layout=layout) / "steps")
    ids = steps.column("episode_index" if layout == "plain" else "eps_id").to_pylist()
    assert [int(i) for i in ids] == [0] * 5 + [2] + [3] * 4 + [5] * 3
    if layout == "rllib":
        last = read_array(steps, "new_obs")[[4, 5, 9, 12]]
        assert np.array_equal(last, dataset.episodes.final_observations[[0, 2, 3, 5]])


@pytest.mark.parametrize("layout", ["plain", "rllib"])
@pytest.mark.parametrize(
    ("rows_per_file", "expected"),
    [
        (26, [[0, 1, 2, 3, 4, 5]]),
        (25, [[0, 1, 2, 3, 4], [5]]),
        (12, [[0, 1], [2, 3, 4], [5]]),
        (7, [[0], [1], [2, 3], [4], [5]]),
        (2, [[0], [1], [2], [3], [4], [5]]),
    ],
)
def test_files_are_split_between_episodes(
    dataset: TrajectoryDataset, tmp_path: Path, layout: Any, rows_per_file: int, expected: list[list[int]]
) -> None:
    out = export_parquet(dataset, tmp_path / "out", layout=layout, rows_per_file=rows_per_file)
    name = "episode_index" if layout == "plain" else "eps_id"
    parts = step_parts(out)
    found = [list(dict.fromkeys(int(i) for i in part.column(name).to_pylist())) for part in parts]
    assert found == expected
    assert sum(part.num_rows for part in parts) == 26


def test_row_groups_are_gathered_over_shards(
    dataset: TrajectoryDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = pq.read_metadata(export_parquet(dataset, tmp_path / "one") / "steps/part-00000.parquet")
    assert one.num_row_groups == 1
    monkeypatch.setattr(step_files, "ROW_GROUP_BYTES", 10 * 71)  # a row has 70 bytes and five bits
    out = export_parquet(dataset, tmp_path / "ten")
    metadata = pq.read_metadata(out / "steps/part-00000.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [10, 10, 6]
    assert pq.read_table(out / "steps").equals(pq.read_table(tmp_path / "one/steps"))


@pytest.mark.parametrize("file", ["steps/part-00000.parquet", "episodes.parquet"])
def test_a_flipped_bit_in_a_page_is_found(dataset: TrajectoryDataset, tmp_path: Path, file: str) -> None:
    path = export_parquet(dataset, tmp_path / "out") / file
    pq.read_table(path, page_checksum_verification=True)
    content = bytearray(path.read_bytes())
    group = pq.read_metadata(path).row_group(0)
    names = [group.column(i).path_in_schema for i in range(group.num_columns)]
    column = group.column(next(i for i, name in enumerate(names) if "observation" in name))
    content[column.data_page_offset + column.total_compressed_size - 1] ^= 1  # the end of its one page
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"CRC|checksum"):
        pq.read_table(path, page_checksum_verification=True)


def test_progress_counts_every_step_once(dataset: TrajectoryDataset, tmp_path: Path) -> None:
    done: list[int] = []
    export_parquet(dataset, tmp_path / "out", on_progress=done.append)
    assert done == [13, 4, 9]


def test_an_interrupted_export_leaves_nothing(dataset: TrajectoryDataset, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_parquet(dataset, tmp_path / "out", on_progress=interrupt)
    assert sorted(tmp_path.iterdir()) == before
    export_parquet(dataset, tmp_path / "out")


def run_export(dataset: TrajectoryDataset, out: Path, before: str) -> subprocess.CompletedProcess[str]:
    code = f"""
import os, resource, signal
from diffplan.data.format.dataset import open_dataset
from diffplan.data.exchange.parquet import export_parquet
from diffplan.errors import DataError
on_progress = None
{before}
try:
    export_parquet(open_dataset({dataset.uri!r}), {str(out)!r}, on_progress=on_progress)
except DataError as error:
    print(error)
"""
    environment = {"PYTHONPATH": str(Path(step_files.__file__).parents[3])}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_a_killed_export_is_not_taken_for_a_whole_one(dataset: TrajectoryDataset, tmp_path: Path) -> None:
    killed = run_export(dataset, tmp_path / "out", "on_progress = lambda n: os.kill(os.getpid(), signal.SIGKILL)")
    assert killed.returncode == -9
    assert not (tmp_path / "out").exists()
    export_parquet(dataset, tmp_path / "out")


def test_a_disk_that_takes_no_more_is_one_clear_line(dataset: TrajectoryDataset, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    result = run_export(dataset, tmp_path / "out", "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))")
    assert result.returncode == 0, result.stderr
    assert "the export could not be written" in result.stdout
    assert len(result.stdout.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_damaged_shard_is_not_exported(dataset: TrajectoryDataset, tmp_path: Path) -> None:
    path = Path(dataset.uri) / dataset.shards[1].name
    content = bytearray(path.read_bytes())
    content[dataset.shards[1].offsets["reward"]] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path.name}: expected bytes that match their checksums"):
        export_parquet(open_dataset(dataset.uri), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_says_where_it_came_from_and_is_no_dataset(dataset: TrajectoryDataset, tmp_path: Path) -> None:
    out = export_parquet(dataset, tmp_path / "out")
    found = json.loads((out / "metadata.json").read_text())
    assert found["layout"] == "plain"
    assert found["dataset_uuid"] == dataset.manifest.dataset_uuid
    assert found["env"] == dataset.manifest.env
    assert found["spaces"] == dataset.manifest.spaces
    assert found["exported_from"] == {"uri": dataset.uri, "snapshot": None}
    assert (found["num_steps"], found["num_episodes"]) == (26, 6)
    assert {c["name"]: tuple(c["shape"]) for c in found["columns"]}["image"] == (2, 3)
    with pytest.raises(DataError, match=r"expected a dataset \(no _dataset.json there\)"):
        open_dataset(out)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"action_low": [-2.0, None]},
            "action dimension 1 to scale it .*got None to 5.0; export with the layout 'plain'",
        ),
        ({"action_high": [-2.0, 5.0]}, "action dimension 0 to scale it .*got -2.0 to -2.0"),
        ({"action_low": [], "action_high": []}, "expected bounds of 2 action dimensions, got 0 lower"),
    ],
)
def test_actions_that_cannot_be_scaled_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    dataset = make_dataset(tmp_path / "dataset", **changes)
    with pytest.raises(DataError, match=message):
        export_parquet(dataset, tmp_path / "out", layout="rllib")
    assert not (tmp_path / "out").exists()
    export_parquet(dataset, tmp_path / "out")


@pytest.mark.parametrize("shape", [(), (2,)])
def test_discrete_actions_and_plain_numbers_stay_as_they_are(tmp_path: Path, shape: tuple[int, ...]) -> None:
    columns = make_columns((), shape, observation_dtype="int64", action_dtype="int64")
    manifest = Manifest(new_dataset_uuid(), {"env_id": "FrozenLake-v1"}, columns, [], [])
    create_dataset(tmp_path / "dataset", manifest)
    actions, states = np.arange(4 * int(np.prod(shape))).reshape(4, *shape), np.array([3, 1, 4, 1, 5])
    write_unit(
        tmp_path / "dataset", manifest, 0, [Episode(0, None, "x", states, actions, np.ones(4), True, False)]
    )  # fmt: skip
    out = export_parquet(open_dataset(tmp_path / "dataset"), tmp_path / "out", layout="rllib")
    steps = pq.read_table(out / "steps")
    assert np.array_equal(read_array(steps, "actions"), actions)
    assert steps.column("obs").to_pylist() == [3, 1, 4, 1]
    assert steps.column("new_obs").to_pylist() == [1, 4, 1, 5]


def test_nothing_is_overwritten(dataset: TrajectoryDataset, tmp_path: Path) -> None:
    (tmp_path / "thesis").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    for name in ("thesis", "empty", "broken", "dataset"):
        with pytest.raises(DataError, match=f"{name}: expected a new directory"):
            export_parquet(dataset, tmp_path / name)
    with pytest.raises(DataError, match="could not be written"):
        export_parquet(dataset, tmp_path / "thesis" / "out")


def test_wrong_settings_are_named(dataset: TrajectoryDataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="layout: expected one of plain, rllib, got 'minari'"):
        export_parquet(dataset, tmp_path / "out", layout="minari")  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match="rows_per_file: expected at least 1, got 0"):
        export_parquet(dataset, tmp_path / "out", rows_per_file=0)
    with pytest.raises(DataError, match="expected a local directory, got a URL"):
        export_parquet(dataset, "s3://bucket/out")

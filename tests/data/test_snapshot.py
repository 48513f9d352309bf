"""Snapshots: the index of a dataset, numbered without gaps, and what a run is pinned to."""

import itertools
import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up_episodes import commit_of, make_episode, make_manifest, require_undamaged, shard_of, write_dataset

from diffplan.data.format.dataset import list_orphans, open_dataset, write_snapshot
from diffplan.data.format.manifest import Column, make_columns
from diffplan.data.format.snapshot import list_snapshots, read_state, relocate, write_state
from diffplan.data.format.statistics import NUM_QUANTILES
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.data.windows.mapped_windows import Windows
from diffplan.errors import DataError
from diffplan.storage.store import LocalStore

LENGTHS = [[5, 7], [4, 6, 9], [12], [3, 3]]


def make_unit(unit, lengths_of_units=LENGTHS):
    first = sum(len(lengths) for lengths in lengths_of_units[:unit])
    return [make_episode(first + i, length) for i, length in enumerate(lengths_of_units[unit])]


def draw(dataset, seed=0):
    windows = Windows(dataset, ("action", "observation"), stride=1)
    return windows.sample(64, 3, np.random.default_rng(seed))


def assert_same_dataset(found, expected):
    """The same episodes in the same order, the same rows, and the same windows for the same random numbers."""
    assert list(found.episodes) == list(expected.episodes)
    for name in ("unit", "length", "task"):
        np.testing.assert_array_equal(getattr(found.episodes, name), getattr(expected.episodes, name))
    assert found.content_hash() == expected.content_hash()
    np.testing.assert_array_equal(draw(found), draw(expected))
    for column in expected.manifest.columns:
        np.testing.assert_array_equal(found.read_column(column.name), expected.read_column(column.name))


def forget_commits(root):
    """Leave only the snapshots, so that nothing can be read from elsewhere."""
    shutil.rmtree(root / "commits")


@pytest.mark.parametrize("snapshot_after", range(1, len(LENGTHS) + 1))
def test_snapshot_and_later_commits_are_the_same_as_all_commits(tmp_path, snapshot_after):
    manifest = create_dataset(tmp_path, make_manifest())
    for unit in range(len(LENGTHS)):
        write_unit(tmp_path, manifest, unit, make_unit(unit))
        if unit + 1 == snapshot_after:
            write_snapshot(open_dataset(tmp_path))
    with_snapshot = open_dataset(tmp_path)
    shutil.move(tmp_path / "snapshots", tmp_path / "elsewhere")
    from_commits = open_dataset(tmp_path)
    assert_same_dataset(with_snapshot, from_commits)
    assert with_snapshot.shards == from_commits.shards
    for name, merged in from_commits.statistics.items():
        found = with_snapshot.statistics[name]
        for field in ("count", "num_nonfinite", "minimum", "maximum"):
            np.testing.assert_array_equal(getattr(found, field), getattr(merged, field))
        np.testing.assert_allclose(found.mean, merged.mean, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(found.std, merged.std, rtol=1e-12)


def test_units_that_are_committed_out_of_order_stand_in_the_order_of_units(tmp_path):
    write_dataset(tmp_path / "in order", LENGTHS)
    manifest = create_dataset(tmp_path / "mixed", make_manifest())
    for unit in (2, 0):
        write_unit(tmp_path / "mixed", manifest, unit, make_unit(unit))
    write_snapshot(open_dataset(tmp_path / "mixed"))
    for unit in (3, 1):
        write_unit(tmp_path / "mixed", manifest, unit, make_unit(unit))
    expected = open_dataset(tmp_path / "in order")
    assert_same_dataset(open_dataset(tmp_path / "mixed"), expected)
    write_snapshot(open_dataset(tmp_path / "mixed"))
    forget_commits(tmp_path / "mixed")
    assert_same_dataset(open_dataset(tmp_path / "mixed"), expected)


def test_snapshot_holds_all_that_commits_do(tmp_path):
    qpos = Column("qpos", (2,), "float64", has_final=True)
    columns = make_columns(3, 2, (qpos,), observation_dtype="float64")
    manifest = create_dataset(tmp_path, replace(make_manifest(), columns=columns))
    values = np.array([[1 / 3, np.nan], [1e-300, -0.0], [np.inf, 2.0]])
    episode = replace(
        make_episode(0, 2, terminated=True), columns={"qpos": values}, seed=None, options={"goal": [1.5, None]}, task=3
    )
    episode = replace(episode, observations=np.array([[1 / 7] * 3, [1e-310] * 3, [np.pi] * 3]))
    write_unit(tmp_path, manifest, 0, [episode])
    from_commits = open_dataset(tmp_path)
    write_snapshot(from_commits)
    forget_commits(tmp_path)
    pinned = open_dataset(tmp_path, snapshot=0)
    assert list(pinned.episodes) == list(from_commits.episodes)
    (record,) = pinned.episodes
    assert (record.seed, record.options, record.task) == (None, {"goal": [1.5, None]}, 3)
    assert record.final_observation == [np.pi] * 3
    assert record.final_values == {"qpos": ["inf", 2.0]}
    assert pinned.episodes.final_observations.tolist() == [[np.pi] * 3]
    for name, statistics in from_commits.statistics.items():
        for field in statistics.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(pinned.statistics[name], field), getattr(statistics, field))


def _write_units_with_snapshots(root, units, barrier):
    manifest = open_dataset(root).manifest
    barrier.wait()
    for unit in units:
        write_unit(root, manifest, unit, [make_episode(unit, 4)])
        write_snapshot(open_dataset(root))


def test_snapshots_of_many_processes_have_no_gaps_and_lose_nothing(tmp_path):
    write_dataset(tmp_path, [[4]])
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    shares = [range(1 + i, 25, 3) for i in range(3)]
    processes = [
        context.Process(target=_write_units_with_snapshots, args=(tmp_path, share, barrier)) for share in shares
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    numbers = list_snapshots(LocalStore(tmp_path))
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > 1
    held = [set(open_dataset(tmp_path, snapshot=number).episodes.unit.tolist()) for number in numbers]
    for before, after in itertools.pairwise(held):
        assert before < after  # each builds on the one before it
    assert held[-1] == set(range(25))
    require_undamaged(tmp_path)


def test_only_one_of_two_states_becomes_the_next_snapshot(dataset_root):
    store = LocalStore(dataset_root)
    manifest = open_dataset(dataset_root).manifest
    state = read_state(store, manifest)
    assert [write_state(store, manifest, state) for _ in range(2)] == [0, None]
    again = read_state(store, manifest)
    assert (again.number, again.base) == (0, 0)
    assert [write_state(store, manifest, again) for _ in range(2)] == [1, None]


def recollect(root, unit):
    """Delete a unit and make it again, as after damage."""
    manifest = open_dataset(root).manifest
    shard_of(root, unit).unlink()
    commit_of(root, unit).unlink()
    write_unit(root, manifest, unit, make_unit(unit))


@pytest.mark.parametrize("units", [[0], [1, 3], [0, 1, 2, 3]])
def test_pinned_snapshot_reads_the_same_windows_after_its_shards_were_made_again(tmp_path, units):
    write_dataset(tmp_path, LENGTHS)
    write_snapshot(open_dataset(tmp_path))
    before = open_dataset(tmp_path, snapshot=0)
    shards = {shard.name for shard in before.shards}
    expected = [draw(before, seed) for seed in range(5)]
    for unit in units:
        recollect(tmp_path, unit)
    write_unit(tmp_path, before.manifest, 4, [make_episode(8, 20)])
    pinned = open_dataset(tmp_path, snapshot=0)
    assert len({shard.name for shard in pinned.shards} - shards) == len(units)
    for seed, windows in enumerate(expected):
        np.testing.assert_array_equal(draw(pinned, seed), windows)
    assert_same_dataset(pinned, before)
    # A new snapshot names the shards as they are now, and needs no commits.
    assert write_snapshot(pinned) == 1
    latest = open_dataset(tmp_path, snapshot=1)
    assert len(latest.episodes) == 9
    assert not list_orphans(latest)
    require_undamaged(tmp_path)
    forget_commits(tmp_path)
    for number in (0, 1):
        pinned = open_dataset(tmp_path, snapshot=number)
        assert pinned.episodes.unit.max() == 3 + number
        np.testing.assert_array_equal(pinned.read_column("reward")[: before.num_steps], before.read_column("reward"))


def test_state_with_all_its_shards_is_left_as_it_is(dataset_root):
    store = LocalStore(dataset_root)
    manifest = open_dataset(dataset_root).manifest
    state = read_state(store, manifest)
    assert relocate(store, manifest, state) is state


def test_unit_that_was_made_again_with_other_episodes_is_refused(tmp_path):
    write_dataset(tmp_path, LENGTHS)
    write_snapshot(open_dataset(tmp_path))
    manifest = open_dataset(tmp_path).manifest
    shard_of(tmp_path, 1).unlink()
    commit_of(tmp_path, 1).unlink()
    write_unit(tmp_path, manifest, 1, [make_episode(2, 4), make_episode(3, 6), make_episode(4, 8)])
    with pytest.raises(DataError, match="unit 1 has other episodes than the snapshot") as caught:
        open_dataset(tmp_path, snapshot=0)
    assert "\n" not in str(caught.value)


def test_statistics_survive_fifty_snapshots_in_a_row(tmp_path):
    generator = np.random.default_rng(0)
    columns = make_columns(1, 1)
    manifest = create_dataset(
        tmp_path, replace(make_manifest(), columns=columns, action_low=[None], action_high=[None])
    )
    rewards = []
    for unit in range(50):
        # Drifting and heavy-tailed with an atom at 0, so that parts differ and quantiles are hard.
        values = generator.standard_cauchy(200) + unit / 5
        values = np.where(generator.random(200) < 0.3, 0.0, values).astype(np.float32)
        episode = replace(
            make_episode(unit, 200),
            observations=np.zeros((201, 1), np.float32),
            actions=np.full((200, 1), unit, np.float32),
            rewards=values,
            columns={},
        )
        write_unit(tmp_path, manifest, unit, [episode])
        assert write_snapshot(open_dataset(tmp_path)) == unit
        rewards.append(values)
    forget_commits(tmp_path)
    dataset = open_dataset(tmp_path)
    values = np.sort(np.concatenate(rewards).astype(np.float64))
    statistics = dataset.statistics["reward"]
    assert statistics.count == len(values)
    np.testing.assert_allclose([statistics.mean[0], statistics.std[0]], [values.mean(), values.std()], rtol=1e-9)
    for name, exact in (("reward", values), ("action", np.repeat(np.arange(50.0), 200))):
        quantiles = dataset.statistics[name].quantiles[:, 0]
        low = np.searchsorted(exact, quantiles - 1e-9, side="left") / len(exact)
        high = np.searchsorted(exact, quantiles + 1e-9, side="right") / len(exact)
        wanted = np.linspace(0, 1, NUM_QUANTILES)
        largest = 0.015 if name == "reward" else 0.025  # atoms blur a little each time that tables are merged
        assert np.maximum(low - wanted, wanted - high).max() < largest


@pytest.fixture(scope="module")
def pinned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A dataset with one snapshot, and its bytes."""
    root = tmp_path_factory.mktemp("pinned") / "dataset"
    write_dataset(root, LENGTHS)
    write_snapshot(open_dataset(root))
    return root, (root / "snapshots" / "0.parquet").read_bytes()


def read_snapshot_of(root):
    """Everything that a snapshot says, for comparison."""
    require_undamaged(root)
    dataset = open_dataset(root, snapshot=0)
    statistics = {name: s.to_dict() for name, s in dataset.statistics.items()}
    arrays = [getattr(dataset.episodes, name).tolist() for name in ("unit", "shard", "first_row", "length", "task")]
    return dataset.shards, statistics, arrays, list(dataset.episodes), dataset.episodes.to_arrow().schema


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_flipped_bit_anywhere_in_a_snapshot_is_found_or_changes_nothing(pinned, data):
    root, good = pinned
    # The footer, where the record and the schema are, is most of the file; pages get half of the examples.
    footer = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
    start, stop = data.draw(st.sampled_from([(0, footer), (footer, len(good))]))
    position, bit = data.draw(st.integers(start, stop - 1)), data.draw(st.integers(0, 7))
    snapshot = root / "snapshots" / "0.parquet"
    snapshot.write_bytes(good)
    expected = read_snapshot_of(root)
    content = bytearray(good)
    content[position] ^= 1 << bit
    snapshot.write_bytes(content)
    found, said = None, ""
    try:
        found = read_snapshot_of(root)
    except DataError as error:
        said = str(error)
    if said:
        assert str(snapshot) in said
        assert "\n" not in said
    else:
        assert found == expected


@pytest.mark.parametrize("size", [0, 1, 4, 100, -1, -8, -100])
def test_truncated_snapshot_is_refused(pinned, size):
    root, good = pinned
    snapshot = root / "snapshots" / "0.parquet"
    snapshot.write_bytes(good[:size])
    try:
        for number in (0, None):
            with pytest.raises(DataError, match=str(snapshot)) as caught:
                open_dataset(root, snapshot=number)
            assert "\n" not in str(caught.value)
    finally:
        snapshot.write_bytes(good)


def test_snapshot_of_another_dataset_is_refused(tmp_path):
    for name in ("one", "two"):
        write_dataset(tmp_path / name, LENGTHS)
        write_snapshot(open_dataset(tmp_path / name))
    misplaced = tmp_path / "one" / "snapshots" / "1.parquet"
    shutil.copy(tmp_path / "two" / "snapshots" / "0.parquet", misplaced)
    uuid = open_dataset(tmp_path / "two").manifest.dataset_uuid
    with pytest.raises(DataError, match=rf"{misplaced}: .*it belongs to dataset {uuid}"):
        open_dataset(tmp_path / "one")
    assert len(open_dataset(tmp_path / "one", snapshot=0).episodes) == 8


@pytest.mark.parametrize("content", [b"", b"PAR1", b"x" * 500])
def test_something_else_in_place_of_a_snapshot_is_refused(dataset_root, content):
    snapshot = dataset_root / "snapshots" / "0.parquet"
    snapshot.parent.mkdir()
    snapshot.write_bytes(content)
    with pytest.raises(DataError, match=rf"{snapshot}: expected a snapshot"):
        open_dataset(dataset_root)


def test_parquet_file_without_the_record_of_a_snapshot_is_refused(dataset_root):
    import pandas as pd

    (dataset_root / "snapshots").mkdir()
    pd.DataFrame({"unit": [0]}).to_parquet(dataset_root / "snapshots" / "0.parquet")
    with pytest.raises(DataError, match=r"0\.parquet: expected a snapshot"):
        open_dataset(dataset_root)


def test_number_of_a_snapshot_that_is_not_there_is_refused(tmp_path):
    write_dataset(tmp_path, [[4]])
    manifest = open_dataset(tmp_path).manifest
    for unit in (1, 2):
        write_snapshot(open_dataset(tmp_path))
        write_unit(tmp_path, manifest, unit, [make_episode(unit, 4)])
    assert [len(open_dataset(tmp_path, snapshot=number).episodes) for number in (0, 1, None)] == [1, 2, 3]
    for number in (2, -1):
        with pytest.raises(DataError, match=rf"expected one of the snapshots \[0, 1\], got {number}"):
            open_dataset(tmp_path, snapshot=number)

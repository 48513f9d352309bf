"""The table of episodes: a sequence of records whose columns are arrays."""

import dataclasses
import pickle

import numpy as np
import pyarrow as pa
import pytest
from made_up_episodes import make_episode, make_manifest, write_dataset

from diffplan.data.format.commit import read_commit
from diffplan.data.format.commit_record import EpisodeRecord
from diffplan.data.format.dataset import open_dataset, write_snapshot
from diffplan.data.format.episodes import CORE, CORE_DTYPES, EpisodeTable, episodes_schema, make_episode_table
from diffplan.data.format.manifest import Column, make_columns
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.storage.store import LocalStore

LENGTHS = [[5, 7], [4], [6, 9, 3]]


@pytest.fixture
def dataset(tmp_path):
    write_dataset(tmp_path, LENGTHS)
    return open_dataset(tmp_path)


def records_of(dataset):
    """The records as the commits have them."""
    return [e for unit in range(len(LENGTHS)) for e in read_commit(dataset.store, unit).episodes]


def count_loads(table):
    """The same table, and the list that grows with every time that all of it is read."""
    loads = []

    def load():
        loads.append(1)
        return table.to_arrow()

    return EpisodeTable({name: getattr(table, name) for name in CORE}, load), loads


def test_table_is_a_sequence_of_the_records_of_the_commits(dataset):
    expected = records_of(dataset)
    table = dataset.episodes
    assert len(table) == 6
    assert list(table) == expected
    assert all(isinstance(record, EpisodeRecord) for record in table)
    assert [table[i] for i in range(6)] == expected
    assert [table[i] for i in range(-6, 0)] == expected
    assert table[1:5:2] == expected[1:5:2]
    assert table[::-1] == expected[::-1]
    assert table[4:99] == expected[4:]
    assert list(reversed(table)) == expected[::-1]
    assert expected[3] in table
    assert table.index(expected[3]) == 3
    for index in (6, -7):
        with pytest.raises(IndexError, match=f"below 6, got {index}"):
            table[index]


def test_columns_are_arrays(dataset):
    table = dataset.episodes
    assert table.unit.tolist() == [0, 0, 1, 2, 2, 2]
    assert table.shard.tolist() == [0, 0, 1, 2, 2, 2]
    assert table.first_row.tolist() == [0, 5, 0, 0, 6, 15]
    assert table.length.tolist() == [5, 7, 4, 6, 9, 3]
    assert table.task.tolist() == [0] * 6
    for name in CORE:
        assert getattr(table, name).dtype == CORE_DTYPES[name]
    expected = records_of(dataset)
    for name in ("episode_index", "seed", "undiscounted_return", "terminated", "truncated", "behavior"):
        assert table.column(name).tolist() == [getattr(record, name) for record in expected]
    assert table.final_observations.dtype == np.float32
    finals = np.array([record.final_observation for record in expected], np.float32)
    np.testing.assert_array_equal(table.final_observations, finals)
    assert table.num_index_bytes == 6 * (4 * 4 + 2)


def test_what_windows_need_is_known_without_reading_the_table(dataset):
    write_snapshot(dataset)
    pinned = open_dataset(dataset.store, snapshot=0)
    table, loads = count_loads(pinned.episodes)
    chosen = table.select(table.unit != 1)
    joined = EpisodeTable.concatenate([chosen, table.select(table.unit == 1)])
    for part in (table, chosen, joined):
        assert len(part) == len(part.length)
        assert part.first_row.min() == 0
    assert not loads
    assert list(joined) == list(pinned.episodes)
    list(table)
    list(joined)
    assert len(loads) == 1  # once, whoever asks


@pytest.mark.parametrize("mask", [True, False])
def test_selected_episodes_keep_what_is_known_of_them(dataset, mask):
    chosen = np.array([False, True, False, True, True, False])
    part = dataset.episodes.select(chosen if mask else np.flatnonzero(chosen))
    expected = records_of(dataset)
    assert list(part) == [expected[i] for i in (1, 3, 4)]
    assert part.shard.tolist() == [0, 2, 2]
    renumbered = dataset.episodes.select(chosen, shard=np.array([7, 8, 8]))
    assert renumbered.shard.tolist() == [7, 8, 8]
    assert renumbered.to_arrow().column("shard").to_pylist() == [7, 8, 8]
    assert list(renumbered) == list(part)
    nothing = dataset.episodes.select(np.zeros(6, bool))
    assert (len(nothing), list(nothing)) == (0, [])


def test_tables_join_in_the_order_of_units_and_keep_that_of_rows(dataset):
    table = dataset.episodes
    parts = [
        table.select(table.unit == unit, shard=np.full((table.unit == unit).sum(), n))
        for n, unit in enumerate([2, 0, 1])
    ]
    joined = EpisodeTable.concatenate(parts)
    assert list(joined) == records_of(dataset)
    assert joined.shard.tolist() == [1, 1, 2, 0, 0, 0]
    assert joined.to_arrow().column("shard").to_pylist() == joined.shard.tolist()
    assert joined.column("length").tolist() == joined.length.tolist()


def test_order_of_many_units_is_stable(tmp_path):
    # More than fit a sort by insertion, which is stable by accident.
    units = np.repeat(np.random.default_rng(0).permutation(100), 7)
    core = {name: np.zeros(700, int) for name in CORE}
    core["unit"], core["first_row"] = units, np.tile(np.arange(7), 100)
    joined = EpisodeTable.concatenate([EpisodeTable(core, lambda: pytest.fail("the whole table was read"))])
    assert joined.unit.tolist() == np.repeat(np.arange(100), 7).tolist()
    assert joined.first_row.tolist() == list(range(7)) * 100


@pytest.mark.parametrize("opened", ["commits", "snapshot"])
def test_table_survives_pickling(dataset, opened):
    if opened == "snapshot":
        write_snapshot(dataset)
        dataset = open_dataset(dataset.store, snapshot=0)
    copy = pickle.loads(pickle.dumps(dataset))
    assert list(copy.episodes) == list(dataset.episodes)
    for name in CORE:
        np.testing.assert_array_equal(getattr(copy.episodes, name), getattr(dataset.episodes, name))
    assert copy.content_hash() == dataset.content_hash()


def test_observations_of_any_type_have_final_ones(tmp_path):
    for dtype in ("float64", "int64", "uint8", "bool"):
        for shape in ((), (2,), (2, 3)):
            root = tmp_path / f"{dtype}-{len(shape)}"
            columns = make_columns(shape, 2, observation_dtype=dtype)
            manifest = create_dataset(root, dataclasses.replace(make_manifest(), columns=columns))
            observations = np.random.default_rng(0).integers(0, 2, (4, *shape)).astype(dtype)
            episode = dataclasses.replace(make_episode(0, 3), observations=observations, columns={})
            write_unit(root, manifest, 0, [episode])
            finals = open_dataset(root).episodes.final_observations
            assert finals.dtype == (np.uint8 if dtype == "bool" else dtype)
            np.testing.assert_array_equal(finals, observations[-1:].reshape(1, -1))


def test_schema_holds_every_field_of_a_record(dataset):
    names = set(episodes_schema(Column("observation", (3,))).names)
    fields = {field.name for field in dataclasses.fields(EpisodeRecord)}
    assert fields - names == {"final_values", "options"}  # in the column of details
    assert names - fields == {"unit", "shard", "details"}


def test_table_of_commits_holds_what_they_say(dataset):
    store = LocalStore(dataset.uri)
    commits = [read_commit(store, unit) for unit in (2, 0)]
    table = make_episode_table(commits, [5, 6], dataset.manifest.column("observation"))
    assert isinstance(table, pa.Table)
    assert table.column("unit").to_pylist() == [2, 2, 2, 0, 0]
    assert table.column("shard").to_pylist() == [5, 5, 5, 6, 6]
    assert list(EpisodeTable.from_arrow(table)) == [e for commit in commits for e in commit.episodes]

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from made_up_episodes import make_episode, make_manifest, write_dataset

from diffplan.data.dataset import list_snapshots, open_dataset, write_snapshot
from diffplan.data.format import Manifest, VectorColumn, new_dataset_uuid
from diffplan.data.writer import create_dataset, write_unit
from diffplan.errors import DataError
from diffplan.types import Episode

FLOATS = st.floats(width=32)  # NaN, infinities and denormals too
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def units_of_episodes(draw):
    """A manifest and units of episodes that fit it."""
    observation_dim, action_dim = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    extra = draw(st.dictionaries(st.sampled_from(["goal", "cost", "qpos"]), st.integers(0, 3), max_size=3))
    manifest = Manifest(
        dataset_uuid=new_dataset_uuid(),
        env={},
        collection={},
        observation_dim=observation_dim,
        action_dim=action_dim,
        action_low=[None] * action_dim,
        action_high=[None] * action_dim,
        extra_columns=tuple(VectorColumn(name, size) for name, size in extra.items()),
    )
    units, index = [], 0
    for num_episodes in draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)):
        episodes = []
        for _ in range(num_episodes):
            length = draw(st.integers(1, 6))

            def array(*shape, elements=FINITE):
                return draw(hnp.arrays(np.float32, shape, elements=elements))

            episodes.append(
                Episode(
                    episode_index=index,
                    seed=draw(st.integers(0, 2**63 - 1)),
                    behavior=draw(st.text(max_size=5)),
                    observations=array(length + 1, observation_dim),
                    actions=array(length, action_dim),
                    rewards=array(length),
                    terminated=draw(st.booleans()),
                    truncated=draw(st.booleans()),
                    columns={
                        name: array(length, *([size] if size else []), elements=FLOATS) for name, size in extra.items()
                    },
                )
            )
            index += 1
        units.append(episodes)
    return manifest, units


@settings(max_examples=40, deadline=None)
@given(units_of_episodes())
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_episodes_come_back_as_they_were_written(case):
    manifest, units = case
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        create_dataset(root, manifest)
        for unit, episodes in enumerate(units):
            write_unit(root, manifest, unit, episodes)
        dataset = open_dataset(root)
        assert dataset.manifest == manifest
        written = [episode for episodes in units for episode in episodes]
        assert dataset.num_steps == sum(len(e) for e in written)
        first_rows = np.cumsum([0, *(len(e) for e in written)])
        for record, episode, first in zip(dataset.episodes, written, first_rows, strict=False):
            rows = slice(first, first + len(episode))
            assert (record.episode_index, record.seed, record.behavior) == (
                episode.episode_index,
                episode.seed,
                episode.behavior,
            )
            assert (record.length, record.terminated, record.truncated) == (
                len(episode),
                episode.terminated,
                episode.truncated,
            )
            observations = np.concatenate([dataset.read_column("observation")[rows], [record.final_observation]])
            np.testing.assert_array_equal(observations.astype(np.float32), episode.observations)
            np.testing.assert_array_equal(dataset.read_column("action")[rows], episode.actions)
            np.testing.assert_array_equal(dataset.read_column("reward")[rows], episode.rewards)
            for name, values in episode.columns.items():
                np.testing.assert_array_equal(dataset.read_column(name)[rows], values)
        assert len(list(dataset.verify())) == len(units)


def test_undiscounted_return_is_the_sum_of_rewards(dataset_root):
    written = [make_episode(i, n) for i, n in enumerate([5, 7, 4, 6])]
    for record, episode in zip(open_dataset(dataset_root).episodes, written, strict=True):
        assert record.undiscounted_return == pytest.approx(episode.rewards.astype(np.float64).sum(), abs=1e-12)


def test_columns_are_mapped_and_read_only(dataset_root):
    dataset = open_dataset(dataset_root)
    values = dataset.column(dataset.commits[0], "observation")
    assert not values.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        values[0, 0] = 1.0


def test_unknown_column_is_refused_with_the_known_ones(dataset_root):
    dataset = open_dataset(dataset_root)
    with pytest.raises(DataError, match="observation, action, reward, goal, cost, got 'rewards'"):
        dataset.read_column("rewards")


def check_table(frame, written):
    expected_index = np.repeat([e.episode_index for e in written], [len(e) for e in written])
    np.testing.assert_array_equal(frame["episode_index"], expected_index)
    np.testing.assert_array_equal(frame["t"], np.concatenate([np.arange(len(e)) for e in written]))
    np.testing.assert_array_equal(
        np.stack(frame["observation"]), np.concatenate([e.observations[:-1] for e in written])
    )
    np.testing.assert_array_equal(np.stack(frame["action"]), np.concatenate([e.actions for e in written]))
    np.testing.assert_array_equal(frame["reward"], np.concatenate([e.rewards for e in written]))
    np.testing.assert_array_equal(np.stack(frame["goal"]), np.concatenate([e.columns["goal"] for e in written]))
    ends = np.cumsum([len(e) for e in written]) - 1
    for name, flags in (
        ("termination", [e.terminated for e in written]),
        ("truncation", [e.truncated for e in written]),
    ):
        expected = np.zeros(len(expected_index), dtype=bool)
        expected[ends] = flags
        np.testing.assert_array_equal(frame[name], expected)


def test_shards_are_plain_arrow_files_for_pandas_and_pyarrow(tmp_path):
    manifest = create_dataset(tmp_path, make_manifest())
    written = [make_episode(0, 4, terminated=True, truncated=False), make_episode(1, 6)]
    write_unit(tmp_path, manifest, 0, written)
    more = [make_episode(2, 3, terminated=True, truncated=True)]
    write_unit(tmp_path, manifest, 1, more)
    first, second = sorted((tmp_path / "shards").iterdir())
    check_table(pd.read_feather(first), written)
    check_table(pd.read_feather(second), more)
    table = pa.dataset.dataset(tmp_path / "shards", format="ipc").to_table()
    check_table(table.to_pandas(), written + more)
    check_table(pa.concat_tables(open_dataset(tmp_path).iterate_tables()).to_pandas(), written + more)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"actions": np.zeros((4, 3), np.float32)}, r"column 'action': expected shape \(4, 2\).*got shape \(4, 3\)"),
        ({"observations": np.zeros((4, 3), np.float32)}, r"column 'observation': expected shape \(4, 3\)"),
        ({"rewards": np.zeros((4, 1), np.float32)}, r"column 'reward': expected shape \(4,\)"),
        ({"columns": {}}, r"column 'goal': .*got nothing"),
    ],
)
def test_episode_that_does_not_fit_the_manifest_is_refused_and_leaves_nothing(tmp_path, change, complaint):
    manifest = create_dataset(tmp_path, make_manifest())
    with pytest.raises(DataError, match=rf"unit 3, episode 0, {complaint}"):
        write_unit(tmp_path, manifest, 3, [dataclasses.replace(make_episode(0, 4), **change)])
    assert not list((tmp_path / "shards").iterdir())
    assert not list((tmp_path / "commits").iterdir())


def test_a_unit_without_steps_is_refused(tmp_path):
    manifest = create_dataset(tmp_path, make_manifest())
    with pytest.raises(DataError, match="at least one episode, got none"):
        write_unit(tmp_path, manifest, 0, [])
    with pytest.raises(DataError, match="at least one row"):
        write_unit(tmp_path, manifest, 0, [make_episode(0, 3), make_episode(1, 0)])


def test_creating_a_dataset_again_finds_the_first_manifest(tmp_path):
    first = create_dataset(tmp_path, make_manifest())
    assert create_dataset(tmp_path, make_manifest()) == first


def test_content_hash_is_equal_for_equal_content_only(tmp_path):
    write_dataset(tmp_path / "a", [[5, 7], [4]])
    write_dataset(tmp_path / "b", [[5, 7], [4]])  # other uuid, other attempts
    a, b = open_dataset(tmp_path / "a"), open_dataset(tmp_path / "b")
    assert a.manifest.dataset_uuid != b.manifest.dataset_uuid
    assert a.content_hash() == b.content_hash()
    hashes = {a.content_hash()}
    base = [make_episode(0, 5), make_episode(1, 7)]

    def changed(name, index):
        copy = getattr(base[0], name).copy()
        copy[index] += 1
        return [dataclasses.replace(base[0], **{name: copy}), base[1]]

    variants = [
        changed("observations", (2, 1)),
        changed("observations", (5, 0)),  # the final one, which lies in the commit
        changed("actions", (4, 1)),
        changed("rewards", 0),
        [dataclasses.replace(base[0], terminated=True), base[1]],
        [dataclasses.replace(base[0], seed=1), base[1]],
        [dataclasses.replace(base[0], columns={**base[0].columns, "cost": np.zeros(5, np.float32)}), base[1]],
        base[:1],
        base,
    ]
    for i, episodes in enumerate(variants):
        root = tmp_path / f"variant-{i}"
        write_unit(root, create_dataset(root, make_manifest()), 0, episodes)
        hashes.add(open_dataset(root).content_hash())
    assert len(hashes) == 1 + len(variants)


def test_snapshot_is_unchanged_by_later_commits(tmp_path):
    write_dataset(tmp_path, [[5, 7]])
    before = open_dataset(tmp_path)
    content = before.content_hash()
    assert write_snapshot(before) == 0
    assert write_snapshot(open_dataset(tmp_path)) == 0  # nothing new
    write_unit(tmp_path, before.manifest, 1, [make_episode(2, 4)])
    # A dataset that was opened before, and one opened at the snapshot, show what was there then.
    assert (len(before.episodes), before.content_hash()) == (2, content)
    pinned = open_dataset(tmp_path, snapshot=0)
    assert (pinned.snapshot, len(pinned.episodes), pinned.content_hash()) == (0, 2, content)
    latest = open_dataset(tmp_path)
    assert len(latest.episodes) == 3
    assert write_snapshot(latest) == 1
    assert list_snapshots(tmp_path) == [0, 1]
    assert len(open_dataset(tmp_path, snapshot=1).episodes) == 3


def test_snapshot_is_a_table_of_episodes_for_other_tools(dataset_root):
    write_snapshot(open_dataset(dataset_root))
    table = pd.read_parquet(dataset_root / "snapshots" / "0.parquet")
    assert table["episode_index"].tolist() == [0, 1, 2, 3]
    assert table["length"].tolist() == [5, 7, 4, 6]
    assert table["unit"].tolist() == [0, 0, 1, 1]

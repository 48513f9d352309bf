import dataclasses
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from made_up_episodes import make_episode, make_manifest, require_undamaged, write_dataset

from diffplan.data.format.dataset import list_snapshots, open_dataset, write_snapshot
from diffplan.data.format.manifest import ARROW_TYPES, Column, Manifest, make_columns, new_dataset_uuid
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.errors import DataError
from diffplan.types import Episode

SHAPES = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple)
DTYPES = st.sampled_from(sorted(ARROW_TYPES))


@st.composite
def units_of_episodes(draw):
    """A manifest and units of episodes that fit it: columns of any type and shape, with and without a final value."""
    names = draw(st.lists(st.sampled_from(["goal", "cost", "infos.qpos", "lives"]), unique=True))
    extra = tuple(Column(name, draw(st.just(()) | SHAPES), draw(DTYPES), draw(st.booleans())) for name in names)
    columns = make_columns(
        draw(SHAPES | st.integers(1, 4)),
        draw(SHAPES | st.integers(1, 4)),
        extra,
        observation_dtype=draw(DTYPES),
        action_dtype=draw(DTYPES),
        reward_dtype=draw(DTYPES),
    )
    manifest = Manifest(
        dataset_uuid=new_dataset_uuid(),
        env={},
        columns=columns,
        action_low=[None] * columns[1].size,
        action_high=[None] * columns[1].size,
    )
    units, index = [], 0
    for num_episodes in draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)):
        episodes = []
        for _ in range(num_episodes):
            length = draw(st.integers(1, 6))

            def array(column, length=length, finite=False):
                dtype = column.numpy_dtype
                options = {}
                if dtype.kind == "f" and finite:
                    largest = min(1e150, float(np.finfo(dtype).max))
                    options = {"min_value": -largest, "max_value": largest}
                return draw(hnp.arrays(dtype, (length, *column.shape), elements=hnp.from_dtype(dtype, **options)))

            episodes.append(
                Episode(
                    episode_index=index,
                    seed=draw(st.none() | st.integers(0, 2**63 - 1)),
                    behavior=draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=5)),
                    observations=array(columns[0], length + 1, finite=True),
                    actions=array(columns[1], finite=True),
                    rewards=array(columns[2], finite=True),
                    terminated=draw(st.booleans()),
                    truncated=draw(st.booleans()),
                    columns={column.name: array(column, length + column.has_final) for column in extra},
                    options=draw(st.none() | st.dictionaries(st.text("abc", max_size=3), st.integers(), max_size=2)),
                )
            )
            index += 1
        units.append(episodes)
    return manifest, units


def assert_same_numbers(found, expected):
    """Equal in type, shape and bits, except that one NaN is as good as another."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)
    if found.dtype.kind == "f":
        np.testing.assert_array_equal(np.signbit(found[found == 0]), np.signbit(expected[expected == 0]))


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
        for i, (record, episode) in enumerate(zip(dataset.episodes, written, strict=True)):
            assert dataset.episodes[i] == record
            assert (record.episode_index, record.seed, record.behavior, record.options) == (
                episode.episode_index,
                episode.seed,
                episode.behavior,
                episode.options,
            )
            assert (record.length, record.terminated, record.truncated) == (
                len(episode),
                episode.terminated,
                episode.truncated,
            )
            finals = {"observation": record.final_observation, **record.final_values}
            expected = {
                "observation": episode.observations,
                "action": episode.actions,
                "reward": episode.rewards,
                **episode.columns,
            }
            assert finals.keys() == {column.name for column in manifest.columns if column.has_final}
            for column in manifest.columns:
                values = dataset.episode_column(i, column.name)
                assert values.dtype == column.numpy_dtype
                if column.has_final:
                    final = np.array(finals[column.name], column.numpy_dtype).reshape(1, *column.shape)
                    values = np.concatenate([values, final])
                assert_same_numbers(values, expected[column.name])
        for column in manifest.columns:
            parts = [dataset.episode_column(i, column.name) for i in range(len(written))]
            assert_same_numbers(dataset.read_column(column.name), np.concatenate(parts))
        assert require_undamaged(root) == 2 * len(units)
        write_snapshot(dataset)
        pinned = open_dataset(root, snapshot=0)
        assert list(pinned.episodes) == list(dataset.episodes)
        assert pinned.content_hash() == dataset.content_hash()


def test_undiscounted_return_is_the_sum_of_rewards(dataset_root):
    written = [make_episode(i, n) for i, n in enumerate([5, 7, 4, 6])]
    for record, episode in zip(open_dataset(dataset_root).episodes, written, strict=True):
        assert record.undiscounted_return == pytest.approx(episode.rewards.astype(np.float64).sum(), abs=1e-12)


def test_columns_are_mapped_and_read_only(dataset_root):
    dataset = open_dataset(dataset_root)
    values = dataset.column(dataset.shards[0], "observation")
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
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["_dataset.json"]


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
    assert list_snapshots(latest.store) == [0, 1]
    assert len(open_dataset(tmp_path, snapshot=1).episodes) == 3


def test_snapshot_is_a_table_of_episodes_for_other_tools(dataset_root):
    write_snapshot(open_dataset(dataset_root))
    table = pd.read_parquet(dataset_root / "snapshots" / "0.parquet")
    assert table["episode_index"].tolist() == [0, 1, 2, 3]
    assert table["length"].tolist() == [5, 7, 4, 6]
    assert table["unit"].tolist() == [0, 0, 1, 1]


def test_final_values_and_rows_of_further_columns_may_be_nan_or_infinite(tmp_path):
    qpos = Column("infos.qpos", (2,), "float64", has_final=True)
    manifest = dataclasses.replace(make_manifest(), columns=make_columns(3, 2, (qpos,)))
    create_dataset(tmp_path, manifest)
    values = np.array([[0.1, np.nan], [np.inf, 1e100], [-np.inf, np.nan]])
    write_unit(tmp_path, manifest, 0, [dataclasses.replace(make_episode(0, 2), columns={"infos.qpos": values})])
    dataset = open_dataset(tmp_path)
    np.testing.assert_array_equal(dataset.read_column("infos.qpos"), values[:2])
    final = dataset.episodes[0].final_values["infos.qpos"]
    np.testing.assert_array_equal(np.array(final, np.float64), values[2])
    assert dataset.statistics["infos.qpos"].num_nonfinite.tolist() == [1, 1]
    assert dataset.statistics["infos.qpos"].count.tolist() == [1, 1]


def test_images_and_flags_keep_their_types(tmp_path):
    generator = np.random.default_rng(0)
    columns = make_columns((8, 8, 3), 2, (Column("success", (), "bool"),), observation_dtype="uint8")
    manifest = create_dataset(tmp_path, dataclasses.replace(make_manifest(), columns=columns))
    images = generator.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    success = np.array([True, False, False, True, True])
    episode = dataclasses.replace(make_episode(0, 5), observations=images, columns={"success": success})
    write_unit(tmp_path, manifest, 0, [episode])
    dataset = open_dataset(tmp_path)
    observations = dataset.column(dataset.shards[0], "observation")
    assert (observations.dtype, observations.nbytes) == (np.uint8, 5 * 192)
    np.testing.assert_array_equal(observations, images[:-1])
    np.testing.assert_array_equal(dataset.episodes.final_observations.reshape(8, 8, 3), images[-1])
    assert dataset.read_column("success").dtype == bool
    np.testing.assert_array_equal(dataset.read_column("success"), success)
    assert dataset.statistics["success"].mean == pytest.approx([0.6])


@pytest.mark.parametrize(
    ("column", "values", "complaint"),
    [
        (Column("lives", (), "int32"), np.zeros(4), "expected int32 numbers, got float64"),
        (Column("lives", (), "int32"), np.full(4, 2**31), "expected int32 numbers, got 2147483648 in row 0"),
        (Column("lives", (), "uint8"), np.arange(254, 258), "expected uint8 numbers"),
        (Column("done", (), "bool"), np.ones(4), "expected bool numbers, got float64"),
        (Column("goal", (2, 3)), np.zeros((4, 3, 2)), r"expected shape \(4, 2, 3\)"),
        (Column("qpos", (2,), has_final=True), np.zeros((4, 2)), r"expected shape \(4, 2\).*got shape \(3, 2\)"),
        (Column("qpos", (2,), has_final=True), None, r"expected shape \(4, 2\).*got nothing"),
    ],
)
def test_values_that_do_not_fit_their_column_are_refused(tmp_path, column, values, complaint):
    manifest = dataclasses.replace(make_manifest(), columns=make_columns(3, 2, (column,)))
    create_dataset(tmp_path, manifest)
    columns = {} if values is None else {column.name: values}
    with pytest.raises(DataError, match=rf"unit 0, episode 0, column '{column.name}': {complaint}") as caught:
        write_unit(tmp_path, manifest, 0, [dataclasses.replace(make_episode(0, 4), columns=columns)])
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["_dataset.json"]


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        ((Column("reward"),), "same name"),
        ((Column("t"),), "same name"),
        ((Column("goal", (2,)), Column("goal", (2,))), "same name"),
        ((Column("goal", (2,), "float16"),), "type 'float16'"),
    ],
)
def test_columns_that_no_shard_can_have_are_refused(extra, complaint):
    with pytest.raises(DataError, match=complaint):
        make_columns(3, 2, extra)


def test_numbers_too_large_to_square_are_kept_but_left_out_of_the_statistics(tmp_path):
    column = Column("distance", (), "float64", has_final=True)
    manifest = create_dataset(tmp_path, dataclasses.replace(make_manifest(), columns=make_columns(3, 2, (column,))))
    values = np.array([1.0, np.finfo(np.float64).max, -1e200, 3.0, 1e308])
    write_unit(tmp_path, manifest, 0, [dataclasses.replace(make_episode(0, 4), columns={"distance": values})])
    dataset = open_dataset(tmp_path)
    np.testing.assert_array_equal(dataset.read_column("distance"), values[:4])
    assert dataset.episodes[0].final_values == {"distance": [1e308]}
    statistics = dataset.statistics["distance"]
    assert (statistics.count, statistics.num_nonfinite, statistics.mean, statistics.std) == (2, 2, 2.0, 1.0)


def test_rewards_whose_sum_would_overflow_are_refused(tmp_path):
    columns = make_columns(3, 2, make_manifest().extra_columns, reward_dtype="float64")
    manifest = create_dataset(tmp_path, dataclasses.replace(make_manifest(), columns=columns))
    with pytest.raises(DataError, match="column 'reward': expected finite float64 numbers, got 1e\\+308 in row 0"):
        write_unit(tmp_path, manifest, 0, [dataclasses.replace(make_episode(0, 2), rewards=np.full(2, 1e308))])


def test_an_open_dataset_survives_pickling(tmp_path):
    write_dataset(tmp_path, [[3, 4], [5]])
    dataset = open_dataset(tmp_path, snapshot=write_snapshot(open_dataset(tmp_path)))
    dataset.read_column("reward")  # mapped by now
    copy = pickle.loads(pickle.dumps(dataset))
    assert (copy.snapshot, copy.content_hash()) == (0, dataset.content_hash())
    assert list(copy.episodes) == list(dataset.episodes)

import shutil

import numpy as np
import pyarrow as pa
import pytest
from damaged_datasets import read_batch, replace_shard, to_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up_episodes import make_episode, overwrite, write_dataset

from diffplan.data.compaction import compact
from diffplan.data.dataset import open_dataset, read_manifest, write_snapshot
from diffplan.data.store import LocalStore
from diffplan.data.verification import drop_damage, find_damage
from diffplan.data.writer import write_unit

LENGTHS = [[9, 4], [5], [7, 3]]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A dataset with a snapshot of its first two units and a third one after it, and the episodes."""
    root = tmp_path_factory.mktemp("good") / "data"
    episodes = write_dataset(root, LENGTHS[:2])
    write_snapshot(open_dataset(root))
    manifest = read_manifest(LocalStore(root))
    last = [make_episode(3, 7), make_episode(4, 3)]
    write_unit(root, manifest, 2, last)
    return root, [episodes[:2], episodes[2:], last]


def damages_of(root):
    return [damage for damage in find_damage(LocalStore(root)) if damage is not None]


def restore(root, good_units, dropped):
    manifest = read_manifest(LocalStore(root))
    for unit in dropped:
        write_unit(root, manifest, unit, good_units[unit])


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_is_found_and_named(good, tmp_path_factory, data):
    root = tmp_path_factory.mktemp("flip") / "data"
    shutil.copytree(good[0], root)
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.name != "_dataset.json")
    path = data.draw(st.sampled_from(files))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    overwrite(path, content)
    found = damages_of(root)
    if path.suffix == ".parquet" and not found:  # padding between pages says nothing
        assert open_dataset(root).content_hash() == open_dataset(good[0]).content_hash()
        return
    assert any(path.name in str(damage.error) for damage in found)
    assert all("\n" not in str(damage.error) for damage in found)


@pytest.mark.parametrize("snapshot_first", [False, True])
@pytest.mark.parametrize("compacted", [False, True])
def test_what_is_dropped_and_written_again_is_as_before(good, tmp_path, snapshot_first, compacted):
    root = tmp_path / "data"
    shutil.copytree(good[0], root)
    before = open_dataset(root)
    content, maximum = before.content_hash(), before.statistics["observation"].maximum
    if snapshot_first:
        write_snapshot(before)
    if compacted:
        assert compact(LocalStore(root)) == (3, 1)
    dataset = open_dataset(root)
    path = root / dataset.shards[-1].name
    damaged = bytearray(path.read_bytes())
    damaged[dataset.shards[-1].offsets["action"] : dataset.shards[-1].offsets["action"] + 8] = bytes(8)
    overwrite(path, damaged)
    found = damages_of(root)
    dropped = drop_damage(LocalStore(root), found)
    assert dropped == ((0, 1, 2) if compacted else (2,))
    assert damages_of(root) == []
    restore(root, good[1], dropped)
    again = open_dataset(root)
    assert again.content_hash() == content
    np.testing.assert_array_equal(again.statistics["observation"].maximum, maximum)
    assert again.statistics["reward"].count == [28]
    assert damages_of(root) == []


@pytest.mark.parametrize("at_call", range(3))
def test_dropping_that_is_interrupted_goes_on(good, tmp_path, monkeypatch, at_call):
    root = tmp_path / "data"
    shutil.copytree(good[0], root)
    content = open_dataset(root).content_hash()
    store = LocalStore(root)
    overwrite(root / open_dataset(root).shards[0].name, b"nothing of the kind")
    calls = iter(range(10))

    class Interrupted(LocalStore):
        def _strike(self):
            if next(calls) == at_call:
                raise KeyboardInterrupt

        def delete(self, name):
            self._strike()
            super().delete(name)

        def put_if_absent(self, name, content):
            self._strike()
            return super().put_if_absent(name, content)

    with pytest.raises(KeyboardInterrupt):
        drop_damage(Interrupted(root), damages_of(root))
    drop_damage(store, damages_of(root))
    restore(root, good[1], [0])
    assert open_dataset(root).content_hash() == content
    assert damages_of(root) == []


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("episode_index", [0] * 9 + [0] * 4),
        ("t", list(range(9)) + list(range(1, 5))),
        ("termination", [True] + [False] * 12),
        ("truncation", [False] * 13),
    ],
)
def test_rows_that_do_not_follow_the_index_are_found(tmp_path, name, values):
    write_dataset(tmp_path, LENGTHS)
    (shard,) = (tmp_path / "shards").glob("00000000-*")
    batch = read_batch(shard)
    column = batch.schema.get_field_index(name)
    arrays = batch.columns
    arrays[column] = pa.array(values, batch.schema.field(name).type)
    changed = pa.RecordBatch.from_arrays(arrays, schema=batch.schema)
    replace_shard(tmp_path, to_file([changed], changed.schema))
    (damage,) = damages_of(tmp_path)
    assert damage.units == (0,)
    assert name in str(damage.error)


def test_swapped_shards_are_found(tmp_path):
    write_dataset(tmp_path, [[6], [6]])
    first, second = (tmp_path / shard.name for shard in open_dataset(tmp_path).shards)
    contents = first.read_bytes(), second.read_bytes()
    assert len(contents[0]) == len(contents[1])
    overwrite(first, contents[1])
    overwrite(second, contents[0])
    assert [damage.units for damage in damages_of(tmp_path)] == [(0,), (1,)]

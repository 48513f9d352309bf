"""Damage anywhere is found and named, and what is dropped can be made again."""

import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from covering import cover_pairs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up_episodes import (
    commit_of,
    edit_record,
    edit_shard_record,
    make_episode,
    make_manifest,
    overwrite,
    require_undamaged,
    shard_of,
)

from diffplan.cli import main
from diffplan.data.format.checksums import compute_checksums
from diffplan.data.format.commit import read_commit
from diffplan.data.format.commit_record import CHUNK_BYTES
from diffplan.data.format.dataset import list_orphans, open_dataset, write_snapshot
from diffplan.data.format.manifest import make_columns
from diffplan.data.format.snapshot import list_snapshots
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.data.maintenance.verification import count_objects, drop_damage, find_damage
from diffplan.errors import DataError
from diffplan.storage.store import LocalStore

LENGTHS = [[300, 200], [150, 350], [400], [250, 250]]
NUM_UNITS = len(LENGTHS)


def make_unit(unit):
    first = sum(len(lengths) for lengths in LENGTHS[:unit])
    return [make_episode(first + i, length) for i, length in enumerate(LENGTHS[unit])]


def find(root):
    return [damage for damage in find_damage(LocalStore(root)) if damage is not None]


def flip(path, position, bit=0):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    overwrite(path, content)


def assert_as_before(root, before):
    """The same content and statistics as an undamaged dataset, and nothing left to complain of."""
    after = open_dataset(root)
    assert after.content_hash() == before.content_hash()
    assert list(after.episodes) == list(before.episodes)
    for name, expected in before.statistics.items():
        found = after.statistics[name]
        for field in ("count", "num_nonfinite", "minimum", "maximum"):
            np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
        np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.std, expected.std, rtol=1e-9)
        ranks = [
            np.interp(
                s.quantiles[:, 0],
                np.sort(before.read_column(name).reshape(before.num_steps, -1)[:, 0]),
                np.linspace(0, 1, before.num_steps),
            )
            for s in (found, expected)
        ]
        np.testing.assert_allclose(*ranks, atol=0.01)
    require_undamaged(root)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A dataset of four units; a snapshot holds the first two, as one does after a dataset grew."""
    root = tmp_path_factory.mktemp("original") / "dataset"
    manifest = create_dataset(root, make_manifest())
    for unit in range(NUM_UNITS):
        write_unit(root, manifest, unit, make_unit(unit))
        if unit == 1:
            write_snapshot(open_dataset(root))
    return root


@pytest.fixture
def root(original, tmp_path):
    shutil.copytree(original, tmp_path / "dataset")
    return tmp_path / "dataset"


@pytest.fixture
def before(original):
    return open_dataset(original)


def test_undamaged_dataset_has_no_damage(root):
    found = list(find_damage(LocalStore(root)))
    assert found == [None] * 9  # a snapshot, four commits and four shards
    assert count_objects(LocalStore(root)) == 9


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(unit=st.integers(0, NUM_UNITS - 1), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_flipped_bit_anywhere_in_a_shard_is_found(root, unit, place, bit):
    shard = shard_of(root, unit)
    position = int(place * shard.stat().st_size)
    flip(shard, position, bit)
    try:
        (damage,) = find(root)
        assert (damage.units, damage.shard, damage.snapshot) == ((unit,), f"shards/{shard.name}", None)
        assert str(damage.error).startswith(f"{shard}: ")
        assert "\n" not in str(damage.error)
        assert "--drop_damaged" in str(damage.error)
    finally:
        flip(shard, position, bit)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(unit=st.integers(0, NUM_UNITS - 1), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_flipped_bit_anywhere_in_a_commit_is_found(root, unit, place, bit):
    commit = commit_of(root, unit)
    position = int(place * commit.stat().st_size)
    flip(commit, position, bit)
    try:
        (damage,) = find(root)
        assert (damage.units, damage.shard, damage.snapshot) == ((unit,), None, None)
        assert str(damage.error).startswith(f"{commit}: ")
        assert "\n" not in str(damage.error)
    finally:
        flip(commit, position, bit)


def test_zeroed_page_anywhere_is_found(root):
    paths = [*(root / "shards").iterdir(), *(root / "commits").iterdir(), *(root / "snapshots").iterdir()]
    assert len(paths) == 9
    for path in paths:
        good = path.read_bytes()
        for start in range(0, len(good), 4096):
            content = good[:start] + bytes(len(good[start : start + 4096])) + good[start + 4096 :]
            assert content != good
            overwrite(path, content)
            (damage,) = find(root)
            assert str(path) in str(damage.error)
        overwrite(path, good)
    require_undamaged(root)


@pytest.mark.parametrize("size", [0, 1, 100, -1, -4096])
@pytest.mark.parametrize("folder", ["shards", "commits", "snapshots"])
def test_truncated_file_is_found(root, folder, size):
    path = sorted((root / folder).iterdir())[-1]
    overwrite(path, path.read_bytes()[:size])
    (damage,) = find(root)
    assert str(path) in str(damage.error)
    assert "\n" not in str(damage.error)


@pytest.mark.parametrize("added", [b"\0", bytes(4096), b"ARROW1"])
def test_extended_shard_is_found(root, added):
    shard = shard_of(root, 2)
    overwrite(shard, shard.read_bytes() + added)
    (damage,) = find(root)
    assert damage.units == (2,)
    assert f"{shard}: expected {shard.stat().st_size - len(added)} bytes" in str(damage.error)


@pytest.mark.parametrize("units", [(0,), (3,), (1, 2), (0, 1, 2, 3)])
def test_missing_shards_are_found(root, units):
    names = [shard_of(root, unit).name for unit in units]
    for unit in units:
        shard_of(root, unit).unlink()
    found = find(root)
    assert [damage.units for damage in found] == [(unit,) for unit in units]
    for damage, name in zip(found, names, strict=True):
        assert name in str(damage.error)


@pytest.mark.parametrize("units", [(0, 1), (1, 3)])
def test_swapped_shards_of_equal_size_are_found(root, units):
    one, two = (shard_of(root, unit) for unit in units)
    assert one.stat().st_size == two.stat().st_size
    aside = root.parent / "aside"
    for source, target in ((one, aside), (two, one), (aside, two)):
        source.rename(target)
    assert open_dataset(root).num_steps == 1900  # sizes do not tell
    assert [damage.units for damage in find(root)] == [(unit,) for unit in units]


def test_damage_beyond_the_first_chunk_is_found(tmp_path):
    manifest = create_dataset(tmp_path, replace(make_manifest(), columns=make_columns((1024,), 2)))
    generator = np.random.default_rng(0)
    observations = generator.random((701, 1024), np.float32)
    write_unit(tmp_path, manifest, 0, [replace(make_episode(0, 700), observations=observations, columns={})])
    shard = shard_of(tmp_path, 0)
    size = shard.stat().st_size
    assert size > 2 * CHUNK_BYTES
    for position in (0, CHUNK_BYTES - 1, CHUNK_BYTES, 2 * CHUNK_BYTES - 1, 2 * CHUNK_BYTES, size - 1):
        flip(shard, position)
        (damage,) = find(tmp_path)
        assert f"of the bytes from {position // CHUNK_BYTES * CHUNK_BYTES}" in str(damage.error)
        flip(shard, position)


@pytest.mark.parametrize(
    ("name", "row", "value", "complaint"),
    [
        ("episode_index", 0, 5, "expected episode_index 4 in row 0"),
        ("episode_index", 399, -1, "expected episode_index 4 in row 399"),
        ("t", 0, 1, "expected t 0 in row 0"),
        ("t", 200, 199, "expected t 200 in row 200"),
        ("termination", 7, True, "expected termination False in row 7"),
        ("termination", 399, True, "expected termination False in row 399"),
        ("truncation", 399, False, "expected truncation True in row 399"),
        ("truncation", 0, True, "expected truncation False in row 0"),
    ],
)
def test_rows_that_do_not_follow_the_index_are_found(root, name, row, value, complaint):
    """Checksums are right: a faulty writer, not a faulty disk."""
    shard = shard_of(root, 2)
    table = pa.ipc.open_file(pa.py_buffer(shard.read_bytes())).read_all()
    field = table.schema.field(name)
    values = table.column(name).to_pylist()
    assert values[row] != value
    values[row] = value
    table = table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_batch(table.combine_chunks().to_batches()[0])
    content = sink.getvalue().to_pybytes()
    overwrite(shard, content)
    edit_shard_record(root, 2, num_bytes=len(content), checksums=compute_checksums(content))
    open_dataset(root).read_column("reward")
    (damage,) = find(root)
    assert damage.units == (2,)
    assert str(damage.error).startswith(f"{shard}: {complaint}")


def test_episodes_that_the_index_has_in_other_rows_are_found(root):
    record = read_commit(LocalStore(root), 3)
    first, second = record.episodes
    assert first.length == second.length
    swapped = [{**vars(first), "episode_index": 6}, {**vars(second), "episode_index": 5}]
    edit_record(commit_of(root, 3), episodes=swapped)
    (damage,) = find(root)
    assert damage.units == (3,)
    assert "expected episode_index 6 in row 0" in str(damage.error)


def test_units_that_were_made_again_are_checked_where_they_are_now(root):
    """The snapshot still names their old shards."""
    manifest = open_dataset(root).manifest
    shard_of(root, 0).unlink()
    commit_of(root, 0).unlink()
    write_unit(root, manifest, 0, make_unit(0))
    require_undamaged(root)
    flip(shard_of(root, 0), 2000)
    (damage,) = find(root)
    assert (damage.units, damage.shard) == ((0,), f"shards/{shard_of(root, 0).name}")


def test_damage_of_everything_at_once_is_found_one_by_one(root):
    damage_snapshot(root)
    flip(commit_of(root, 0), 500)
    shard_of(root, 0).unlink()
    flip(commit_of(root, 1), 500)
    shard_of(root, 2).unlink()
    flip(shard_of(root, 3), 700)
    found = find(root)
    assert [(damage.snapshot, damage.units) for damage in found] == [
        (0, ()),
        (None, (0,)),
        (None, (1,)),
        (None, (2,)),
        (None, (3,)),
    ]


def damage_commit(root, unit):
    flip(commit_of(root, unit), 500)


def damage_shard(root, unit):
    flip(shard_of(root, unit), 5000)


def truncate_shard(root, unit):
    overwrite(shard_of(root, unit), shard_of(root, unit).read_bytes()[:-8])


def remove_shard(root, unit):
    shard_of(root, unit).unlink()


def remove_all(root, unit):
    shard_of(root, unit).unlink()
    commit_of(root, unit).unlink()


def damage_both(root, unit):
    damage_commit(root, unit)
    remove_shard(root, unit)


KINDS = [damage_commit, damage_shard, truncate_shard, remove_shard, damage_both]


def damage_snapshot(root):
    path = root / "snapshots" / f"{list_snapshots(LocalStore(root))[-1]}.parquet"
    flip(path, path.read_bytes().index(b'{"checksum"') + 1000)  # in its record; elsewhere some bytes mean nothing


@pytest.mark.parametrize(
    ("damage", "units", "num_snapshots"), cover_pairs(KINDS, [(0,), (3,), (1, 2), (0, 1), (0, 1, 2, 3)], [0, 1, 2])
)
def test_dropped_units_can_be_made_again(root, before, damage, units, num_snapshots):
    if num_snapshots == 0:
        shutil.rmtree(root / "snapshots")
    elif num_snapshots == 2:
        write_snapshot(open_dataset(root))
    manifest = open_dataset(root).manifest
    for unit in units:
        damage(root, unit)
    assert drop_damage(LocalStore(root), find(root)) == units
    assert not find(root)
    left = set(range(NUM_UNITS)) - set(units)
    if left:
        assert set(open_dataset(root).episodes.unit.tolist()) == left
        assert open_dataset(root).statistics["reward"].count == open_dataset(root).num_steps
    else:
        with pytest.raises(DataError, match="no episodes yet"):
            open_dataset(root)
    for unit in units:
        write_unit(root, manifest, unit, make_unit(unit))
    assert_as_before(root, before)
    write_snapshot(open_dataset(root))
    shutil.rmtree(root / "commits")
    assert_as_before(root, before)


def test_unit_whose_commit_is_gone_too_is_dropped_from_its_snapshot(root, before):
    manifest = open_dataset(root).manifest
    remove_all(root, 1)
    (damage,) = find(root)
    assert damage.units == (1,)
    assert drop_damage(LocalStore(root), [damage]) == (1,)
    write_unit(root, manifest, 1, make_unit(1))
    assert_as_before(root, before)


def test_statistics_of_units_without_commits_come_from_their_rows(root, before):
    """Only the snapshot knows unit 0, and another of the snapshot is dropped."""
    commit_of(root, 0).unlink()
    damage_shard(root, 1)
    manifest = open_dataset(root).manifest
    assert drop_damage(LocalStore(root), find(root)) == (1,)
    write_unit(root, manifest, 1, make_unit(1))
    assert_as_before(root, before)


def test_damaged_snapshot_is_dropped_and_the_dataset_read_from_the_rest(root, before):
    write_snapshot(open_dataset(root))
    damage_snapshot(root)
    remove_shard(root, 3)
    manifest = before.manifest
    found = find(root)
    assert [(damage.snapshot, damage.units) for damage in found] == [(1, ()), (None, (3,))]
    assert drop_damage(LocalStore(root), found) == (3,)
    assert list_snapshots(LocalStore(root)) == [0]
    assert not find(root)
    write_unit(root, manifest, 3, make_unit(3))
    assert_as_before(root, before)


def test_pinned_snapshot_reads_what_was_dropped_and_made_again(root):
    write_snapshot(open_dataset(root))
    pinned = open_dataset(root, snapshot=1)
    content, manifest = pinned.content_hash(), pinned.manifest
    for unit in (0, 2):
        damage_shard(root, unit)
    drop_damage(LocalStore(root), find(root))
    assert list_snapshots(LocalStore(root)) == [0, 1, 2]
    with pytest.raises(DataError, match="unit 0 is missing"):
        open_dataset(root, snapshot=1)
    for unit in (2, 0):
        write_unit(root, manifest, unit, make_unit(unit))
    assert open_dataset(root, snapshot=1).content_hash() == content
    assert open_dataset(root).content_hash() == content


class Interrupted(BaseException):
    """Stands for a kill between two steps."""


class InterruptedStore(LocalStore):
    """Ends before the given change to the store, as a killed process does."""

    def __init__(self, root, steps):
        super().__init__(root)
        self.steps = steps

    def _step(self):
        if self.steps == 0:
            raise Interrupted
        self.steps -= 1

    def put_if_absent(self, name, content):
        self._step()
        return super().put_if_absent(name, content)

    def delete(self, name):
        self._step()
        super().delete(name)


@pytest.mark.parametrize(
    ("damage", "with_snapshot"),
    [(damage_commit, False), (damage_shard, True), (truncate_shard, False), (remove_shard, True), (damage_both, True)],
)
def test_drop_that_is_interrupted_anywhere_goes_on(original, before, tmp_path, damage, with_snapshot):
    for steps in range(100):
        root = tmp_path / str(steps)
        shutil.copytree(original, root)
        if with_snapshot:  # a damaged one, upon the whole one before it
            write_snapshot(open_dataset(root))
            damage_snapshot(root)
        for unit in (0, 3):
            damage(root, unit)
        store = InterruptedStore(root, steps)
        try:
            drop_damage(store, find(root))
        except Interrupted:
            drop_damage(LocalStore(root), find(root))
            finished = False
        else:
            finished = True
        assert not find(root)
        assert {path.name for path in (root / "commits").iterdir()} == {"00000001.json", "00000002.json"}
        assert set(open_dataset(root).episodes.unit.tolist()) == {1, 2}
        for name in list_orphans(open_dataset(root)):  # what a sweep would take
            (root / name).unlink()
        assert len(list((root / "shards").iterdir())) == 2
        for unit in (0, 3):
            write_unit(root, before.manifest, unit, make_unit(unit))
        assert_as_before(root, before)
        if finished:
            assert steps >= 3
            return
    pytest.fail("it never finished")


def test_units_that_somebody_puts_into_a_snapshot_meanwhile_are_dropped_too(root, before, monkeypatch):
    damage_shard(root, 0)
    found = find(root)
    put = LocalStore.put_if_absent
    others = []

    def put_second(self, name, content):
        if name.startswith("snapshots/") and not others:
            others.append(name)
            write_snapshot(before_on(root))
        return put(self, name, content)

    def before_on(path):
        return replace(before, store=LocalStore(path))

    monkeypatch.setattr(LocalStore, "put_if_absent", put_second)
    assert drop_damage(LocalStore(root), found) == (0,)
    monkeypatch.undo()
    assert others == ["snapshots/1.parquet"]
    assert list_snapshots(LocalStore(root)) == [0, 1, 2]
    assert set(open_dataset(root).episodes.unit.tolist()) == {1, 2, 3}
    assert not find(root)
    write_unit(root, before.manifest, 0, make_unit(0))
    assert_as_before(root, before)


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err


def test_command_names_each_damage_in_a_line_and_drops_it(root, before, capsys):
    assert run(capsys, "data", "verify", root)[0] == 0
    damage_shard(root, 0)
    damage_commit(root, 3)
    damage_snapshot(root)
    code, lines, err = run(capsys, "data", "verify", root)
    assert code == 2
    assert len(lines) == 3
    paths = (root / "snapshots" / "0.parquet", commit_of(root, 3), shard_of(root, 0))
    for line, path in zip(lines, paths, strict=True):
        assert line.startswith(f"damaged: {path}: ")
    last = err.splitlines()[-1]
    assert last.startswith(f"error: {root}: 3 of ")
    assert "--drop_damaged" in last
    assert "Traceback" not in err
    assert all(path.exists() for path in paths)  # nothing is dropped unasked
    code, lines, _ = run(capsys, "data", "verify", root, "--drop_damaged")
    assert code == 0
    assert len(lines) == 4
    assert "[0, 3]" in lines[-1]
    assert not any(path.exists() for path in paths)
    assert run(capsys, "data", "verify", root)[0] == 0
    for unit in (0, 3):
        write_unit(root, before.manifest, unit, make_unit(unit))
    assert_as_before(root, before)
    assert run(capsys, "data", "verify", root, "--drop_damaged")[0] == 0
    assert_as_before(root, before)


def test_damaged_manifest_is_an_error_that_nothing_is_dropped_for(root, capsys):
    flip(root / "_dataset.json", 200)
    kept = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    code, lines, err = run(capsys, "data", "verify", root, "--drop_damaged")
    assert (code, lines) == (2, [])
    assert f"error: {root}/_dataset.json" in err
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == kept


def test_dataset_without_episodes_has_no_damage(tmp_path, capsys):
    create_dataset(tmp_path, make_manifest())
    assert list(find_damage(LocalStore(tmp_path))) == []
    assert run(capsys, "data", "verify", tmp_path)[0] == 0

import os
import random
import time

import pytest
from walks import make_units, write_walks

from diffplan.data.format.dataset import open_dataset, read_manifest, write_snapshot
from diffplan.data.format.manifest import commit_name
from diffplan.data.format.writer import write_unit
from diffplan.data.maintenance.compaction import compact
from diffplan.data.maintenance.sweeping import MIN_AGE_SECONDS, find_sweepable, sweep
from diffplan.data.maintenance.verification import find_damage
from diffplan.errors import DataError, StoreError
from diffplan.storage.opening import open_store

LENGTHS = [[5, 4], [9], [3, 7], [6]]
HOUR = 3600.0


def age(path, hours):
    os.utime(path, (time.time() - hours * HOUR,) * 2)


def age_all(root, hours):
    for path in root.rglob("*"):
        if path.is_file():
            age(path, hours)


def find_names(root, hours):
    return {stored.name for stored in find_sweepable(open_store(root), hours * HOUR)}


@pytest.fixture
def root(tmp_path):
    write_walks(tmp_path / "walks", LENGTHS)
    return tmp_path / "walks"


def add_orphan(root, hours):
    """A shard as a writer leaves it that was killed before its commit."""
    manifest = read_manifest(open_store(root))
    unit = 100 + len(list((root / "shards").iterdir()))
    record = write_unit(root, manifest, unit, make_units([[5]])[0])
    (root / commit_name(unit)).unlink()
    age(root / record.shard.name, hours)
    return record.shard.name


def test_orphans_are_swept_beyond_the_age_only(root):
    old, young = add_orphan(root, 5), add_orphan(root, 3)
    files = {path for path in root.rglob("*") if path.is_file()}
    assert find_names(root, 6) == set()
    assert find_names(root, 4) == {old}
    assert find_names(root, 2) == {old, young}
    assert {path for path in root.rglob("*") if path.is_file()} == files  # to find is not to sweep
    assert [stored.name for stored in sweep(open_store(root), 4 * HOUR)] == [old]
    assert {path for path in root.rglob("*") if path.is_file()} == files - {root / old}
    assert sweep(open_store(root), 4 * HOUR) == []


@pytest.mark.parametrize("directory", ["", "shards/", "commits/", "snapshots/"])
def test_temporary_files_are_swept_wherever_they_lie(root, directory):
    write_snapshot(open_dataset(root))
    name = f"{directory}.tmp-0123"
    (root / name).write_bytes(b"half")
    age(root / name, 3)
    assert find_names(root, 4) == set()
    assert find_names(root, 2) == {name}
    sweep(open_store(root), 2 * HOUR)
    assert not (root / name).exists()


def test_what_somebody_else_put_there_stays(root):
    for name in ("notes.txt", "shards/readme.md", "commits/old.json", "snapshots/x.parquet"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"mine")
    age_all(root, 1000)
    assert find_names(root, 2) == set()


@pytest.mark.parametrize("pinned", [False, True])
def test_replaced_shards_count_from_their_replacement(root, pinned):
    if pinned:
        write_snapshot(open_dataset(root))
    age_all(root, 100)
    old = {shard.name for shard in open_dataset(root).shards}
    compact(open_store(root))
    assert find_names(root, 2) == set()  # old files, but replaced just now
    newest = max((root / "snapshots").iterdir(), key=lambda path: int(path.stem))
    age(newest, 3)
    assert find_names(root, 4) == set()
    assert find_names(root, 2) == old


def test_shards_replaced_twice_count_from_the_first_time(root):
    shard_bytes = [shard.num_bytes for shard in open_dataset(root).shards]
    first = {shard.name for shard in open_dataset(root).shards[:2]}
    write_snapshot(open_dataset(root))
    compact(open_store(root), target_bytes=shard_bytes[0] + shard_bytes[1])
    second = {shard.name for shard in open_dataset(root).shards}
    compact(open_store(root))
    age_all(root, 100)
    age(root / "snapshots" / "1.parquet", 5)
    age(root / "snapshots" / "2.parquet", 3)
    assert first <= find_names(root, 4)
    assert not second & find_names(root, 4)
    assert second <= find_names(root, 2)


def test_file_from_the_future_is_young(root):
    name = add_orphan(root, -1000)
    assert find_names(root, 1) == set()
    age(root / name, 2)
    assert find_names(root, 1) == {name}


@pytest.mark.parametrize("seconds", [0.0, -1.0, MIN_AGE_SECONDS - 1])
def test_age_below_the_least_is_refused(root, seconds):
    name = add_orphan(root, 1000)
    with pytest.raises(DataError, match=r"^sweep: expected an age of at least 1 h, got"):
        sweep(open_store(root), seconds)
    assert (root / name).exists()
    assert find_names(root, MIN_AGE_SECONDS / HOUR) == {name}


@pytest.mark.parametrize("name", [commit_name(1), "snapshots/0.parquet", "_dataset.json"])
def test_damaged_index_is_not_swept_by(root, name):
    if name.startswith("snapshots"):
        write_snapshot(open_dataset(root))
    orphan = add_orphan(root, 1000)
    age_all(root, 1000)
    path = root / name
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=f"^{path}: ") as caught:
        sweep(open_store(root), 2 * HOUR)
    assert "\n" not in str(caught.value)
    assert (root / orphan).exists()


def test_damaged_commit_does_not_make_its_replaced_shard_older(root):
    age_all(root, 100)
    compact(open_store(root))  # the units were in no snapshot, so only commits tell that their shards were in use
    path = root / commit_name(1)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=f"^{path}: "):
        sweep(open_store(root), 2 * HOUR)
    assert len(list((root / "shards").iterdir())) == 5


def test_shards_that_are_read_in_place_of_one_that_is_gone_stay(root):
    expected = open_dataset(root).content_hash()
    compact(open_store(root))
    (joined,) = open_dataset(root).shards
    (root / joined.name).unlink()  # swept before its snapshot came, as its compaction took longer than the least age
    assert len(open_dataset(root).shards) == 4
    age_all(root, 1000)
    assert sweep(open_store(root), 2 * HOUR) == []
    assert open_dataset(root).content_hash() == expected
    compact(open_store(root))
    age_all(root, 1000)
    assert len(sweep(open_store(root), 2 * HOUR)) == 4
    assert open_dataset(root).content_hash() == expected


def test_dataset_with_episodes_that_are_nowhere_is_not_swept(root):
    compact(open_store(root))
    for path in (root / "shards").iterdir():
        if path.name.startswith("00000001-") or path.name.startswith("00000000-00000003-"):
            path.unlink()
    orphan = add_orphan(root, 1000)
    with pytest.raises(DataError, match="the shard of unit 1 is missing"):
        sweep(open_store(root), 2 * HOUR)
    assert (root / orphan).exists()


def test_directory_without_a_dataset_is_refused(tmp_path):
    with pytest.raises(DataError, match=f"^{tmp_path}: expected a dataset"):
        sweep(open_store(tmp_path), 2 * HOUR)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_nothing_named_is_swept(tmp_path, seed):
    generator = random.Random(seed)
    lengths = [[generator.randrange(2, 9) for _ in range(2)] for _ in range(12)]
    root, whole = tmp_path / "walks", tmp_path / "whole"
    write_walks(whole, lengths)
    write_walks(root, lengths, only=(0,))
    num_units, num_swept, hashes = 1, 0, {}
    while num_units < len(lengths):
        action = generator.choice(["write", "write", "snapshot", "compact", "orphan", "age", "sweep", "sweep"])
        if action == "write":
            write_walks(root, lengths, only=(num_units,))
            num_units += 1
        elif action == "snapshot":
            dataset = open_dataset(root)
            hashes[write_snapshot(dataset)] = dataset.content_hash()
        elif action == "compact":
            compact(open_store(root), target_bytes=generator.choice([8_000, 2**27]))
        elif action == "orphan":
            add_orphan(root, generator.uniform(0, 10))
        elif action == "age":
            for path in root.rglob("*"):
                if path.is_file():
                    seconds = path.stat().st_mtime - 2 * HOUR
                    os.utime(path, (seconds, seconds))
        else:
            named = {shard.name for shard in open_dataset(root).shards}
            swept = {stored.name for stored in sweep(open_store(root), 3 * HOUR)}
            assert not named & swept
            num_swept += len(swept)
        assert len(open_dataset(root).episodes) == 2 * num_units
    age_all(root, 10)
    num_swept += len(sweep(open_store(root), 3 * HOUR))
    assert num_swept > 0
    assert open_dataset(root).content_hash() == open_dataset(whole).content_hash()
    for number, content_hash in hashes.items():
        assert open_dataset(root, snapshot=number).content_hash() == content_hash
    assert not any(find_damage(open_store(root)))
    names = {stored.name for stored in open_store(root).list("shards")}
    assert names == {shard.name for shard in open_dataset(root).shards}


@pytest.mark.parametrize("linked", ["shards", "commits", "snapshots"])
def test_nothing_is_swept_through_a_link(root, tmp_path, linked):
    """A stranger's dataset whose directory leads to that of mine would have mine deleted."""
    write_snapshot(open_dataset(root))
    add_orphan(root, 5)
    (root / linked / "0-of-mine.arrow").write_bytes(b"mine")
    (root / linked / ".tmp-mine").write_bytes(b"mine")
    (root / ".tmp-here").write_bytes(b"of a crash")
    age_all(root, 5)
    elsewhere = tmp_path / "mine"
    (root / linked).rename(elsewhere)
    (root / linked).symlink_to(elsewhere)
    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(StoreError, match=f"{linked}: expected a directory, got a symbolic link; nothing is written or"):
        sweep(open_store(root), 4 * HOUR)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == files


def test_a_dataset_behind_a_link_is_swept(root, tmp_path):
    old = add_orphan(root, 5)
    (tmp_path / "link").symlink_to(root)
    assert [stored.name for stored in sweep(open_store(tmp_path / "link"), 4 * HOUR)] == [old]

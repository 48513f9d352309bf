import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from struck_processes import (
    CONTEXT,
    compact_once,
    compact_until,
    draw_times,
    run_struck,
    write_one_by_one,
)
from walks import NAMES, flip_bit, make_units, write_walks

from diffplan.data.format.dataset import (
    list_orphans,
    list_snapshots,
    open_dataset,
    read_manifest,
    write_snapshot,
)
from diffplan.data.format.snapshot import read_state
from diffplan.data.format.writer import write_unit
from diffplan.data.maintenance.compaction import compact, plan_compaction
from diffplan.data.maintenance.sweeping import sweep
from diffplan.data.maintenance.verification import drop_damage, find_damage
from diffplan.data.windows.mapped_windows import Windows
from diffplan.errors import DataError
from diffplan.storage.opening import open_store
from diffplan.storage.store import LocalStore

LENGTHS = [[30, 4, 17], [9, 25], [3, 40], [12], [8, 8, 8]]


def summarize(dataset):
    """All that compaction must keep: content, statistics, and every window under its number."""
    statistics = {name: s.to_dict() for name, s in dataset.statistics.items()}
    windows = {}
    for stride, padding in ((1, "skip"), (2, "end")):
        view = Windows(dataset, NAMES, stride, padding)
        windows[stride, padding] = view.gather(np.arange(view.count(3)), 3).tobytes()
    return dataset.content_hash(), statistics, windows


def find_all_damage(root):
    return [damage for damage in find_damage(open_store(root)) if damage is not None]


def list_files(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def age(root, hours=48):
    for path in root.rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - hours * 3600,) * 2)


def make_units_again(root, units):
    manifest = read_manifest(open_store(root))
    for unit in units:
        write_unit(root, manifest, unit, make_units(LENGTHS)[unit])


@pytest.fixture
def root(tmp_path):
    write_walks(tmp_path / "walks", LENGTHS)
    return tmp_path / "walks"


@settings(max_examples=12)
@given(
    lengths=st.lists(st.lists(st.integers(3, 30), min_size=1, max_size=3), min_size=1, max_size=6),
    targets=st.lists(st.integers(1, 30_000), min_size=1, max_size=3),
    data=st.data(),
)
def test_whatever_is_joined_the_content_stays(lengths, targets, data):
    order = data.draw(st.permutations(range(len(lengths))))
    num_first = data.draw(st.integers(0, len(lengths)))
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        write_walks(root, lengths, only=order[:num_first])
        if num_first:
            compact(open_store(root), target_bytes=targets[0])
        write_walks(root, lengths, only=order[num_first:])
        before = open_dataset(root)
        expected = summarize(before)
        num_shards = len(before.shards)
        for target in targets:
            assert compact(open_store(root), target_bytes=target)[0] == num_shards
            after = open_dataset(root)
            num_shards = len(after.shards)
            assert summarize(after) == expected
        assert find_all_damage(root) == []


def test_groups_are_neighbours_up_to_the_target(root):
    dataset = open_dataset(root)
    sizes = [shard.num_bytes for shard in dataset.shards]
    state = read_state(dataset.store, dataset.manifest)
    assert plan_compaction(state, sum(sizes)) == [[0, 1, 2, 3, 4]]
    assert plan_compaction(state, sum(sizes) - 1) == [[0, 1, 2, 3]]
    assert plan_compaction(state, sizes[0] + sizes[1]) == [[0, 1], [2, 3]]
    assert plan_compaction(state, 1) == []


def test_nothing_to_join_writes_nothing(root):
    compact(open_store(root))
    files = list_files(root)
    assert compact(open_store(root)) == (1, 1)
    assert compact(open_store(root), target_bytes=1) == (1, 1)
    assert list_files(root) == files


def test_progress_counts_groups(root):
    seen = []
    sizes = [shard.num_bytes for shard in open_dataset(root).shards]
    compact(open_store(root), target_bytes=sizes[0] + sizes[1], on_progress=lambda *counts: seen.append(counts))
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize("target", [0, -5])
def test_target_below_one_byte_is_refused(root, target):
    with pytest.raises(DataError, match=f"expected at least 1 byte, got {target}"):
        compact(open_store(root), target_bytes=target)


def test_dataset_without_episodes_is_refused(tmp_path):
    write_walks(tmp_path, LENGTHS, only=())
    with pytest.raises(DataError, match=f"{tmp_path}: expected a dataset with episodes, got none"):
        compact(open_store(tmp_path))


def test_damaged_shard_stops_compaction_and_changes_nothing(root):
    dataset = open_dataset(root)
    path = flip_bit(dataset, 3, "action", 5)
    files = list_files(root)
    sizes = [shard.num_bytes for shard in dataset.shards]
    with pytest.raises(DataError, match=rf"{path}: expected checksum .* damaged") as caught:
        compact(open_store(root), target_bytes=sizes[0] + sizes[1])  # the first group is sound
    assert "\n" not in str(caught.value)
    assert list_files(root) == files


def test_interrupt_leaves_nothing(root):
    files = list_files(root)

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compact(open_store(root), on_progress=interrupt)
    assert list_files(root) == files


class RepeatingStore(LocalStore):
    """A store whose answers are lost, so that it puts again and finds what it has put."""

    def put_if_absent(self, name, content):
        super().put_if_absent(name, content)
        return super().put_if_absent(name, content)


def test_own_snapshot_is_known_where_the_answer_of_the_store_was_lost(root):
    expected = open_dataset(root).content_hash()
    assert compact(RepeatingStore(root)) == (5, 1)
    assert list_snapshots(open_store(root)) == [0]
    for path in (root / "commits").iterdir():
        path.unlink()  # only the joined shard can be read from now on
    assert open_dataset(root).content_hash() == expected
    assert len(open_dataset(root).shards) == 1


class OvertakenStore(LocalStore):
    """A store where somebody else writes a unit and a snapshot just before each of the first snapshots of ours."""

    def put_if_absent(self, name, content):
        if name.startswith("snapshots/") and (units := self.__dict__.setdefault("units", [3, 4])):
            make_units_again(self.root, [units.pop(0)])
            write_snapshot(open_dataset(self.root))
        return super().put_if_absent(name, content)


def test_snapshot_of_somebody_else_makes_the_joining_begin_again(tmp_path):
    write_walks(tmp_path / "whole", LENGTHS)
    write_walks(tmp_path / "walks", LENGTHS, only=range(3))
    assert compact(OvertakenStore(tmp_path / "walks")) == (5, 1)
    assert list_snapshots(open_store(tmp_path / "walks")) == [0, 1, 2]
    assert summarize(open_dataset(tmp_path / "walks"))[0::2] == summarize(open_dataset(tmp_path / "whole"))[0::2]
    assert len(list((tmp_path / "walks" / "shards").iterdir())) == 6  # what was joined in vain is gone


def test_old_shards_are_swept_and_pinned_runs_go_on(root):
    number = write_snapshot(open_dataset(root))
    running = open_dataset(root, snapshot=number)
    expected = summarize(running)
    old = {shard.name for shard in running.shards}
    compact(open_store(root))
    age(root, hours=2)
    assert sweep(open_store(root), 4 * 3600) == []
    assert {stored.name for stored in sweep(open_store(root), 3600)} == old
    assert summarize(running) == expected  # has them mapped
    resumed = open_dataset(root, snapshot=number)
    assert len(resumed.shards) == 1
    assert summarize(resumed) == expected
    assert summarize(open_dataset(root)) == expected
    assert find_all_damage(root) == []


def test_units_are_added_after_compaction(tmp_path):
    write_walks(tmp_path / "whole", LENGTHS)
    root = tmp_path / "walks"
    write_walks(root, LENGTHS, only=(0, 1))
    compact(open_store(root))
    write_walks(root, LENGTHS, only=(4, 2))
    assert write_snapshot(open_dataset(root)) == 1
    write_walks(root, LENGTHS, only=(3,))
    expected = summarize(open_dataset(tmp_path / "whole"))
    for number in (2, 3):  # with old shards and without
        assert summarize(open_dataset(root))[0::2] == expected[0::2]
        assert write_snapshot(open_dataset(root)) == 2
        if number == 2:
            age(root)
            assert len(sweep(open_store(root), 3600)) == 2
    assert compact(open_store(root)) == (4, 1)
    assert summarize(open_dataset(root))[0::2] == expected[0::2]
    assert find_all_damage(root) == []


@pytest.mark.parametrize("swept", [False, True])
@pytest.mark.parametrize("target_bytes", [2**27, 13_000])
def test_joined_shard_that_is_damaged_is_dropped_and_made_again(root, swept, target_bytes):
    expected = summarize(open_dataset(root))
    compact(open_store(root), target_bytes=target_bytes)
    if swept:
        age(root)
        assert sweep(open_store(root), 3600)
    dataset = open_dataset(root)
    flip_bit(dataset, 0, "observation", 4)
    damages = find_all_damage(root)
    units = drop_damage(open_store(root), damages)
    assert units == tuple(np.unique(dataset.episodes.unit[dataset.episodes.shard == 0]).tolist())
    assert len(units) > 1
    assert find_all_damage(root) == []
    make_units_again(root, units)
    assert summarize(open_dataset(root))[0::2] == expected[0::2]
    assert find_all_damage(root) == []
    compact(open_store(root))
    assert summarize(open_dataset(root))[0::2] == expected[0::2]


@pytest.mark.parametrize("num_kills", [4, pytest.param(30, marks=(pytest.mark.soak, pytest.mark.timeout(1200)))])
def test_killed_at_any_moment_compaction_changes_nothing_or_all(tmp_path, num_kills, chaos_seed):
    lengths = [[20, 7, 11]] * 24
    source, root = tmp_path / "source", tmp_path / "walks"
    write_walks(source, lengths)
    expected = open_dataset(source).content_hash()
    shutil.copytree(source, tmp_path / "measured")
    target_bytes = 4 * max(shard.num_bytes for shard in open_dataset(source).shards)
    _, seconds = run_struck(compact_once, tmp_path / "measured", target_bytes, after_seconds=None)
    shutil.copytree(source, root)
    kills = 0
    for after_seconds in draw_times(10 * num_kills, 1.2 * seconds, chaos_seed):
        kills += run_struck(compact_once, root, target_bytes, after_seconds=after_seconds)[0]
        dataset = open_dataset(root)
        assert len(dataset.episodes) == 72
        assert len(dataset.shards) in (24, 6)
        if len(dataset.shards) == 6:  # it was faster, or killed after its snapshot
            assert dataset.content_hash() == expected
            assert find_all_damage(root) == []
            shutil.rmtree(root)
            shutil.copytree(source, root)
        if kills == num_kills:
            break
    assert kills == num_kills
    compact(open_store(root), target_bytes=target_bytes)
    dataset = open_dataset(root)
    assert (dataset.content_hash(), len(dataset.shards)) == (expected, 6)
    assert find_all_damage(root) == []
    age(root)
    sweep(open_store(root), 3600)
    assert len(list((root / "shards").iterdir())) == 6
    assert list_orphans(dataset) == []
    assert open_dataset(root).content_hash() == expected


def test_readers_see_every_episode_once_while_two_compact_and_one_writes(tmp_path):
    lengths = [[5 + unit % 7, 9] for unit in range(40)]
    write_walks(tmp_path / "whole", lengths)
    root = tmp_path / "walks"
    write_walks(root, lengths, only=range(8))
    stop = CONTEXT.Event()
    compactors = [CONTEXT.Process(target=compact_until, args=(stop, root, size)) for size in (9_000, 2**27)]
    writer = CONTEXT.Process(target=write_one_by_one, args=(root, lengths, range(8, 40)))
    for process in (*compactors, writer):
        process.start()
    looks, most_shards, num_seen = 0, 0, 0
    try:
        while writer.is_alive() or looks < 10:
            dataset = open_dataset(root)
            numbers = dataset.episodes.column("episode_index")
            assert len(numbers) >= num_seen
            np.testing.assert_array_equal(numbers, np.arange(len(numbers)))  # units come in order here
            observations = dataset.read_column("observation")
            np.testing.assert_array_equal(observations[:, 0], np.repeat(numbers, dataset.episodes.length))
            steps = np.concatenate([np.arange(n) for n in dataset.episodes.length])
            np.testing.assert_array_equal(observations[:, 1], steps)
            looks, most_shards, num_seen = looks + 1, max(most_shards, len(dataset.shards)), len(numbers)
    finally:
        stop.set()
        for process in (writer, *compactors):
            process.join(60)
    assert [process.exitcode for process in (writer, *compactors)] == [0, 0, 0]
    assert most_shards > 1
    assert len(list_snapshots(open_store(root))) > 3
    assert summarize(open_dataset(root))[0::2] == summarize(open_dataset(tmp_path / "whole"))[0::2]
    assert find_all_damage(root) == []
    compact(open_store(root))
    age(root)
    sweep(open_store(root), 3600)
    assert summarize(open_dataset(root))[0::2] == summarize(open_dataset(tmp_path / "whole"))[0::2]
    assert len(list((root / "shards").iterdir())) == 1

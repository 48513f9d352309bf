import dataclasses
import functools
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from made_up_episodes import make_episode, make_manifest, require_undamaged, write_dataset

import diffplan.storage.store
from diffplan.data.format.commit import commit_unit, encode_commit, list_committed_units, read_commit
from diffplan.data.format.dataset import list_orphans, open_dataset
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.storage.store import LocalStore


def run_threads(functions):
    barrier = threading.Barrier(len(functions))
    results = [None] * len(functions)

    def run(i):
        barrier.wait()
        results[i] = functions[i]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_exactly_one_of_many_threads_puts_the_file_and_nobody_sees_half_of_it(tmp_path):
    for attempt in range(20):
        name = f"{attempt}.json"
        contents = [bytes([i]) * 50_000 for i in range(8)]
        put = LocalStore(tmp_path).put_if_absent
        won = run_threads([functools.partial(put, name, content) for content in contents])
        assert won.count(True) == 1
        assert (tmp_path / name).read_bytes() == contents[won.index(True)]
    assert len(list(tmp_path.iterdir())) == 20  # no temporary file is left


def test_put_leaves_nothing_behind_when_it_fails(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(diffplan.storage.store.os, "link", fail)
    with pytest.raises(OSError, match="no space"):
        LocalStore(tmp_path).put_if_absent("commit.json", b"content")
    assert not list(tmp_path.iterdir())


def test_second_attempt_of_a_unit_keeps_the_first_and_deletes_its_own_shard(tmp_path):
    manifest = create_dataset(tmp_path, make_manifest())
    first = write_unit(tmp_path, manifest, 0, [make_episode(0, 5)])
    second = write_unit(tmp_path, manifest, 0, [make_episode(0, 8)])
    assert second.attempt == first.attempt
    assert [p.name for p in (tmp_path / "shards").iterdir()] == [Path(first.shard.name).name]
    assert open_dataset(tmp_path).num_steps == 5


def test_racing_attempts_of_a_unit_agree_on_one(tmp_path):
    manifest = create_dataset(tmp_path, make_manifest())
    records = run_threads([lambda: write_unit(tmp_path, manifest, 0, [make_episode(0, 5)]) for _ in range(6)])
    assert len({record.attempt for record in records}) == 1
    assert len(list((tmp_path / "shards").iterdir())) == 1
    assert require_undamaged(tmp_path) == 2  # its commit and its shard


def test_attempt_whose_acknowledgement_was_lost_finds_that_it_succeeded(tmp_path):
    manifest = create_dataset(tmp_path, make_manifest())
    record = write_unit(tmp_path, manifest, 0, [make_episode(0, 5)])
    again = commit_unit(LocalStore(tmp_path), record)
    assert again.attempt == record.attempt
    assert (tmp_path / record.shard.name).is_file()  # not taken for a loser's
    assert require_undamaged(tmp_path) == 2  # its commit and its shard


def test_record_survives_json(tmp_path):
    manifest = create_dataset(tmp_path, make_manifest())
    record = write_unit(tmp_path, manifest, 0, [make_episode(0, 5, terminated=True)])
    commit = read_commit(LocalStore(tmp_path), 0)
    assert encode_commit(commit) == encode_commit(record)
    assert commit.episodes == record.episodes
    assert commit.shard == record.shard
    dataset = open_dataset(tmp_path)
    assert dataset.shards == (record.shard,)
    assert tuple(dataset.episodes) == record.episodes


def test_shards_without_a_commit_are_invisible_and_listed(tmp_path, monkeypatch):
    write_dataset(tmp_path, [[5], [6]])
    before = open_dataset(tmp_path)

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("diffplan.data.format.writer.commit_unit", die)
    with pytest.raises(KeyboardInterrupt):
        write_unit(tmp_path, before.manifest, 2, [make_episode(2, 7)])
    monkeypatch.undo()
    after = open_dataset(tmp_path)
    assert after.content_hash() == before.content_hash()
    (orphan,) = list_orphans(after)
    assert orphan.startswith("shards/00000002-")
    # An orphan disturbs nobody, and is not taken for the shard of a later attempt.
    write_unit(tmp_path, before.manifest, 2, [make_episode(2, 7)])
    assert open_dataset(tmp_path).num_steps == 18
    assert list_orphans(open_dataset(tmp_path)) == [orphan]


def test_temporary_files_of_killed_writers_are_ignored(dataset_root):
    (dataset_root / "commits" / ".tmp-0123456789abcdef").write_bytes(b'{"unit": 7')
    (dataset_root / "shards" / ".tmp-0123456789abcdef").write_bytes(b"ARROW1")
    (dataset_root / "snapshots").mkdir()
    (dataset_root / "snapshots" / ".tmp-0123456789abcdef").write_bytes(b"PAR1")
    dataset = open_dataset(dataset_root)
    assert len(dataset.shards) == 2
    assert not list_orphans(dataset)
    assert require_undamaged(dataset_root) == 4


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from made_up_episodes import make_episode
from diffplan.data.format.manifest import Manifest
from diffplan.data.format.writer import write_unit

root = Path(sys.argv[1])
manifest = Manifest.from_json((root / "_dataset.json").read_bytes(), root)
for unit in range(10_000):
    if not (root / f"commits/{unit:08d}.json").exists():
        write_unit(root, manifest, unit, [make_episode(2 * unit, 3000), make_episode(2 * unit + 1, 2000)])
        print("wrote", flush=True)
"""


def test_killed_writers_leave_only_whole_units(tmp_path):
    manifest = create_dataset(tmp_path, make_manifest())
    generator = np.random.default_rng(0)
    for _ in range(6):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(Path(__file__).parent)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"wrote\n"  # from here on it writes all the time
        time.sleep(generator.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        dataset = open_dataset(tmp_path)
        units = list_committed_units(dataset.store)
        assert units == list(range(len(units)))
        assert require_undamaged(tmp_path) == 2 * len(units)
        named = {shard.name for shard in dataset.shards}
        assert len(named) == len(units)
        assert len(list((tmp_path / "shards").iterdir())) == len(units) + len(list_orphans(dataset))
    next_unit = len(dataset.shards)
    assert next_unit >= 6  # each writer wrote something before it was killed
    for unit in (0, next_unit - 1):
        episode = make_episode(2 * unit, 3000)
        values = dataset.column(dataset.shards[unit], "observation")[:3000]
        np.testing.assert_array_equal(values, episode.observations[:-1])
    # Collection goes on where it stopped.
    write_unit(tmp_path, manifest, next_unit, [make_episode(2 * next_unit, 10)])
    assert len(open_dataset(tmp_path).shards) == next_unit + 1


def test_a_record_is_frozen(tmp_path):
    manifest = create_dataset(tmp_path, make_manifest())
    record = write_unit(tmp_path, manifest, 0, [make_episode(0, 5)])
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.unit = 1

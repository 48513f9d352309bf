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
from made_up_episodes import make_episode, make_manifest, write_dataset

import diffplan.data.commit
from diffplan.data.commit import commit_unit, put_if_absent
from diffplan.data.dataset import list_orphans, open_dataset
from diffplan.data.writer import create_dataset, write_unit


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
        path = tmp_path / f"{attempt}.json"
        contents = [bytes([i]) * 50_000 for i in range(8)]
        won = run_threads([functools.partial(put_if_absent, path, content) for content in contents])
        assert won.count(True) == 1
        assert path.read_bytes() == contents[won.index(True)]
    assert len(list(tmp_path.iterdir())) == 20  # no temporary file is left


def test_put_leaves_nothing_behind_when_it_fails(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(diffplan.data.commit.os, "link", fail)
    with pytest.raises(OSError, match="no space"):
        put_if_absent(tmp_path / "commit.json", b"content")
    assert not list(tmp_path.iterdir())


def test_second_attempt_of_a_unit_keeps_the_first_and_deletes_its_own_shard(tmp_path):
    manifest = create_dataset(tmp_path, make_manifest())
    first = write_unit(tmp_path, manifest, 0, [make_episode(0, 5)])
    second = write_unit(tmp_path, manifest, 0, [make_episode(0, 8)])
    assert second.attempt == first.attempt
    assert [p.name for p in (tmp_path / "shards").iterdir()] == [Path(first.shard).name]
    assert open_dataset(tmp_path).num_steps == 5


def test_racing_attempts_of_a_unit_agree_on_one(tmp_path):
    manifest = create_dataset(tmp_path, make_manifest())
    records = run_threads([lambda: write_unit(tmp_path, manifest, 0, [make_episode(0, 5)]) for _ in range(6)])
    assert len({record.attempt for record in records}) == 1
    assert len(list((tmp_path / "shards").iterdir())) == 1
    assert len(list(open_dataset(tmp_path).verify())) == 1


def test_attempt_whose_acknowledgement_was_lost_finds_that_it_succeeded(tmp_path):
    manifest = create_dataset(tmp_path, make_manifest())
    record = write_unit(tmp_path, manifest, 0, [make_episode(0, 5)])
    again = commit_unit(tmp_path, record)
    assert again.attempt == record.attempt
    assert (tmp_path / record.shard).is_file()  # not taken for a loser's
    assert len(list(open_dataset(tmp_path).verify())) == 1


def test_record_survives_json(tmp_path):
    manifest = create_dataset(tmp_path, make_manifest())
    record = write_unit(tmp_path, manifest, 0, [make_episode(0, 5, terminated=True)])
    (commit,) = open_dataset(tmp_path).commits
    assert commit.to_json() == record.to_json()
    assert commit.episodes == record.episodes
    assert commit.buffers == record.buffers


def test_shards_without_a_commit_are_invisible_and_listed(tmp_path, monkeypatch):
    write_dataset(tmp_path, [[5], [6]])
    before = open_dataset(tmp_path)

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("diffplan.data.writer.commit_unit", die)
    with pytest.raises(KeyboardInterrupt):
        write_unit(tmp_path, before.manifest, 2, [make_episode(2, 7)])
    monkeypatch.undo()
    after = open_dataset(tmp_path)
    assert after.content_hash() == before.content_hash()
    (orphan,) = list_orphans(after)
    assert orphan.name.startswith("00000002-")
    # An orphan disturbs nobody, and is not taken for the shard of a later attempt.
    write_unit(tmp_path, before.manifest, 2, [make_episode(2, 7)])
    assert open_dataset(tmp_path).num_steps == 18
    assert list_orphans(open_dataset(tmp_path)) == [orphan]


def test_temporary_files_of_killed_writers_are_ignored(dataset_root):
    (dataset_root / "commits" / ".tmp-0123456789abcdef").write_bytes(b'{"unit": 7')
    assert len(open_dataset(dataset_root).commits) == 2


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from made_up_episodes import make_episode
from diffplan.data.format import Manifest
from diffplan.data.writer import write_unit

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
        units = [commit.unit for commit in dataset.verify()]
        assert units == list(range(len(units)))
        named = {commit.shard for commit in dataset.commits}
        assert len(named) == len(units)
        assert len(list((tmp_path / "shards").iterdir())) == len(units) + len(list_orphans(dataset))
    next_unit = len(dataset.commits)
    assert next_unit >= 6  # each writer wrote something before it was killed
    for unit in (0, next_unit - 1):
        episode = make_episode(2 * unit, 3000)
        values = dataset.column(dataset.commits[unit], "observation")[:3000]
        np.testing.assert_array_equal(values, episode.observations[:-1])
    # Collection goes on where it stopped.
    write_unit(tmp_path, manifest, next_unit, [make_episode(2 * next_unit, 10)])
    assert len(open_dataset(tmp_path).commits) == next_unit + 1


def test_a_record_is_frozen(tmp_path):
    manifest = create_dataset(tmp_path, make_manifest())
    record = write_unit(tmp_path, manifest, 0, [make_episode(0, 5)])
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.unit = 1

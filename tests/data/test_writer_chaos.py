"""Writers and their coordinator killed at random while a reader looks on; see tests/chaos_writers.py."""

import os
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from chaos_reader import Reader, collect_undisturbed, count_remains
from chaos_writers import ENV, run_writer_chaos

from diffplan.data.format.dataset import list_orphans, open_dataset
from diffplan.data.maintenance.sweeping import sweep
from diffplan.data.maintenance.verification import find_damage
from diffplan.storage.opening import open_store


@pytest.mark.slow
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("num_kills", [25, pytest.param(200, marks=pytest.mark.soak)])
def test_every_episode_is_there_once_whatever_is_killed(tmp_path, chaos_seed, num_kills):
    root = tmp_path / "chaos"
    with Reader(root) as reader:
        chaos = run_writer_chaos(root, num_kills=num_kills, seed=chaos_seed, timeout_seconds=1500)
        sightings = reader.stop()
    assert chaos.num_writer_kills >= num_kills
    if num_kills > 100:
        assert min(chaos.num_coordinator_kills, chaos.num_answers_lost, chaos.num_zombies, chaos.num_refused) > 0
    assert sightings.faults == []
    assert sightings.num_looks > 5  # a busy machine looks seldom
    remains = count_remains(root, chaos.collection)
    assert (remains.num_units, remains.num_lost, remains.num_repeated) == (chaos.collection.num_units, 0, 0)
    assert remains.num_orphans > 0 or num_kills < 100  # else nothing was killed at an interesting point
    dataset = open_dataset(root)
    assert dataset.content_hash() == collect_undisturbed(tmp_path / "undisturbed", ENV, chaos.collection)

    named = {shard.name for shard in dataset.shards}
    store = open_store(root)
    long_ago = time.time() - 2 * 86_400
    for path in root.rglob("*"):
        if path.is_file():
            os.utime(path, (long_ago, long_ago))
    assert len(sweep(store, 86_400)) >= remains.num_orphans
    assert {stored.name for stored in store.list("shards")} == named
    assert list_orphans(dataset) == []
    assert not any(find_damage(store))

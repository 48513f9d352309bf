"""Real Ray actors and coordinators killed at random until a collection is complete; see tests/chaos_actors.py."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from chaos_actors import run_actor_chaos
from chaos_reader import Reader, collect_undisturbed, count_remains

from diffplan.data.format.dataset import open_dataset
from diffplan.data.maintenance.verification import find_damage
from diffplan.storage.opening import open_store


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("num_kills", [5, pytest.param(30, marks=pytest.mark.soak)])
def test_every_episode_is_there_once_whatever_actor_or_coordinator_is_killed(tmp_path, chaos_seed, num_kills):
    root = tmp_path / "chaos"
    with Reader(root) as reader:
        chaos = run_actor_chaos(root, num_kills=num_kills, seed=chaos_seed)
        sightings = reader.stop()
    assert chaos.num_actor_kills + chaos.num_coordinator_kills >= num_kills
    assert min(chaos.num_actor_kills, chaos.num_coordinator_kills) > 0 or num_kills < 10
    assert sightings.faults == []
    assert sightings.num_looks > 5
    remains = count_remains(root, chaos.collection)
    assert (remains.num_units, remains.num_lost, remains.num_repeated) == (chaos.collection.num_units, 0, 0)
    expected = collect_undisturbed(tmp_path / "undisturbed", chaos.env, chaos.collection)
    assert open_dataset(root).content_hash() == expected
    assert not any(find_damage(open_store(root)))

import dataclasses
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from diffplan.behaviors.collection import UnitCollector, make_manifest
from diffplan.cluster.collect.coordinator import collect
from diffplan.config import CollectionConfig, Config, EnvConfig, with_overrides
from diffplan.data.format.commit import list_committed_units, read_commit
from diffplan.data.format.dataset import list_orphans, list_snapshots, open_dataset, read_manifest
from diffplan.data.format.manifest import Manifest, commit_name
from diffplan.data.format.stage import read_collection
from diffplan.data.format.writer import create_dataset
from diffplan.data.maintenance.verification import find_damage
from diffplan.errors import ClusterError, DataError
from diffplan.storage.opening import open_store
from diffplan.storage.store import TEMPORARY_PREFIX, Store
from diffplan.tasks.registry import get_preset

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def config() -> Config:
    return with_overrides(
        get_preset("maze2d-umaze"),
        {
            "collection.num_steps": 9_000,
            "collection.episode_steps": 300,
            "collection.episodes_per_unit": 4,
            "collection.behavior": "noisy_waypoint:0.7,random:0.3",
        },
    )


@pytest.fixture(scope="module")
def undisturbed(config: Config, tmp_path_factory: pytest.TempPathFactory) -> str:
    dataset = collect(config.env, config.collection, tmp_path_factory.mktemp("one") / "data", num_workers=1)
    return dataset.content_hash()


def test_content_is_the_same_with_one_and_two_workers(config: Config, undisturbed: str, tmp_path: Path) -> None:
    dataset = collect(config.env, config.collection, tmp_path / "data", num_workers=2)
    assert dataset.num_steps == 9_600  # whole units
    assert len(dataset.shards) == config.collection.num_units == 8
    assert dataset.content_hash() == undisturbed
    assert list_snapshots(dataset.store) == [0]
    assert dataset.snapshot == 0


def test_another_seed_gives_other_content(config: Config, undisturbed: str, tmp_path: Path) -> None:
    other = with_overrides(config, {"collection.seed": 1})
    assert collect(other.env, other.collection, tmp_path / "data").content_hash() != undisturbed


def test_resuming_collects_only_what_is_missing(config: Config, undisturbed: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    collect(config.env, config.collection, root)
    store = open_store(root)
    store.delete("snapshots/0.parquet")  # as if it had been interrupted before
    kept = {unit: store.read(commit_name(unit)) for unit in (0, 3, 7)}
    for unit in (1, 2, 4, 5, 6):
        record = read_commit(store, unit)
        store.delete(commit_name(unit))
        if unit != 4:  # unit 4 leaves an orphan, as a writer killed before its commit does
            store.delete(record.shard.name)
    assert len(open_dataset(root).shards) == 3
    dataset = collect(config.env, config.collection, root, resume=True)
    assert dataset.content_hash() == undisturbed
    for unit, content in kept.items():
        assert store.read(commit_name(unit)) == content


def test_a_dataset_grows_and_what_is_there_stays(config: Config, undisturbed: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    few = with_overrides(config, {"collection.num_steps": 3_000})
    first = collect(few.env, few.collection, root)
    assert (len(first.shards), first.snapshot) == (3, 0)
    store = open_store(root)
    kept = {unit: store.read(commit_name(unit)) for unit in range(3)}
    with pytest.raises(DataError, match="--resume"):
        collect(config.env, config.collection, root)
    grown = collect(config.env, config.collection, root, resume=True)
    assert grown.content_hash() == undisturbed
    assert (len(grown.shards), grown.snapshot) == (8, 1)
    assert {unit: store.read(commit_name(unit)) for unit in range(3)} == kept
    assert open_dataset(root, snapshot=0).content_hash() == first.content_hash()
    assert collect(few.env, few.collection, root, resume=True).content_hash() == undisturbed  # never shrinks


def test_two_coordinators_at_once_collect_each_unit_once(config: Config, undisturbed: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    with ThreadPoolExecutor(2) as threads:
        both = [
            threads.submit(collect, config.env, config.collection, root, num_workers=1, resume=True) for _ in range(2)
        ]
        hashes = [each.result().content_hash() for each in both]
    assert hashes == [undisturbed, undisturbed]
    assert list_committed_units(open_store(root)) == list(range(8))
    assert not any(find_damage(open_store(root)))


def test_a_coordinator_that_begins_just_after_another_goes_on_with_its_dataset(
    config: Config, undisturbed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other has looked for a dataset, found none, and now finds the files of the first."""
    root, looks = tmp_path / "data", []

    def read_late(store: Store) -> Manifest:
        if not looks:
            looks.append("none yet")
            create_dataset(root, make_manifest(config.env, config.collection))
            (root / "usage").mkdir()
            (root / f"{TEMPORARY_PREFIX}0").touch()
            raise DataError(f"{root}: expected a dataset")
        return read_manifest(store)

    monkeypatch.setattr("diffplan.cluster.collect.coordinator.read_manifest", read_late)
    assert collect(config.env, config.collection, root, num_workers=1, resume=True).content_hash() == undisturbed
    assert looks
    with pytest.raises(DataError, match="there is a dataset already"):
        collect(config.env, config.collection, root)


HOPPER = EnvConfig(env_id="Hopper-v5")
"""Episodes of random actions end after about 20 of 1 000 steps."""
SHORT = CollectionConfig(num_steps=2_000, episodes_per_unit=4)


def find_shortest_prefix(num_steps: int) -> tuple[int, int]:
    """The fewest first units with as many steps, and their steps."""
    collector, unit, total = UnitCollector(HOPPER, SHORT), 0, 0
    while total < num_steps:
        total += sum(len(episode) for episode in collector.collect(unit))
        unit += 1
    return unit, total


def test_episodes_that_end_early_are_followed_by_more(tmp_path: Path) -> None:
    num_units, num_steps = find_shortest_prefix(2_000)
    assert num_units > 10
    hashes = set()
    for num_workers in (1, 2):
        root = tmp_path / str(num_workers)
        dataset = collect(HOPPER, SHORT, root, num_workers=num_workers)
        assert dataset.num_steps == num_steps >= 2_000
        assert list_committed_units(open_store(root)) == list(range(num_units))
        assert not list_orphans(dataset), "what was collected in advance and is not needed is deleted"
        hashes.add(dataset.content_hash())
    assert len(hashes) == 1
    # It grows to what would have been collected at once.
    more = dataclasses.replace(SHORT, num_steps=2_600)
    grown = collect(HOPPER, more, tmp_path / "1", resume=True)
    assert grown.content_hash() == collect(HOPPER, more, tmp_path / "more").content_hash()
    assert (len(grown.shards), grown.num_steps) == find_shortest_prefix(2_600)


def test_two_coordinators_at_once_agree_on_the_last_unit(tmp_path: Path) -> None:
    num_units, num_steps = find_shortest_prefix(2_000)
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(collect, HOPPER, SHORT, tmp_path / "data", num_workers=1, resume=True) for _ in range(2)]
        datasets = [each.result() for each in both]
    assert [dataset.num_steps for dataset in datasets] == [num_steps, num_steps]
    assert list_committed_units(open_store(tmp_path / "data")) == list(range(num_units))


def test_status_counts_steps_and_not_episodes_of_full_length(tmp_path: Path) -> None:
    collect(HOPPER, SHORT, tmp_path / "data", num_workers=2)
    store = open_store(tmp_path / "data")
    whole = read_collection(store)
    assert (whole.is_whole, whole.done, whole.total) == (True, *[find_shortest_prefix(2_000)[1]] * 2)
    store.delete("snapshots/0.parquet")
    for unit in range(5, len(list_committed_units(store))):
        store.delete(commit_name(unit))
    begun = read_collection(store)
    collector = UnitCollector(HOPPER, SHORT)
    done = sum(len(episode) for unit in range(5) for episode in collector.collect(unit))
    assert (begun.is_whole, begun.total) == (False, 2_000)
    assert begun.done == pytest.approx(done, rel=0.5)


def test_a_dataset_is_never_taken_for_another(config: Config, tmp_path: Path) -> None:
    root = tmp_path / "data"
    collect(config.env, config.collection, root)
    with pytest.raises(DataError, match="--resume"):
        collect(config.env, config.collection, root)
    other = with_overrides(config, {"collection.seed": 1})
    with pytest.raises(DataError, match=r"collection.seed = 0"):
        collect(other.env, other.collection, root, resume=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(DataError, match="other files"):
        collect(config.env, config.collection, tmp_path / "full")


def test_more_workers_than_cpus_are_refused_at_once(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="at least 64 CPUs in the cluster, got 2; lower --num_workers"):
        collect(config.env, config.collection, tmp_path / "data", num_workers=64)


def _listen_to_interrupts() -> None:
    """A shell that runs the tests in the background has them ignored, and a process hands that on to its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_collection_goes_on(blow: signal.Signals, tmp_path: Path) -> None:
    """A real command in a real process with its own Ray, struck while it works."""
    root = tmp_path / "data"
    command = [
        sys.executable, "-m", "diffplan.cli", "collect", "maze2d-umaze", "--out", str(root), "--num_workers", "1",
        "--num_steps", "1_200_000", "--episodes_per_unit", "8",
    ]  # fmt: skip
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_listen_to_interrupts,
    )
    deadline = time.monotonic() + 120
    while len(list((root / "commits").glob("*.json"))) < 2:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline, "no unit was committed"
        time.sleep(0.01)
    os.kill(process.pid, blow)
    _, err = process.communicate(timeout=60)
    if blow is not signal.SIGKILL:
        assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[blow]
        assert "--resume" in err
    before = len(open_dataset(root).shards)
    assert 2 <= before < 150
    dataset = open_dataset(root)
    assert dataset.collection is not None
    resumed = collect(dataset.env, dataset.collection, root, resume=True)
    assert len(resumed.shards) == 150
    assert len(resumed.episodes) == 1200
    assert not any(find_damage(open_store(root)))

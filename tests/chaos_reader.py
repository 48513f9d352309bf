"""A reader in a process of its own that looks at a dataset all the time while it is written, and what came of it.

As a script it looks until its standard input is closed, and then prints what it saw as JSON.
"""

import json
import os
import random
import select
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from diffplan.behaviors.collection import UnitCollector, make_manifest
from diffplan.config import CollectionConfig, EnvConfig
from diffplan.data.format.commit import list_committed_units
from diffplan.data.format.dataset import list_orphans, open_dataset, read_manifest
from diffplan.data.format.manifest import COMMITS, MANIFEST_NAME, SHARDS, SNAPSHOTS
from diffplan.data.format.snapshot import DatasetState, read_commits
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.data.maintenance.verification import check_shard
from diffplan.storage.opening import open_store
from diffplan.storage.store import TEMPORARY_PREFIX

NUM_LOOKED_AT_AGAIN = 20
"""Shards of earlier looks that every look reads again, beside all that are new."""


@dataclass(frozen=True)
class Sightings:
    """What a reader saw.

    Attributes:
        num_looks: times that it opened the dataset and read it, the empty dataset not counted.
        num_units: units in its last look.
        faults: what was not whole, was there twice or went away.
    """

    num_looks: int
    num_units: int
    faults: list[str]


class Reader:
    """The running reader of a dataset, from `with` until `stop`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __enter__(self) -> "Reader":
        command = [sys.executable, __file__, str(self._root)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def stop(self) -> Sightings:
        """End the reader after its present look."""
        out, _ = self._process.communicate(timeout=120)
        assert self._process.returncode == 0, "the reader failed"
        return Sightings(**json.loads(out))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


def watch(root: Path) -> Sightings:
    """Look until standard input is closed."""
    num_looks, faults = 0, []
    shard_names: dict[int, str] = {}
    while True:
        closed = bool(select.select([sys.stdin], [], [], 0.02)[0])
        if committed := list_committed_units(open_store(root)):
            num_looks += 1
            try:
                shard_names = look(root, committed, shard_names)
            except Exception as error:  # a fault of any kind is what this reader is for
                faults.append(f"look {num_looks}: {type(error).__name__}: {error}")
        if closed:
            return Sightings(num_looks, len(shard_names), faults)


def look(root: Path, committed: list[int], before: dict[int, str]) -> dict[int, str]:
    """Open the dataset and check it.

    Args:
        root: the dataset.
        committed: units that must be there.
        before: units that an earlier look saw, and their shards, which must be the same still.

    Returns:
        The units and their shards.
    """
    dataset = open_dataset(root)
    assert dataset.collection is not None
    state = DatasetState(dataset.shards, dataset.episodes, {})
    numbers: dict[int, int] = {}
    indices = dataset.episodes.column("episode_index")
    for unit in np.unique(dataset.episodes.unit).tolist():
        chosen = dataset.episodes.unit == unit
        expected = list(dataset.collection.episodes_of_unit(unit))
        if indices[chosen].tolist() != expected:
            raise ValueError(f"unit {unit}: expected the episodes {expected}, got {indices[chosen].tolist()}")
        (numbers[unit],) = np.unique(dataset.episodes.shard[chosen]).tolist()
    names = {unit: dataset.shards[number].name for unit, number in numbers.items()}
    if gone := (set(committed) | set(before)) - set(names):
        raise ValueError(f"units {sorted(gone)} were there and are not any more")
    if changed := [unit for unit, name in before.items() if names[unit] != name]:
        raise ValueError(f"units {changed} lie in other shards than before")
    again = random.sample(sorted(before), min(NUM_LOOKED_AT_AGAIN, len(before)))
    for unit in (set(names) - set(before)) | set(again):
        check_shard(dataset.store, dataset.manifest, state, numbers[unit])
    return names


@dataclass(frozen=True)
class Remains:
    """What lies in a dataset after the chaos.

    Attributes:
        num_units: committed units.
        num_lost: episodes that should be there and are not.
        num_repeated: episodes that occur more than once or should not be there.
        num_orphans: shards without a commit.
        num_temporaries: temporary files.
    """

    num_units: int
    num_lost: int
    num_repeated: int
    num_orphans: int
    num_temporaries: int


def count_remains(root: Path, collection: CollectionConfig) -> Remains:
    """Compare the commits of a dataset, one by one, with the episodes that it should have."""
    store = open_store(root)
    units = list_committed_units(store)
    commits = read_commits(store, read_manifest(store), units)
    found = Counter(episode.episode_index for commit in commits for episode in commit.episodes)
    expected = Counter(range(collection.num_units * collection.episodes_per_unit))
    stored = [
        o.name.rsplit("/", 1)[-1] for directory in ("", SHARDS, COMMITS, SNAPSHOTS) for o in store.list(directory)
    ]
    return Remains(
        num_units=len(units),
        num_lost=(expected - found).total(),
        num_repeated=(found - expected).total(),
        num_orphans=len(list_orphans(open_dataset(root))),
        num_temporaries=sum(name.startswith(TEMPORARY_PREFIX) and name != MANIFEST_NAME for name in stored),
    )


def collect_undisturbed(root: Path, env: EnvConfig, collection: CollectionConfig) -> str:
    """Collect the same dataset unit by unit in this process, and return the hash of its content."""
    manifest = create_dataset(root, make_manifest(env, collection))
    collector = UnitCollector(env, collection)
    for unit in range(collection.num_units):
        write_unit(root, manifest, unit, collector.collect(unit))
    return open_dataset(root).content_hash()


if __name__ == "__main__":
    os.nice(5)  # writers come first
    print(json.dumps(asdict(watch(Path(sys.argv[1])))))

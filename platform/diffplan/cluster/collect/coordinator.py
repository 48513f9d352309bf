"""Collect a dataset with Ray actors, each unit exactly once."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from diffplan.behaviors.collection import UnitCollector, complete_collection, describe_source, make_manifest
from diffplan.cluster.collect.prefix import NeededUnits
from diffplan.cluster.metrics import count_work
from diffplan.cluster.runtime import ROLLOUT_POOL, count_workers, prefer_pool, ray_session, require_resources
from diffplan.cluster.store_variables import adopt_variables, find_variables
from diffplan.cluster.units import run_units
from diffplan.cluster.work_meter import meter_work
from diffplan.config import CollectionConfig, EnvConfig, config_from_dict, config_to_dict
from diffplan.data.format.commit import list_committed_units, read_commit
from diffplan.data.format.commit_record import CommitRecord
from diffplan.data.format.dataset import TrajectoryDataset, open_dataset, pin_commits, read_manifest
from diffplan.data.format.manifest import COMMITS, MANIFEST_NAME, SHARDS, SNAPSHOTS, Manifest
from diffplan.data.format.snapshot import read_state
from diffplan.data.format.writer import commit_written, create_dataset, write_uncommitted
from diffplan.errors import ConfigError, DataError
from diffplan.runs.progress import Progress
from diffplan.runs.usage import record_usage
from diffplan.storage.opening import open_store
from diffplan.storage.store import TEMPORARY_PREFIX, LocalStore, Store

LISTING_SECONDS = 2.0
"""Shortest time between two checks for units that another coordinator has collected."""
LISTING_SHARE = 0.02
"""Largest share of its time for these checks: the time of a listing grows with the number of units."""


@dataclass(frozen=True)
class UnitTask:
    """A unit to collect.

    Attributes:
        unit: its index.
        is_needed: whether it is known to belong to the dataset; if not, it is collected in advance and not committed.
    """

    unit: int
    is_needed: bool

    def __str__(self) -> str:
        return str(self.unit)


@dataclass(frozen=True)
class UnitReport:
    """The report of an actor on a unit to the driver; the data go directly to the store.

    Attributes:
        num_steps: steps of the unit.
        uncommitted: the record of a unit that is not known to be needed.
    """

    num_steps: int
    uncommitted: CommitRecord | None = None


@ray.remote(num_cpus=1)
class CollectionActor:
    """Collects units and commits them."""

    def __init__(
        self,
        store: Store,
        env: EnvConfig,
        collection: CollectionConfig,
        manifest: Manifest,
        variables: dict[str, str],
    ) -> None:
        adopt_variables(variables)
        self._store = store
        self._manifest = manifest
        self._collector = UnitCollector(env, collection)

    def run(self, task: UnitTask) -> UnitReport:
        """Collect one unit, and commit it if it is needed."""
        record = write_uncommitted(self._store, self._manifest, task.unit, self._collector.collect(task.unit))
        count_work("collect", "steps", num_steps := record.shard.num_rows)
        if not task.is_needed:
            return UnitReport(num_steps, record)
        commit_written(self._store, record)
        return UnitReport(num_steps)


def collect(
    env: EnvConfig,
    collection: CollectionConfig,
    out: str | Path,
    *,
    num_workers: int | None = None,
    resume: bool = False,
) -> TrajectoryDataset:
    """Collect a dataset.

    It consists of the fewest units 0, 1, … whose steps reach `collection.num_steps`. Its content depends on `env` and
    `collection` alone, not on the number of workers, interruptions or failures, or on other coordinators that collect
    the same dataset at the same time.

    Args:
        env: the environment.
        collection: what to collect.
        out: directory or URL of the dataset.
        num_workers: actors, one CPU each; None for as many as there are CPUs.
        resume: go on with a dataset that is there; `collection.num_steps` may be larger than it was.

    Raises:
        ConfigError: the environment or the behavior cannot be made.
        DataError: there is a dataset already and `resume` is not set, or it was collected differently, or the store
            cannot put objects only if absent.
        StoreError: the store cannot be reached or refuses.
        ClusterError: too few CPUs, or actors that keep dying.
    """
    if num_workers is not None and num_workers < 1:
        raise ConfigError(f"num_workers: expected at least 1, got {num_workers}")
    env, collection = complete_collection(env, collection)
    store = open_store(out)
    manifest = open_manifest(store, env, collection, resume)
    work = _Work(store, manifest, collection)
    if not work.is_complete:
        with ray_session():
            num_workers = count_workers(num_workers)
            require_resources(
                num_workers, {"CPU": 1}, f"{num_workers} collection workers", {"CPU": "lower --num_workers"}
            )

            variables = {} if store.is_local else find_variables()

            def spawn() -> Any:
                actor = CollectionActor.options(**prefer_pool(ROLLOUT_POOL))
                return actor.remote(store, env, collection, manifest, variables)

            total, done_steps = collection.num_steps, work.num_done
            with (
                record_usage(
                    store, "collect", cpus=num_workers, total=total, unit="steps", initial=done_steps
                ) as usage,
                Progress("collect", total, "steps", initial=done_steps, on_advance=usage.count) as progress,
                meter_work(store, "collect", "steps", usage, done_steps) as meter,
            ):

                def on_done(task: UnitTask, report: UnitReport) -> None:
                    work.finish(task, report)
                    progress.move_to(min(work.num_done, total))

                try:
                    run_units(
                        work.iterate(),
                        spawn,
                        num_workers,
                        on_done,
                        lambda actor, task, seconds: meter.note(actor, work.steps_of(task.unit), seconds),
                    )
                finally:
                    work.drop_uncommitted()
                progress.move_to(total)
    return open_dataset(store, snapshot=pin_commits(store, manifest))


class _Work:
    """The units to collect: which are next, and which are committed.

    Units that are needed for certain come first, in random order: two coordinators then rarely collect the same unit at
    the same time (if they do, one of them drops its work). When there are none, the next one that will probably be
    needed is collected in advance, so that no worker waits for the length of the others' units.
    """

    def __init__(self, store: Store, manifest: Manifest, collection: CollectionConfig) -> None:
        self._store, self._manifest = store, manifest
        self._needed = NeededUnits(collection.num_steps, collection.max_unit_steps)
        self._steps: dict[int, int] = {}
        self._uncommitted: dict[int, CommitRecord] = {}
        self._begun: set[int] = set()
        self._queue: list[int] = []
        self._num_queued = 0
        self._next_listing = time.monotonic() + LISTING_SECONDS
        if (state := read_state(store, manifest)) is not None:
            steps = np.bincount(state.episodes.unit, weights=state.episodes.length)
            for unit in np.unique(state.episodes.unit).tolist():
                self._note(unit, int(steps[unit]))
        self._queue_needed()

    @property
    def is_complete(self) -> bool:
        """Whether all needed units are committed."""
        return self._needed.is_complete

    @property
    def num_done(self) -> int:
        """Steps of the needed units so far."""
        return self._needed.num_done

    def steps_of(self, unit: int) -> int:
        """Steps of a unit that was collected."""
        return self._steps[unit]

    def iterate(self) -> Iterator[UnitTask | None]:
        """What to collect next; None while that depends on units that are being collected."""
        while True:
            if time.monotonic() > self._next_listing:
                self._look_for_others()
            if self._queue:
                unit = self._queue.pop()
                if not self._needed.knows(unit):
                    self._begun.add(unit)
                    yield UnitTask(unit, is_needed=True)
            elif self._needed.is_complete:
                return
            else:
                probable = range(self._needed.end, self._needed.expected_end)
                unit = next((u for u in probable if u not in self._begun and not self._needed.knows(u)), None)
                if unit is not None:
                    self._begun.add(unit)
                yield None if unit is None else UnitTask(unit, is_needed=False)

    def finish(self, task: UnitTask, report: UnitReport) -> None:
        """Note a collected unit, and commit those that turn out to be needed."""
        if report.uncommitted is not None:
            self._uncommitted[task.unit] = report.uncommitted
        self._note(task.unit, report.num_steps)
        self._commit_needed()

    def drop_uncommitted(self) -> None:
        """Delete what was collected in advance and is not needed."""
        for record in self._uncommitted.values():
            self._store.delete(record.shard.name)
        self._uncommitted.clear()

    def _note(self, unit: int, num_steps: int) -> None:
        self._steps[unit] = num_steps
        self._needed.note(unit, num_steps)
        self._queue_needed()

    def _commit_needed(self) -> None:
        for unit in [unit for unit in self._uncommitted if unit < self._needed.end]:
            commit_written(self._store, self._uncommitted.pop(unit))

    def _queue_needed(self) -> None:
        added = [u for u in range(self._num_queued, self._needed.end) if u not in self._begun]
        if added:
            self._queue += added
            random.SystemRandom().shuffle(self._queue)
        self._num_queued = self._needed.end

    def _look_for_others(self) -> None:
        """Note units that another coordinator has committed in the meantime."""
        since = time.monotonic()
        for unit in list_committed_units(self._store):
            if not self._needed.knows(unit):
                self._note(unit, read_commit(self._store, unit).shard.num_rows)
        self._commit_needed()
        now = time.monotonic()
        self._next_listing = now + max(LISTING_SECONDS, (now - since) / LISTING_SHARE)


def open_manifest(store: Store, env: EnvConfig, collection: CollectionConfig, resume: bool) -> Manifest:
    """The manifest of a new dataset, or of one that is gone on with.

    Raises:
        DataError: there is a dataset and `resume` is not set, or it was begun differently, or other files are in the
            way.
    """
    try:
        manifest = read_manifest(store)
    except DataError:
        if _is_new(store):
            return create_dataset(store, make_manifest(env, collection))
        manifest = read_manifest(store)  # damaged, or another coordinator has made it just now
    if not resume:
        raise DataError(f"{store.uri}: there is a dataset already; go on with it by --resume, or take another --out")
    if manifest.collection is None:
        kind = manifest.source.get("kind", "otherwise")
        raise DataError(f"{store.uri}: the dataset was not collected (source: {kind}); take another --out")
    begun = (config_from_dict(EnvConfig, manifest.env), config_from_dict(CollectionConfig, manifest.collection))
    for name, found, asked in zip(
        ("env", "collection"), map(config_to_dict, complete_collection(*begun)), map(config_to_dict, (env, collection)),
        strict=True,
    ):  # fmt: skip
        for key in asked:
            if key != "num_steps" and found.get(key) != asked[key]:
                raise DataError(
                    f"{store.uri}: the dataset was begun with {name}.{key} = {found.get(key)!r}, expected "
                    f"{asked[key]!r}; resume with the same settings, or take another --out"
                )
    for path, digest in describe_source(env, collection).get("policy_files", {}).items():
        if manifest.source.get("policy_files", {}).get(path) != digest:
            raise DataError(
                f"{store.uri}: begun with another policy in {path} than is there now; put that one back, or "
                "take another --out"
            )
    return manifest


def _is_new(store: Store) -> bool:
    """Whether a dataset can be begun here; raises `DataError` if other files are in the way."""
    others = False
    if isinstance(store, LocalStore) and store.root.exists():
        known = {SHARDS, COMMITS, SNAPSHOTS}
        others = not store.root.is_dir() or any(
            path.name not in known and not path.name.startswith(TEMPORARY_PREFIX) for path in store.root.iterdir()
        )
    # After the others: a coordinator that begins writes this first.
    if any(stored.name == MANIFEST_NAME for stored in store.list("")):
        return False
    if others:
        raise DataError(
            f"{store.uri}: expected a new or empty directory or a dataset, got other files; take another --out"
        )
    return True

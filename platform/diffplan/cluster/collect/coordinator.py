"""Collect a dataset with Ray actors, each unit exactly once."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from diffplan.behaviors.collection import UnitCollector, complete_collection, make_manifest
from diffplan.cluster.metrics import count_work
from diffplan.cluster.runtime import ROLLOUT_POOL, count_workers, prefer_pool, ray_session, require_resources
from diffplan.cluster.store_variables import adopt_variables, find_variables
from diffplan.cluster.units import run_units
from diffplan.cluster.work_meter import meter_work
from diffplan.config import CollectionConfig, EnvConfig, config_from_dict, config_to_dict
from diffplan.data.format.commit import list_committed_units
from diffplan.data.format.dataset import TrajectoryDataset, open_dataset, pin_commits, read_manifest
from diffplan.data.format.manifest import COMMITS, MANIFEST_NAME, SHARDS, SNAPSHOTS, Manifest
from diffplan.data.format.writer import create_dataset, write_unit
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
class UnitReport:
    """The report of an actor on a unit to the driver; the data go directly to the store."""

    unit: int
    num_steps: int
    num_episodes: int


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

    def run(self, unit: int) -> UnitReport:
        """Collect and commit one unit."""
        record = write_unit(self._store, self._manifest, unit, self._collector.collect(unit))
        count_work("collect", "steps", record.shard.num_rows)
        return UnitReport(unit, record.shard.num_rows, len(record.episodes))


def collect(
    env: EnvConfig,
    collection: CollectionConfig,
    out: str | Path,
    *,
    num_workers: int | None = None,
    resume: bool = False,
) -> TrajectoryDataset:
    """Collect a dataset.

    Its content depends on `env` and `collection` alone, not on the number of workers, interruptions or failures, or on
    other coordinators that collect the same dataset at the same time.

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
    manifest = _open_manifest(store, env, collection, resume)
    missing = set(range(collection.num_units)) - set(list_committed_units(store))
    if missing:
        with ray_session():
            num_workers = count_workers(num_workers)
            require_resources(num_workers, {"CPU": 1}, f"{num_workers} collection workers", "lower --num_workers")

            variables = {} if store.is_local else find_variables()

            def spawn() -> Any:
                actor = CollectionActor.options(**prefer_pool(ROLLOUT_POOL))
                return actor.remote(store, env, collection, manifest, variables)

            unit_steps = collection.episodes_per_unit * collection.max_episode_steps
            done_steps = (collection.num_units - len(missing)) * unit_steps
            total = collection.num_units * unit_steps
            with (
                record_usage(
                    store, "collect", cpus=num_workers, total=total, unit="steps", initial=done_steps
                ) as usage,
                Progress("collect", total, "steps", initial=done_steps, on_advance=usage.count) as progress,
                meter_work(store, "collect", "steps", usage, done_steps) as meter,
            ):
                run_units(
                    _iterate_missing(store, missing, lambda: progress.advance(unit_steps)),
                    spawn,
                    num_workers,
                    lambda unit, report: progress.advance(report.num_steps),
                    lambda actor, unit, seconds: meter.note(actor, unit_steps, seconds),
                )
    return open_dataset(store, snapshot=pin_commits(store, manifest))


def _iterate_missing(store: Store, missing: set[int], on_found: Any) -> Iterator[int]:
    """The missing units in random order, without those that another coordinator commits in the meantime.

    The order is random so that two coordinators rarely collect the same unit at the same time. If they do, one of them
    drops its work.
    """
    order = list(missing)
    random.SystemRandom().shuffle(order)
    next_listing = time.monotonic() + LISTING_SECONDS
    done: set[int] = set()
    for unit in order:
        if (since := time.monotonic()) > next_listing:
            done = set(list_committed_units(store))
            now = time.monotonic()
            next_listing = now + max(LISTING_SECONDS, (now - since) / LISTING_SHARE)
        if unit in done:
            on_found()
        else:
            yield unit


def _open_manifest(store: Store, env: EnvConfig, collection: CollectionConfig, resume: bool) -> Manifest:
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

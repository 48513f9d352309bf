"""Collect a dataset with Ray actors, each unit exactly once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from diffplan.behaviors.collection import UnitCollector, make_manifest
from diffplan.cluster.runtime import count_workers, ray_session, require_cpus
from diffplan.cluster.units import run_units
from diffplan.config import CollectionConfig, EnvConfig, config_to_dict
from diffplan.data.dataset import TrajectoryDataset, open_dataset, read_commits, write_snapshot
from diffplan.data.format import MANIFEST_NAME, Manifest
from diffplan.data.writer import create_dataset, write_unit
from diffplan.errors import ConfigError, DataError
from diffplan.progress import Progress


@dataclass(frozen=True)
class UnitReport:
    """What an actor tells the driver of a unit; the data itself goes straight to disk."""

    unit: int
    num_steps: int
    num_episodes: int


@ray.remote(num_cpus=1)
class CollectionActor:
    """Collects units and commits them."""

    def __init__(self, root: str, env: EnvConfig, collection: CollectionConfig, manifest: Manifest) -> None:
        self._root = Path(root)
        self._manifest = manifest
        self._collector = UnitCollector(env, collection)

    def run(self, unit: int) -> UnitReport:
        """Collect and commit one unit."""
        record = write_unit(self._root, self._manifest, unit, self._collector.collect(unit))
        return UnitReport(unit, record.num_rows, len(record.episodes))


def collect(
    env: EnvConfig,
    collection: CollectionConfig,
    out: str | Path,
    *,
    num_workers: int | None = None,
    resume: bool = False,
) -> TrajectoryDataset:
    """Collect a dataset.

    Its content depends on `env` and `collection` alone, not on the number of workers, interruptions or failures.

    Args:
        env: the environment.
        collection: what to collect.
        out: directory of the dataset.
        num_workers: actors, one CPU each; None for as many as there are CPUs.
        resume: go on with a dataset that is there.

    Raises:
        ConfigError: the environment or the behavior cannot be made.
        DataError: there is a dataset already and `resume` is not set, or it was collected differently.
        ClusterError: too few CPUs, or actors that keep dying.
    """
    root = Path(out).absolute()
    if num_workers is not None and num_workers < 1:
        raise ConfigError(f"num_workers: expected at least 1, got {num_workers}")
    manifest = _open_manifest(root, env, collection, resume)
    done = {commit.unit: commit.num_rows for commit in read_commits(root, manifest)}
    missing = [unit for unit in range(collection.num_units) if unit not in done]
    if missing:
        with ray_session():
            num_workers = count_workers(num_workers)
            require_cpus(num_workers, f"{num_workers} collection workers", "lower --num_workers")

            def spawn() -> Any:
                return CollectionActor.remote(str(root), env, collection, manifest)

            total = collection.num_episodes * collection.episode_steps
            with Progress("collect", total, "steps", initial=sum(done.values())) as progress:
                run_units(missing, spawn, num_workers, lambda unit, report: progress.advance(report.num_steps))
    dataset = open_dataset(root)
    write_snapshot(dataset)
    return dataset


def _open_manifest(root: Path, env: EnvConfig, collection: CollectionConfig, resume: bool) -> Manifest:
    path = root / MANIFEST_NAME
    if not path.exists():
        if root.exists() and any(root.iterdir()):
            raise DataError(
                f"{root}: expected a new or empty directory or a dataset, got other files; take another --out"
            )
        return create_dataset(root, make_manifest(env, collection))
    if not resume:
        raise DataError(f"{root}: there is a dataset already; go on with it by --resume, or take another --out")
    manifest = Manifest.from_json(path.read_bytes(), path)
    for name, found, asked in (
        ("env", manifest.env, config_to_dict(env)),
        ("collection", manifest.collection, config_to_dict(collection)),
    ):
        for key in asked:
            if found.get(key) != asked[key]:
                raise DataError(
                    f"{root}: the dataset was begun with {name}.{key} = {found.get(key)!r}, expected {asked[key]!r}; "
                    "resume with the same settings, or take another --out"
                )
    return manifest

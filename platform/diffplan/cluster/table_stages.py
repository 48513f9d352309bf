"""Stages of a benchmark table, each done once: a table that was interrupted goes on where it stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diffplan.checkpoint import is_checkpoint, load_checkpoint
from diffplan.cluster.collect.coordinator import collect
from diffplan.cluster.train.driver import train_on_cluster
from diffplan.config import Config
from diffplan.errors import ConfigError, DataError
from diffplan.files import parse_json, read_file
from diffplan.runs.layout import RUN_NAME
from diffplan.runs.stages import read_json_object
from diffplan.storage.opening import open_store

_SECONDS = "training_seconds.json"


def begin_table(out: Path, name: str, asked: Mapping[str, Any]) -> None:
    """Record the request of a table in a file of its directory; raise `ConfigError` to continue one of another."""
    asked = json.loads(json.dumps(asked))
    path = out / name
    if path.exists():
        begun = read_json_object(open_store(out), name)
        if changed := [name for name in asked if begun.get(name) != asked[name]]:
            raise ConfigError(
                f"{out}: the table there was begun with another {' and '.join(changed)}; give the same, or take "
                "another --out"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asked, indent=2) + "\n")


class Stages:
    """The stages of one row of a table.

    Args:
        name: of what is made, for announcements.
        announce: called with a line when a stage begins.
    """

    def __init__(self, name: str, announce: Callable[[str], None]) -> None:
        self._name, self._announce = name, announce

    def is_done(self, path: Path, what: str) -> bool:
        """Whether a stage left its result at a path; if not, it is announced."""
        if path.exists():
            return True
        self._announce(f"{self._name}: {what}")
        return False

    def collect(self, config: Config, out: Path) -> Path:
        """The dataset of an experiment."""
        if not any((out / "snapshots").glob("*.parquet")):
            self._announce(f"{self._name}: collect {config.collection.num_steps:,} steps")
            collect(config.env, config.collection, out, resume=out.exists())
        return out

    def train(self, config: Config, dataset: Path, out: Path, what: str, *, cpus_per_worker: int | None = None) -> None:
        """Train an experiment to its last step; small networks need one CPU."""
        if is_checkpoint(out) and load_checkpoint(out).step == config.training.num_steps:
            return
        self._announce(f"{self._name}: train {what} for {config.training.num_steps:,} steps")
        since = time.perf_counter()
        train_on_cluster(config, dataset, out, cpus_per_worker=cpus_per_worker, resume=(out / RUN_NAME).exists())
        (out / _SECONDS).write_text(json.dumps(time.perf_counter() - since))


def read_training_seconds(checkpoint: Path) -> float | None:
    """Seconds that `Stages.train` took; None if not known."""
    path = checkpoint / _SECONDS
    try:
        return float(parse_json(read_file(path))) if path.exists() else None
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: expected a number of seconds, got something else ({error}); delete it") from None

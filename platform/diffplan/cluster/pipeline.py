"""The whole path in one command: collect, train, search, evaluate, report, under one run directory.

```
<run>/dataset/ checkpoint/ search/best.json evaluation/<protocol>/summary.json tensorboard/ report.html pipeline.json
```
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffplan.checkpoint import is_checkpoint, load_checkpoint
from diffplan.cluster.collect import collect
from diffplan.cluster.evaluate import evaluate
from diffplan.cluster.runtime import ray_session
from diffplan.cluster.train import train_on_cluster
from diffplan.cluster.tune import tune_planner
from diffplan.config import Config, config_from_json, config_to_json
from diffplan.errors import ConfigError
from diffplan.planning.settings import load_settings
from diffplan.report.page import write_report
from diffplan.run_directory import (
    CHECKPOINT,
    CONFIG,
    DATASET,
    EVALUATION,
    PIPELINE,
    REPORT,
    RUN_NAME,
    SEARCH,
    SUMMARY,
    TENSORBOARD,
)
from diffplan.usage import record_usage

PROTOCOLS = ("maze2d", "multi2d")


@dataclass
class PipelineRecord:
    """What `pipeline.json` holds: how a run was made and how long each stage took."""

    preset: str
    command: str
    machine: dict[str, Any]
    stages: list[dict[str, Any]] = field(default_factory=list)


def run_pipeline(
    config: Config,
    run: str | Path,
    *,
    preset: str,
    command: str,
    episodes: int = 100,
    seed: int = 0,
    num_workers: int | None = None,
    resume: bool = False,
    announce: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run every stage that has not been run yet.

    Args:
        config: the experiment.
        run: directory of the run.
        preset: name to record.
        command: command line to record.
        episodes: evaluation episodes of each protocol.
        seed: evaluation seed.
        num_workers: actors of collection and evaluation; None for as many as there are CPUs.
        resume: go on with a run that is there.
        announce: called with a line when a stage begins.

    Returns:
        The summaries of the evaluations, by protocol.

    Raises:
        DiffplanError: whatever a stage raises; the stages before it stay done.
    """
    run = Path(run).absolute()
    _open_run(run, config, resume)
    record = _read_record(run) or PipelineRecord(preset, command, {"cpus": os.cpu_count(), "arch": platform.machine()})
    with ray_session():

        def stage(name: str, is_done: bool, work: Callable[[], Any]) -> None:
            if is_done:
                announce(f"{name}: done before")
                return
            since = time.perf_counter()
            work()
            record.stages.append({"name": name, "seconds": round(time.perf_counter() - since, 1)})
            (run / PIPELINE).write_text(json.dumps(record.__dict__, indent=2) + "\n")

        dataset, checkpoint, search = run / DATASET, run / CHECKPOINT, run / SEARCH
        announce(f"[1/5] collect {config.collection.num_steps:,} steps of {config.env.env_id} into {dataset}")
        stage(
            "collect",
            _is_collected(dataset),
            lambda: collect(config.env, config.collection, dataset, num_workers=num_workers, resume=resume),
        )
        announce(f"[2/5] train {config.training.num_steps:,} steps into {checkpoint}")
        stage(
            "train",
            is_checkpoint(checkpoint) and load_checkpoint(checkpoint).step == config.training.num_steps,
            lambda: train_on_cluster(
                config,
                dataset,
                checkpoint,
                resume=resume and (checkpoint / RUN_NAME).exists(),
                tensorboard=run / TENSORBOARD,
            ),
        )
        announce(f"[3/5] search {config.search.num_trials} planner settings into {search}")
        stage(
            "tune",
            (search / "best.json").exists(),
            lambda: tune_planner(checkpoint, search, resume=resume),
        )
        settings = load_settings(search / "best.json")
        for protocol in PROTOCOLS:
            out = run / EVALUATION / protocol
            announce(f"[4/5] evaluate {episodes} episodes of {protocol} into {out}")
            stage(
                f"evaluate {protocol}",
                (out / SUMMARY).exists(),
                lambda out=out, protocol=protocol: evaluate(
                    checkpoint,
                    out,
                    protocol=protocol,
                    episodes=episodes,
                    seed=seed,
                    settings=settings,
                    num_workers=num_workers,
                ),
            )
    announce(f"[5/5] report {run / REPORT}")

    def report() -> None:
        with record_usage(run, "report", cpus=1) as usage:
            write_report(run)
            usage.count(1)

    stage("report", False, report)
    return {p: json.loads((run / EVALUATION / p / SUMMARY).read_text()) for p in PROTOCOLS}


def new_run_directory(parent: str | Path, preset: str) -> Path:
    """A directory under `parent` that does not exist yet, named after the preset and the time."""
    name = f"{preset}-{time.strftime('%Y%m%d-%H%M%S')}"
    directory, number = Path(parent) / name, 1
    while directory.exists():
        number += 1
        directory = Path(parent) / f"{name}-{number}"
    return directory


def point_latest(run: Path) -> None:
    """Point the link `latest` beside a run at it."""
    link = run.parent / "latest"
    temporary = run.parent / f".latest-{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(run.name)
    temporary.replace(link)


def _open_run(run: Path, config: Config, resume: bool) -> None:
    path = run / CONFIG
    if path.exists():
        if not resume:
            raise ConfigError(f"{run}: there is a run already; go on with it by --resume, or take another --out")
        if config_from_json(Config, path.read_text()) != config:
            raise ConfigError(
                f"{run}: the run was begun with other settings; resume with the same, or take another --out"
            )
        return
    run.mkdir(parents=True, exist_ok=True)
    path.write_text(config_to_json(config))


def _read_record(run: Path) -> PipelineRecord | None:
    path = run / PIPELINE
    return PipelineRecord(**json.loads(path.read_text())) if path.exists() else None


def _is_collected(dataset: Path) -> bool:
    return (dataset / "snapshots").is_dir() and any((dataset / "snapshots").glob("*.parquet"))

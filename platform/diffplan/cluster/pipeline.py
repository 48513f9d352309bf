"""All stages in one command: collect, train, calibrate, search, evaluate, report, in one run directory.

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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diffplan.behaviors.collection import complete_collection, make_manifest
from diffplan.checkpoint import load_checkpoint
from diffplan.cluster.collect.coordinator import collect
from diffplan.cluster.evaluate.coordinator import evaluate
from diffplan.cluster.runtime import ray_session
from diffplan.cluster.train.driver import train_on_cluster
from diffplan.cluster.train.storage import has_run, open_run
from diffplan.cluster.tune.search import tune_planner
from diffplan.config import Config, PlanningConfig, config_from_json, config_to_dict, config_to_json
from diffplan.config.codec import read_shape
from diffplan.data.format.dataset import list_snapshots
from diffplan.errors import ConfigError, DataError
from diffplan.evaluation.protocol import apply_protocol, choose_protocols, list_protocols
from diffplan.evaluation.rehearsal import rehearse_episode
from diffplan.evaluation.scores import find_metric
from diffplan.files import parse_json
from diffplan.planning.settings import load_settings
from diffplan.planning.trust import list_named, require_trust
from diffplan.report.page import write_report
from diffplan.runs.layout import (
    BEST,
    CALIBRATION,
    CHECKPOINT,
    CONFIG,
    DATASET,
    EVALUATION,
    PIPELINE,
    REPORT,
    SEARCH,
    SUMMARY,
    TENSORBOARD,
)
from diffplan.runs.records import Summary
from diffplan.runs.stages import read_json_object
from diffplan.runs.usage import record_usage
from diffplan.storage.opening import open_store
from diffplan.storage.store import Store
from diffplan.tasks.registry import task_of
from diffplan.training.companions import fit_companions
from diffplan.tuning.metrics import OBJECTIVE_FIELD


@dataclass
class PipelineRecord:
    """The content of `pipeline.json`: how a run was made and how long each stage took."""

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
    use_gpu: bool | None = None,
    resume: bool = False,
    trust: bool = False,
    announce: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run every stage that is not finished.

    Args:
        config: the experiment.
        run: directory or URL of the run.
        preset: name to record.
        command: command line to record.
        episodes: evaluation episodes of each protocol.
        seed: evaluation seed.
        num_workers: actors of collection and evaluation; None for as many as there are CPUs.
        use_gpu: as that of `train_on_cluster`.
        resume: go on with a run that is there.
        trust: whether its files may name functions and URLs that the experiment does not name.
        announce: called with a line when a stage begins.

    Returns:
        The summaries of the evaluations, by protocol.

    Raises:
        DiffplanError: as raised by a stage; finished stages are kept.
    """
    env, collection = complete_collection(config.env, config.collection)
    config = replace(config, env=env, collection=collection)
    protocols = list_protocols(env, config.search.protocols)
    _check_stages(config, protocols, seed)
    store = open_store(run)
    _open_run(store, config, resume)
    record = _read_record(store) or PipelineRecord(
        preset, command, {"cpus": os.cpu_count(), "arch": platform.machine()}
    )

    def check_names(settings: PlanningConfig, where: str) -> None:
        if not trust:
            require_trust(config_to_dict(settings), where, known)

    known = {text for _, text in list_named(config_to_dict(config.planning))}
    with ray_session():

        def stage(name: str, is_done: bool, work: Callable[[], Any]) -> None:
            if is_done:
                announce(f"{name}: done before")
                return
            since = time.perf_counter()
            work()
            record.stages.append({"name": name, "seconds": round(time.perf_counter() - since, 1)})
            store.replace(PIPELINE, (json.dumps(record.__dict__, indent=2) + "\n").encode())

        dataset, checkpoint, search = (store.locate(name) for name in (DATASET, CHECKPOINT, SEARCH))
        announce(f"[1/6] collect {config.collection.num_steps:,} steps of {config.env.env_id} into {dataset}")
        stage(
            "collect",
            bool(list_snapshots(open_store(dataset))),
            lambda: collect(config.env, config.collection, dataset, num_workers=num_workers, resume=resume),
        )
        announce(f"[2/6] train {config.training.num_steps:,} steps into {checkpoint}")
        stage(
            "train",
            _is_trained(checkpoint, config.training.num_steps),
            lambda: train_on_cluster(
                config,
                dataset,
                checkpoint,
                use_gpu=use_gpu,
                resume=resume and has_run(open_run(checkpoint)),
                tensorboard=store.locate(TENSORBOARD),
            ),
        )
        check_names(load_checkpoint(checkpoint).config.planning, checkpoint)
        announce(f"[3/6] calibrate {checkpoint}")
        stage(
            "calibrate",
            _has(store, f"{CHECKPOINT}/{CALIBRATION}"),
            lambda: fit_companions(checkpoint, seed=config.training.seed),
        )
        announce(f"[4/6] search {config.search.num_trials} planner settings into {search}")
        stage(
            "tune",
            _has(store, f"{SEARCH}/{BEST}"),
            lambda: tune_planner(checkpoint, search, resume=resume),
        )
        settings = load_settings(f"{search}/{BEST}")
        check_names(settings, f"{search}/{BEST}")
        for protocol in protocols:
            out = store.locate(f"{EVALUATION}/{protocol}")
            announce(f"[5/6] evaluate {episodes} episodes of {protocol} into {out}")
            stage(
                f"evaluate {protocol}",
                _has(store, f"{EVALUATION}/{protocol}/{SUMMARY}"),
                lambda out=out, protocol=protocol: evaluate(
                    checkpoint,
                    out,
                    protocol=protocol,
                    episodes=episodes,
                    seed=seed,
                    settings=settings,
                    num_workers=num_workers,
                    resume=resume,
                ),
            )
    announce(f"[6/6] report {store.locate(REPORT)}")

    def report() -> None:
        with record_usage(store, "report", cpus=1) as usage:
            write_report(store.uri)
            usage.count(1)

    stage("report", False, report)
    return {p: read_json_object(store, f"{EVALUATION}/{p}/{SUMMARY}", Summary) for p in protocols}


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


def _check_stages(config: Config, protocols: tuple[str, ...], seed: int) -> None:
    """Raise `ConfigError`, before Ray starts, for what would end a later stage."""
    make_manifest(config.env, config.collection)
    choose_protocols(config.search.protocols, config.env)
    find_metric(config.search.objective or task_of(config.env).objective, task_of(config.env), OBJECTIVE_FIELD)
    for protocol in protocols:
        rehearse_episode(apply_protocol(protocol, config.env), seed=seed)


def _open_run(store: Store, config: Config, resume: bool) -> None:
    try:
        begun = store.read(CONFIG)
    except FileNotFoundError:
        store.replace(CONFIG, config_to_json(config).encode())
        return
    if not resume:
        raise ConfigError(f"{store.uri}: there is a run already; go on with it by --resume, or take another --out")
    try:
        other = config_from_json(Config, begun.decode())
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{store.locate(CONFIG)}: expected the config of a run, got something else ({error})"
        ) from None
    if other != config:
        raise ConfigError(
            f"{store.uri}: the run was begun with other settings; resume with the same, or take another --out"
        )


def _read_record(store: Store) -> PipelineRecord | None:
    try:
        return read_shape(PipelineRecord, parse_json(store.read(PIPELINE)))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(
            f"{store.locate(PIPELINE)}: expected the record of a pipeline, got something else ({error}); delete it: "
            "only the times of its stages are lost"
        ) from None


def _is_trained(checkpoint: str, num_steps: int) -> bool:
    """Whether there is a complete checkpoint after `num_steps` steps."""
    return open_run(checkpoint).is_whole("") and load_checkpoint(checkpoint).step == num_steps


def _has(store: Store, name: str) -> bool:
    return any(stored.name == name for stored in store.list(name.rpartition("/")[0]))

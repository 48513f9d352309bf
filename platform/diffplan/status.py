"""What of a run is done, running, interrupted or failed, how far it came, and what it has cost.

What a stage has done is read from what it wrote: commits, checkpoints, results. Whether it is at work, how fast, and
what it has cost is read from the records of its attempts (`diffplan.usage`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from diffplan.checkpoint import CONFIG as CHECKPOINT_CONFIG
from diffplan.config import CollectionConfig, Config, config_from_dict
from diffplan.data.commit import list_committed_units
from diffplan.data.dataset import list_snapshots, read_manifest
from diffplan.data.format import MANIFEST_NAME
from diffplan.data.store import Store, open_store
from diffplan.errors import DataError
from diffplan.evaluation.baselines.offline_policy import DESCRIPTION as POLICY
from diffplan.evaluation.unit_results import DESCRIPTION, UNITS
from diffplan.report.search_files import BEST
from diffplan.run_directory import (
    CALIBRATION,
    CALIBRATION_USAGE,
    CHECKPOINT,
    CONFIG,
    DATASET,
    EVALUATION,
    PIN_NAME,
    PIPELINE,
    POLICIES,
    REPORT,
    RUN_NAME,
    SEARCH,
    STEP_PREFIX,
    SUMMARY,
    TABLE1_BEGUN,
)
from diffplan.tasks.registry import task_of
from diffplan.tuning.journal import FILE_NAME as JOURNAL
from diffplan.usage import Usage, read_usage

State = Literal["done", "running", "interrupted", "failed", "not begun"]


@dataclass(frozen=True)
class StageStatus:
    """A stage of a run.

    Attributes:
        stage: its name, such as `evaluate multi2d`.
        where: path or URL of its output.
        state: how it stands. `interrupted` is what neither ended nor shows any sign of life.
        done: units of work that need not be done again; None where that is not known.
        total: units of work of the whole stage; None where that is not known.
        unit: name of a unit of work.
        rate: units of work per second, of a stage that is running.
        seconds_left: at that rate.
        seconds: wall time of all attempts.
        cpu_hours: CPUs held, times how long, over all attempts; None where nothing was recorded.
        gpu_hours: likewise of GPUs.
        attempts: calls of the stage that were recorded.
        silent_seconds: since the last sign of life, of a stage that is running.
        error: why its last attempt failed.
        values: further numbers of a stage that is running.
    """

    stage: str
    where: str
    state: State
    done: int | None
    total: int | None
    unit: str
    rate: float | None = None
    seconds_left: float | None = None
    seconds: float | None = None
    cpu_hours: float | None = None
    gpu_hours: float | None = None
    attempts: int = 0
    silent_seconds: float | None = None
    error: str | None = None
    values: dict[str, float] | None = None


@dataclass(frozen=True)
class _Output:
    """What the output of a stage tells by itself."""

    stage: str
    unit: str
    is_begun: bool = False
    is_whole: bool = False
    done: int | None = None
    total: int | None = None


def read_status(where: str | Path, now: float | None = None) -> list[StageStatus]:
    """The stages of what lies at a path or URL.

    That is a dataset, a training run, a search, an evaluation, a pipeline run or a Table 1.

    Args:
        where: path or URL.
        now: time to judge signs of life by, seconds since 1970; None for the present.

    Raises:
        DataError: nothing of the kind is there, or a part is damaged.
        StoreError: the store cannot be reached.
    """
    now = time.time() if now is None else now
    store = open_store(where)
    files = {stored.name for stored in store.list("")}
    directories = set(store.list_directories(""))
    if TABLE1_BEGUN in files:
        return [stage for name in sorted(directories) for stage in _read_table_task(store, name, now)]
    if MANIFEST_NAME in files:
        return [_judge(store, _read_dataset(store), now)]
    if files & {BEST, JOURNAL}:
        return [_judge(store, _read_search(store), now)]
    if SUMMARY in files or UNITS in directories:
        return [_judge(store, _read_evaluation(store, "evaluate"), now)]
    if PIN_NAME in files or "format_version" in _read_object(store, CHECKPOINT_CONFIG):
        return [_judge(store, _read_training(store), now)]
    if files & {CONFIG, PIPELINE} or directories & {DATASET, CHECKPOINT, SEARCH, EVALUATION}:
        return _read_pipeline(store, now)
    found = ", ".join(sorted(files | directories)[:4]) or "nothing"
    raise DataError(
        f"{store.uri}: expected a dataset, a training run, a search, an evaluation, a pipeline run or a Table 1, "
        f"got {found}; give the --out of one"
    )


def _read_pipeline(store: Store, now: float) -> list[StageStatus]:
    config = config_from_dict(Config, _read_object(store, CONFIG)) if _has(store, CONFIG) else None
    collection = config.collection if config else None
    stages: list[tuple[str, Callable[[Store], _Output], _Output]] = [
        (DATASET, _read_dataset, _Output("collect", "steps", total=_count_steps(collection) if collection else None)),
        (CHECKPOINT, _read_training, _Output("train", "steps", total=config.training.num_steps if config else None)),
        (
            f"{CHECKPOINT}/{CALIBRATION_USAGE}",
            lambda _: _read_calibration(open_store(f"{store.uri}/{CHECKPOINT}")),
            _Output("calibrate", "plans"),
        ),
        (SEARCH, _read_search, _Output("tune", "trials", total=config.search.num_trials if config else None)),
    ]
    protocols = task_of(config.env).protocols if config else _list_names(store, EVALUATION)
    for protocol in protocols:
        name = f"evaluate {protocol}"
        stages.append(
            (
                f"{EVALUATION}/{protocol}",
                lambda part, name=name: _read_evaluation(part, name),
                _Output(name, "episodes"),
            )
        )
    found = []
    for directory, read, nothing in stages:
        part = open_store(f"{store.uri}/{directory}")
        is_there = bool(part.list("") or part.list_directories(""))
        found.append(_judge(part, read(part) if is_there else nothing, now))
    has_report = _has(store, REPORT)
    report = _Output("report", "stages", is_begun=has_report, is_whole=has_report, done=int(has_report), total=1)
    return [*found, _judge(store, report, now)]


def _read_table_task(table: Store, task: str, now: float) -> list[StageStatus]:
    """What has been begun for one task of a table; what else there will be, only the command knows."""
    parts: list[tuple[str, Callable[[Store], _Output]]] = [
        (DATASET, _read_dataset),
        (CHECKPOINT, _read_training),
        (SEARCH, _read_search),
    ]
    root = open_store(f"{table.uri}/{task}")
    for policy in _list_names(root, POLICIES):
        parts.append((f"{POLICIES}/{policy}", lambda part, name=policy: _read_policy(part, name)))
    for protocol in _list_names(root, EVALUATION):
        for method in _list_names(root, f"{EVALUATION}/{protocol}"):
            name = f"evaluate {protocol} {method}"
            parts.append((f"{EVALUATION}/{protocol}/{method}", lambda part, name=name: _read_evaluation(part, name)))
    found = []
    for directory, read in parts:
        part = open_store(f"{root.uri}/{directory}")
        if part.list("") or part.list_directories(""):
            output = read(part)
            found.append(_judge(part, replace(output, stage=f"{task}: {output.stage}"), now))
    return found


def _list_names(store: Store, directory: str) -> list[str]:
    return sorted(name.rpartition("/")[2] for name in store.list_directories(directory))


def _judge(store: Store, output: _Output, now: float) -> StageStatus:
    """How a stage stands, by its output and the records of its attempts."""
    attempts = read_usage(store)
    last = attempts[-1] if attempts else None
    running = next((usage for usage in reversed(attempts) if usage.is_running(now)), None)
    is_whole = output.is_whole and (last is None or last.outcome == "done" or _reaches(output.done, last.total))
    state: State
    if is_whole and (running is None or _reaches(output.done, running.total)):  # one that was killed may seem to run
        state, running = "done", None
    elif running is not None:
        state = "running"
    elif last is None:
        state = "interrupted" if output.is_begun else "not begun"
    else:
        state = "failed" if last.outcome == "failed" else "interrupted"
    total = last.total if last is not None and not is_whole else output.total
    done = output.done
    if done is None and last is not None:
        done = last.done
    if running is not None:
        done = max(done or 0, running.done)
    rate = running.rate if running is not None else None
    return StageStatus(
        stage=output.stage,
        where=store.uri,
        state=state,
        done=0 if state == "not begun" else done,
        total=total,
        unit=output.unit,
        rate=rate,
        seconds_left=(total - done) / rate if rate and total is not None and done is not None else None,
        seconds=sum(usage.seconds for usage in attempts) if attempts else None,
        cpu_hours=_hours(attempts, "cpu_seconds"),
        gpu_hours=_hours(attempts, "gpu_seconds"),
        attempts=len(attempts),
        silent_seconds=None if running is None else max(now - running.beat, 0.0),
        error=last.error if state == "failed" and last is not None else None,
        values=running.values if running is not None else None,
    )


def _reaches(done: int | None, total: int) -> bool:
    return done is not None and done >= total


def _hours(attempts: list[Usage], name: str) -> float | None:
    return sum(getattr(usage, name) for usage in attempts) / 3_600 if attempts else None


def _read_dataset(store: Store) -> _Output:
    if not _has(store, MANIFEST_NAME):
        return _Output("collect", "steps", is_begun=True)
    manifest = read_manifest(store)
    has_snapshot = bool(list_snapshots(store))
    units = list_committed_units(store)
    if manifest.collection is None:  # imported or merged: how many units there will be only their source knows
        kind = str(manifest.source.get("kind", "import"))
        return _Output(kind, "units", True, has_snapshot, len(units), len(units) if has_snapshot else None)
    collection = config_from_dict(CollectionConfig, manifest.collection)
    unit_steps = collection.episodes_per_unit * collection.max_episode_steps
    done, total = len(units) * unit_steps, _count_steps(collection)
    return _Output("collect", "steps", True, has_snapshot and done >= total, done, max(done, total))


def _count_steps(collection: CollectionConfig) -> int:
    """Steps of all units of a collection."""
    return collection.num_units * collection.episodes_per_unit * collection.max_episode_steps


def _read_training(store: Store) -> _Output:
    published = _read_object(store, CHECKPOINT_CONFIG)
    if "format_version" in published:
        total = published["config"]["training"]["num_steps"]
        return _Output("train", "steps", True, True, int(published["step"]), int(total))
    names = [name for name in store.list_directories(RUN_NAME) if name.startswith(f"{RUN_NAME}/{STEP_PREFIX}")]
    whole = [name for name in names if _has(store, f"{name}/{CHECKPOINT_CONFIG}")]
    steps = [int(name.rpartition(STEP_PREFIX)[2]) for name in whole]
    return _Output("train", "steps", is_begun=True, done=max(steps, default=0))


def _read_calibration(checkpoint: Store) -> _Output:
    measured = _read_object(checkpoint, CALIBRATION)
    number = measured["plans"]["num_plans"] if measured else None
    return _Output("calibrate", "plans", is_begun=True, is_whole=bool(measured), done=number, total=number)


def _read_policy(store: Store, name: str) -> _Output:
    """A baseline: one that the loop trains, or one of RLlib, which is there as a whole or not at all."""
    if _has(store, POLICY):
        return _Output(f"train {name}", "policies", is_begun=True, is_whole=True, done=1, total=1)
    return replace(_read_training(store), stage=f"train {name}")


def _read_search(store: Store) -> _Output:
    best = _read_object(store, BEST)
    number = best.get("num_trials")
    return _Output("tune", "trials", is_begun=True, is_whole=bool(best), done=number, total=number)


def _read_evaluation(store: Store, name: str) -> _Output:
    summary = _read_object(store, SUMMARY)
    if summary:
        number = summary.get("episodes")
        return _Output(name, "episodes", True, True, number, number)
    description = _read_object(store, f"{UNITS}/{DESCRIPTION}")
    episodes, unit = description.get("episodes"), description.get("episodes_per_unit")
    results = sum(stored.name.rpartition("/")[2][0].isdigit() for stored in store.list(UNITS))
    done = min(results * unit, episodes) if episodes and unit else None
    return _Output(name, "episodes", is_begun=True, done=done, total=episodes)


def _has(store: Store, name: str) -> bool:
    directory = name.rpartition("/")[0]
    return any(stored.name == name for stored in store.list(directory))


def _read_object(store: Store, name: str) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    try:
        content = store.read(name)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    try:
        values = json.loads(content)
    except ValueError as error:
        raise DataError(
            f"{store.locate(name)}: expected JSON, got something else ({error}); run its stage again"
        ) from None
    if not isinstance(values, dict):
        raise DataError(f"{store.locate(name)}: expected a JSON object, got another value; run its stage again")
    return values


def to_record(where: str, stages: list[StageStatus]) -> dict[str, Any]:
    """A status as JSON values."""
    return {
        "run": where,
        "stages": [asdict(stage) for stage in stages],
        "cpu_hours": sum(stage.cpu_hours or 0.0 for stage in stages),
        "gpu_hours": sum(stage.gpu_hours or 0.0 for stage in stages),
    }

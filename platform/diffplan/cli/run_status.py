"""The status of a run of any kind, from the stages in it; each stage reports its own (`diffplan.runs.stages`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from diffplan.config import Config, config_from_dict
from diffplan.data.format.stage import COLLECTION, read_collection
from diffplan.errors import DataError
from diffplan.evaluation.protocol import list_protocols
from diffplan.evaluation.stage import EVALUATION as EVALUATION_STAGE
from diffplan.evaluation.stage import read_evaluation, read_offline_policy
from diffplan.runs.layout import (
    CALIBRATION_USAGE,
    CHECKPOINT,
    CONFIG,
    DATASET,
    EVALUATION,
    PIPELINE,
    POLICIES,
    REPORT,
    SEARCH,
    TABLE_BEGUN,
)
from diffplan.runs.stages import (
    StageOutput,
    StageReader,
    StageStatus,
    has_file,
    judge_stage,
    read_json_object,
)
from diffplan.storage.opening import open_store
from diffplan.storage.store import Store
from diffplan.training.stage import TRAINING, is_checkpoint_directory, read_calibration, read_training
from diffplan.tuning.stage import SEARCH as SEARCH_STAGE
from diffplan.tuning.stage import read_search

STAGES: tuple[StageReader, ...] = (COLLECTION, SEARCH_STAGE, EVALUATION_STAGE, TRAINING)
"""Stages whose output may exist without a pipeline run."""


def read_status(where: str | Path, now: float | None = None) -> list[StageStatus]:
    """The stages of a run at a path or URL.

    The run may be a dataset, a training run, a search, an evaluation, a pipeline run or a benchmark table.

    Args:
        where: path or URL.
        now: time that signs of life are compared with, in seconds since 1970; None for the present.

    Raises:
        DataError: there is none of these, or a part is damaged.
        StoreError: the store cannot be reached.
    """
    store = open_store(where)
    files = {stored.name for stored in store.list("")}
    directories = set(store.list_directories(""))
    if TABLE_BEGUN in files:
        return [stage for name in sorted(directories) for stage in _read_table_task(store, name, now)]
    for stage in STAGES:
        if stage.recognizes(files, directories):
            return [judge_stage(store, stage.read(store), now)]
    if is_checkpoint_directory(store, files):
        return [judge_stage(store, read_training(store), now)]
    if files & {CONFIG, PIPELINE} or directories & {DATASET, CHECKPOINT, SEARCH, EVALUATION}:
        return _read_pipeline(store, now)
    found = ", ".join(sorted(files | directories)[:4]) or "nothing"
    raise DataError(
        f"{store.uri}: expected a dataset, a training run, a search, an evaluation, a pipeline run or a table, "
        f"got {found}; give the --out of one"
    )


def _read_pipeline(store: Store, now: float | None) -> list[StageStatus]:
    config = config_from_dict(Config, read_json_object(store, CONFIG)) if has_file(store, CONFIG) else None
    steps = config.collection.num_steps if config else None
    stages: list[tuple[str, Callable[[Store], StageOutput], StageOutput]] = [
        (DATASET, read_collection, StageOutput("collect", "steps", total=steps)),
        (
            CHECKPOINT,
            read_training,
            StageOutput("train", "steps", total=config.training.num_steps if config else None),
        ),
        (
            f"{CHECKPOINT}/{CALIBRATION_USAGE}",
            lambda _: read_calibration(open_store(f"{store.uri}/{CHECKPOINT}")),
            StageOutput("calibrate", "plans"),
        ),
        (SEARCH, read_search, StageOutput("tune", "trials", total=config.search.num_trials if config else None)),
    ]
    for protocol in list_protocols(config.env, config.search.protocols) if config else _list_names(store, EVALUATION):
        stages.append((f"{EVALUATION}/{protocol}", read_evaluation, StageOutput(f"evaluate {protocol}", "episodes")))
    found = []
    for directory, read, nothing in stages:
        part = open_store(f"{store.uri}/{directory}")
        is_there = bool(part.list("") or part.list_directories(""))
        output = read(part) if is_there else nothing
        if output.stage == "evaluate":  # the name of the directory is the protocol
            output = replace(output, stage=nothing.stage)
        found.append(judge_stage(part, output, now))
    has_report = has_file(store, REPORT)
    report = StageOutput("report", "stages", is_begun=has_report, is_whole=has_report, done=int(has_report), total=1)
    return [*found, judge_stage(store, report, now)]


def _read_table_task(table: Store, task: str, now: float | None) -> list[StageStatus]:
    """The stages begun for one task of a table; only the command knows which others follow."""
    root = open_store(f"{table.uri}/{task}")
    parts: list[tuple[str, str, Callable[[Store], StageOutput]]] = [
        (DATASET, "", read_collection),
        (CHECKPOINT, "", read_training),
        (SEARCH, "", read_search),
    ]
    for policy in _list_names(root, POLICIES):
        parts.append(
            (f"{POLICIES}/{policy}", f" {policy}", lambda part: read_offline_policy(part) or read_training(part))
        )
    for protocol in _list_names(root, EVALUATION):
        for method in _list_names(root, f"{EVALUATION}/{protocol}"):
            parts.append((f"{EVALUATION}/{protocol}/{method}", f" {protocol} {method}", read_evaluation))
    found = []
    for directory, suffix, read in parts:
        part = open_store(f"{root.uri}/{directory}")
        if part.list("") or part.list_directories(""):
            output = read(part)
            found.append(judge_stage(part, replace(output, stage=f"{task}: {output.stage}{suffix}"), now))
    return found


def _list_names(store: Store, directory: str) -> list[str]:
    return sorted(name.rpartition("/")[2] for name in store.list_directories(directory))

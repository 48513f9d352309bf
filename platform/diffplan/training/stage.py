"""Progress of training and of calibration."""

from __future__ import annotations

import re

from diffplan.checkpoint import CONFIG, read_record
from diffplan.config import Config, config_from_dict
from diffplan.runs.layout import CALIBRATION, PIN_NAME, RUN_NAME, STEP_PREFIX
from diffplan.runs.records import Calibration
from diffplan.runs.stages import StageOutput, StageReader, has_file, read_json_object
from diffplan.storage.store import Store


def read_training(store: Store) -> StageOutput:
    """The progress of training, from the directory of its checkpoint."""
    published = read_json_object(store, CONFIG)
    if "format_version" in published:
        record = read_record(store)
        config = config_from_dict(Config, record["config"])
        return StageOutput("train", "steps", True, True, record["step"], config.training.num_steps)
    pattern = rf"{RUN_NAME}/{STEP_PREFIX}[0-9]{{1,18}}"
    names = [name for name in store.list_directories(RUN_NAME) if re.fullmatch(pattern, name)]
    whole = [name for name in names if has_file(store, f"{name}/{CONFIG}")]
    steps = [int(name.rpartition(STEP_PREFIX)[2]) for name in whole]
    return StageOutput("train", "steps", is_begun=True, done=max(steps, default=0))


def read_calibration(checkpoint: Store) -> StageOutput:
    """The progress of calibration, from the directory of its checkpoint."""
    measured = read_json_object(checkpoint, CALIBRATION, Calibration)
    number = (measured.get("plans") or {}).get("num_plans") if measured else None
    return StageOutput("calibrate", "plans", is_begun=True, is_whole=bool(measured), done=number, total=number)


def is_checkpoint_directory(store: Store, files: set[str]) -> bool:
    """Whether a directory holds a checkpoint or the run that makes one; a pipeline run has a `config.json` too."""
    return PIN_NAME in files or "format_version" in read_json_object(store, CONFIG)


TRAINING = StageReader("train", lambda files, directories: PIN_NAME in files, read_training)

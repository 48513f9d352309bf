"""Named studies: those of every task, and those of one task. Users' own studies are JSON files with the same fields."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from diffplan.config import SearchConfig, config_from_json
from diffplan.config.study import Among, Between, Scaled, Study
from diffplan.errors import ConfigError, unknown_name
from diffplan.files import MAX_SETTINGS_BYTES, read_file
from diffplan.tasks.task import Task

DEFAULT_STUDY = "planner"
"""The default study."""

STUDIES: dict[str, Study] = {
    DEFAULT_STUDY: Study(
        description="how plans are made: guidance, denoising steps, candidates, how often to plan again",
        vary={
            "planning.guidance.scale": Between(low=0.0, high=10.0),
            "planning.sampling.num_steps": Among(among=(2, 4, 8, 16)),
            "planning.selection.num_candidates": Among(among=(1, 4, 16, 64)),
            "planning.replanning.interval": Among(among=(1, 2, 4, 8)),
        },
    ),
    "training": Study(
        description="what is trained: horizon, stride, width, what the network predicts",
        kind="training",
        vary={
            "windows.max_horizon": Scaled(
                shares=(0.5, 1.0, 1.5),
                multiple=4,
                also=("windows.min_horizon", "planning.horizon.min", "planning.horizon.max"),
            ),
            "windows.stride": Among(among=(1, 2, 4)),
            "network.dim": Scaled(shares=(0.5, 1.0, 1.5), multiple=8),
            "diffusion.prediction": Among(among=("clean", "noise", "velocity")),
        },
        num_trials=24,
    ),
    "optimizer": Study(
        description="how it is trained: learning rate, batch, average, weights of the loss",
        kind="training",
        vary={
            "training.learning_rate": Between(low=2e-4, high=5e-3, log=True),
            "training.batch_size": Among(among=(32, 64, 128)),
            "training.ema_decay": Among(among=(0.99, 0.995, 0.999)),
            "training.weight_decay": Among(among=(0.0, 1e-4, 1e-2)),
            "diffusion.snr_weighting": Among(among=("none", "snr", "min_snr")),
        },
        num_trials=24,
    ),
}
"""The studies of every task; a task's own study of the same name replaces one."""


def list_studies(task: Task) -> dict[str, Study]:
    """The studies of a task by name, its own first."""
    return {**task.studies, **{name: study for name, study in STUDIES.items() if name not in task.studies}}


def find_study(name: str | Path, task: Task) -> Study:
    """A ready study by its name, or a user's own from a JSON file.

    Args:
        name: of the study, or path of the file.
        task: the task of the studies.

    Raises:
        ConfigError: no study of that name (the message suggests the nearest), no such file, or it holds no study.
    """
    ready = list_studies(task)
    if str(name) in ready:
        return ready[str(name)]
    if not str(name).endswith(".json"):
        raise ConfigError(unknown_name("study", str(name), ready))
    try:
        text = read_file(name, max_bytes=MAX_SETTINGS_BYTES).decode()
    except OSError as error:
        raise ConfigError(f"{name}: expected a study in a JSON file, got none there ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: expected a study in a JSON file, got something else ({error})") from None
    try:
        return config_from_json(Study, text)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def size_search(study: Study, search: SearchConfig) -> SearchConfig:
    """The size of a study on an experiment with a given search."""
    return search if study.num_trials is None else dataclasses.replace(search, num_trials=study.num_trials)

"""Checkpoints to give away: small, with the settings to plan with, and without what only training needs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch

from diffplan.checkpoint import load_checkpoint, load_companion, save_companion, save_planning_checkpoint
from diffplan.config import HeadControl, PlanningConfig
from diffplan.planning.companions.value_model import JUDGES
from diffplan.planning.loading import ACTION_HEADS, HORIZON_MODEL, INVERSE_DYNAMICS, SUPPORT, VALUE


def package_planner(source: str | Path, target: str | Path, settings: PlanningConfig | None = None) -> int:
    """Write the parts of a checkpoint that a planner needs into another directory, which is a checkpoint as well.

    Args:
        source: the checkpoint.
        target: directory of the new one; replaced if there is one.
        settings: settings of the new checkpoint; None to keep those of `source`.

    Returns:
        Bytes of the new checkpoint. Its weights are float16; a planner computes in float32 all the same.

    Raises:
        CheckpointError: no checkpoint at `source`, or a damaged one.
    """
    checkpoint, target = load_checkpoint(source), Path(target)
    config = checkpoint.config if settings is None else dataclasses.replace(checkpoint.config, planning=settings)
    names = [HORIZON_MODEL, INVERSE_DYNAMICS, SUPPORT]
    names += [ACTION_HEADS] if isinstance(config.planning.controller, HeadControl) else []
    names += [VALUE] if config.planning.guidance.value in JUDGES else []
    companions = {name: load_companion(source, name) for name in names}
    # The path of the dataset is of no use elsewhere, and reveals names of this machine.
    dataset = {key: value for key, value in checkpoint.dataset.items() if key == "uuid"}
    save_planning_checkpoint(
        target,
        dataclasses.replace(
            checkpoint,
            config=config,
            dataset=dataset,
            weights={
                name: value.half() if value.dtype == torch.float32 else value
                for name, value in checkpoint.weights.items()
            },
        ),
    )
    for name, companion in companions.items():
        if companion is not None:
            save_companion(target, name, *companion)
    files = json.loads((target / "config.json").read_text())["files"]
    return sum(file["num_bytes"] for file in files.values())

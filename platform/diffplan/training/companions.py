"""The small models that planning uses beside the diffuser, fitted to a finished checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from diffplan.checkpoint import load_checkpoint
from diffplan.config import CalibrationConfig, Config, HeadControl, PlanningConfig
from diffplan.data.format.dataset import open_dataset
from diffplan.errors import ConfigError
from diffplan.planning.calibration import find_support, learn_horizons, measure_consistency
from diffplan.planning.companions.value_fit import fit_value
from diffplan.planning.companions.value_model import JUDGES
from diffplan.planning.loading import (
    ACTION_HEADS,
    HORIZON_MODEL,
    INVERSE_DYNAMICS,
    SUPPORT,
    VALUE,
    load_planner,
    save_action_heads,
    save_action_model,
    save_horizon_model,
    save_support,
    save_value,
)
from diffplan.planning.planner import with_support
from diffplan.planning.settings import without_companions
from diffplan.runs.layout import CALIBRATION, CALIBRATION_USAGE
from diffplan.runs.progress import follow
from diffplan.runs.usage import record_usage
from diffplan.storage.opening import open_store
from diffplan.training import inverse_dynamics
from diffplan.training.action_heads import fit_action_heads


def fit_companions(
    checkpoint: str | Path,
    *,
    data: str | Path | None = None,
    settings: PlanningConfig | None = None,
    calibration: CalibrationConfig | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Fit the companions that the settings use, and add them to a checkpoint.

    Args:
        checkpoint: its directory or URL.
        data: directory or URL of the dataset; None for that of the checkpoint.
        settings: planner settings whose sampler and horizons are learned; None for those of the checkpoint.
        calibration: sizes and targets of the fits; None for those of the checkpoint.
        seed: of everything random in it.

    Returns:
        The content of `calibration.json` in the checkpoint: how consistent data and plans are, and the errors of each
        companion; None for companions that were not fitted.

    Raises:
        CheckpointError: no checkpoint, or a damaged one.
        ConfigError: the checkpoint does not name its dataset, and no data are given.
        DataError: the dataset is missing or damaged.
        StoreError: a store cannot be reached or refuses.
    """
    loaded = load_checkpoint(checkpoint)
    uri = data or loaded.dataset.get("path") or loaded.dataset.get("uri")
    if uri is None:
        raise ConfigError(f"{checkpoint}: it does not say what it was trained on; give the dataset by --data")
    settings = loaded.config.planning if settings is None else settings
    fits = loaded.config.calibration if calibration is None else calibration
    needed = find_needed(loaded.config, settings)
    planner = load_planner(checkpoint, without_companions(settings), companions=False)
    config, dataset, store = planner.config, open_dataset(uri), open_store(checkpoint)
    result: dict[str, Any] = dict.fromkeys(
        ("data", "plans", "inverse_dynamics_error", "action_head_errors", "support_points", "value"), None
    )
    usage_store = open_store(store.locate(CALIBRATION_USAGE))
    total, unit = (fits.num_plans, "plans") if HORIZON_MODEL in needed else (0, "steps")
    with record_usage(usage_store, "calibrate", cpus=1, total=total, unit=unit) as usage:
        if config.env.velocity_columns:
            result["data"] = measure_consistency(dataset, config, config.windows.horizons, seed=seed)
        support = find_support(dataset, config) if SUPPORT in needed else None
        if HORIZON_MODEL in needed:
            with follow("plans", "plans") as report:

                def count(done: int, total: int) -> None:
                    report(done, total)
                    usage.count(min(done, fits.num_plans))

                model, result["plans"] = learn_horizons(
                    with_support(planner, support),
                    dataset,
                    num_plans=fits.num_plans,
                    quantile=fits.quantile,
                    seed=seed,
                    on_progress=count,
                )
            save_horizon_model(checkpoint, model)
        if INVERSE_DYNAMICS in needed:
            with follow("actions", "steps") as report:
                action_model, result["inverse_dynamics_error"] = inverse_dynamics.fit_action_model(
                    dataset, seed=seed, on_progress=report
                )
            save_action_model(checkpoint, action_model)
        if ACTION_HEADS in needed:
            with follow("action heads", "steps") as report:
                heads, result["action_head_errors"] = fit_action_heads(dataset, config, seed=seed, on_progress=report)
            save_action_heads(checkpoint, heads)
        if VALUE in needed:
            with follow("value", "steps") as report:
                value, errors = fit_value(
                    dataset,
                    config,
                    expectile=fits.expectile,
                    num_ahead=fits.value_steps,
                    whole_plans=settings.guidance.value == "plan" or config.windows.offsets is not None,
                    seed=seed,
                    on_progress=report,
                )
            save_value(checkpoint, value)
            used = {"expectile": fits.expectile, "value_steps": fits.value_steps}
            result["value"] = {**dataclasses.asdict(errors), **used, "discount": value.discount}
        if support is not None:
            save_support(checkpoint, support)
            result["support_points"] = len(support.points)
        result["dataset"] = str(uri)
        store.replace(CALIBRATION, (json.dumps(result, indent=2) + "\n").encode())
    return result


def find_needed(config: Config, settings: PlanningConfig) -> set[str]:
    """Names of the companions that are of use to an experiment planned with these settings."""
    env, needed = config.env, set()
    if env.position_columns:
        needed.add(SUPPORT)
    if env.velocity_columns and config.goal_columns and settings.horizon.rule != "scan":
        needed.add(HORIZON_MODEL)
    if isinstance(settings.controller, HeadControl):
        needed.add(ACTION_HEADS)
    elif config.windows.columns == "observations" or settings.controller.kind != "actions":
        needed.add(INVERSE_DYNAMICS)
    if settings.guidance.value in JUDGES:
        needed.add(VALUE)
    return needed

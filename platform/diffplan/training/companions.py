"""The small models that planning uses beside the diffuser, fitted to a finished checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from diffplan.checkpoint import load_checkpoint
from diffplan.config import PlanningConfig
from diffplan.data.dataset import open_dataset
from diffplan.data.opening import open_store
from diffplan.errors import ConfigError
from diffplan.planning.calibration import find_support, learn_horizons, measure_consistency
from diffplan.planning.loading import load_planner, save_action_model, save_horizon_model, save_support
from diffplan.planning.planner import with_support
from diffplan.progress import follow
from diffplan.run_directory import CALIBRATION, CALIBRATION_USAGE
from diffplan.training import inverse_dynamics
from diffplan.usage import record_usage


def fit_companions(
    checkpoint: str | Path,
    *,
    data: str | Path | None = None,
    settings: PlanningConfig | None = None,
    num_plans: int = 40_000,
    quantile: float = 0.65,
    seed: int = 0,
) -> dict[str, Any]:
    """Fit a horizon model and inverse dynamics, learn where the data have been, and add these to a checkpoint.

    Args:
        checkpoint: its directory or URL.
        data: directory or URL of the dataset; None for that of the checkpoint.
        settings: planner settings whose sampler and horizons are learned; None for those of the checkpoint.
        num_plans: plans that the horizon model learns from.
        quantile: what the horizon model predicts of the speed errors of a horizon.
        seed: of everything random in it.

    Returns:
        What `calibration.json` in the checkpoint holds: how consistent data and plans are, and how well it was learned.

    Raises:
        CheckpointError: no checkpoint, or a damaged one.
        ConfigError: it does not say what it was trained on, and no data are given.
        DataError: the dataset is missing or damaged.
        StoreError: a store cannot be reached or refuses.
    """
    loaded = load_checkpoint(checkpoint)
    uri = data or loaded.dataset.get("path") or loaded.dataset.get("uri")
    if uri is None:
        raise ConfigError(f"{checkpoint}: it does not say what it was trained on; give the dataset by --data")
    settings = loaded.config.planning if settings is None else settings
    # Settings that want a horizon model are what this makes one for.
    settings = dataclasses.replace(settings, horizon_rule="scan", controller="tracking")
    planner = load_planner(checkpoint, settings, companions=False)
    dataset, store = open_dataset(uri), open_store(checkpoint)
    usage_store = open_store(store.locate(CALIBRATION_USAGE))
    with record_usage(usage_store, "calibrate", cpus=1, total=num_plans, unit="plans") as usage:
        support = find_support(dataset, planner.config)
        planner = with_support(planner, support)
        consistency = measure_consistency(dataset, planner.config, planner.config.windows.horizons, seed=seed)
        with follow("plans", "plans") as report:

            def count(done: int, total: int) -> None:
                report(done, total)
                usage.count(min(done, num_plans))

            model, plans = learn_horizons(
                planner, dataset, num_plans=num_plans, quantile=quantile, seed=seed, on_progress=count
            )
        with follow("actions", "steps") as report:
            action_model, action_error = inverse_dynamics.fit_action_model(dataset, seed=seed, on_progress=report)
        save_horizon_model(checkpoint, model)
        save_action_model(checkpoint, action_model)
        save_support(checkpoint, support)
        result = {
            "data": consistency,
            "plans": plans,
            "inverse_dynamics_error": action_error,
            "support_points": len(support.points),
            "dataset": str(uri),
        }
        store.replace(CALIBRATION, (json.dumps(result, indent=2) + "\n").encode())
    return result

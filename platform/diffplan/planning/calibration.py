"""Calibration: statistics and small models for planning, measured on the data and on the model's own plans.

* how consistent real windows are (`measure_consistency`): the reference for `planning.horizon.max_speed_error`;
* the horizon model (`learn_horizons`);
* the support of the data (`find_support`): `planning.horizon.max_departure` is a distance from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from diffplan.config import Config
from diffplan.data.format.dataset import TrajectoryDataset
from diffplan.data.windows.normalization import Normalizer
from diffplan.data.windows.readers import make_window_reader
from diffplan.data.windows.window_index import WindowIndex
from diffplan.errors import PlanningError
from diffplan.planning.companions.horizon_model import HorizonModel, fit_horizon_model
from diffplan.planning.companions.support import Support
from diffplan.planning.consistency import compute_speed_errors, find_speed_limit
from diffplan.planning.planner import Planner, with_settings
from diffplan.seeding import Stream, make_generator, make_seed

QUANTILES = (0.5, 0.9, 0.99, 0.999)
PLANS_AT_ONCE = 256
SHARE_AT_REST = 1 / 3
"""Share of the starts with velocity 0: episodes begin at rest, which is rare in the data."""
SHARE_FOLLOWED = 1 / 2
"""Share of the goals that the data reached from the start; the others are drawn from all of the data."""

Report = Callable[[int, int], None]


def read_windows(
    dataset: TrajectoryDataset, config: Config, horizon: int, num_windows: int, generator: np.random.Generator
) -> np.ndarray:
    """Observations of windows of the data, float32[windows, horizon, observation_dim] in environment units."""
    normalizer = Normalizer.fit(
        [dataset.statistics["observation"]], "gaussian", [dataset.manifest.column("observation")]
    )
    index = WindowIndex(dataset, config.windows.stride, "skip")
    reader = make_window_reader(dataset, ("observation",), index, normalizer, max_horizon=horizon)
    return normalizer.unnormalize(reader.read(0, num_windows, horizon, generator).x).numpy()


def longest_horizon(dataset: TrajectoryDataset, config: Config) -> int:
    """Longest window horizon that fits into an episode, in transitions: at least 2, at most that of the config."""
    room = (int(dataset.episodes.length.max()) - 1) // config.windows.stride + 1
    return max(2, min(config.windows.max_horizon, room))


def measure_consistency(
    dataset: TrajectoryDataset, config: Config, horizons: Sequence[int], *, num_windows: int = 4096, seed: int = 0
) -> dict[str, Any]:
    """Measure the speed errors of windows of the data. They are not 0: real trajectories accelerate unevenly.

    Args:
        dataset: the data.
        config: the experiment: stride, columns, seconds of a step.
        horizons: of the windows.
        num_windows: windows of each horizon.
        seed: of the choice of windows.

    Returns:
        `horizons`, `quantiles`, and `speed_errors`: for each horizon the quantiles of the largest speed error in a
        window, in units per second.
    """
    env, rows = config.env, []
    step_seconds = None if env.step_seconds is None else config.windows.stride * env.step_seconds
    for horizon in horizons:
        generator = make_generator(seed, Stream.CALIBRATION, 0, horizon)
        windows = read_windows(dataset, config, horizon, num_windows, generator)
        errors = compute_speed_errors(windows, env.position_columns, env.velocity_columns, step_seconds)
        rows.append(np.quantile(errors, QUANTILES).tolist())
    return {
        "horizons": list(horizons),
        "quantiles": list(QUANTILES),
        "speed_errors": rows,
        "num_windows": num_windows,
        "seed": seed,
    }


def find_support(dataset: TrajectoryDataset, config: Config) -> Support:
    """The support of the data: the positions that they have visited.

    Raises:
        PlanningError: the environment has no positions.
    """
    columns = list(config.env.position_columns)
    if not columns:
        raise PlanningError("support: expected an environment with position_columns, got none")
    statistics = dataset.statistics["observation"]
    runs = (
        dataset.column(shard, "observation")[first : first + count, columns]
        for shard, first, count in dataset.iterate_runs()
    )
    return Support.fit(statistics.minimum[columns], statistics.maximum[columns], runs)


def learn_horizons(
    planner: Planner,
    dataset: TrajectoryDataset,
    *,
    num_plans: int = 40_000,
    quantile: float = 0.65,
    seed: int = 0,
    on_progress: Report | None = None,
) -> tuple[HorizonModel, dict[str, Any]]:
    """Make plans of every horizon between places in the data, and fit a horizon model to their speed errors.

    Where the planner knows the support of the data, the model also learns the departures of the plans from it.

    Args:
        planner: makes the plans, with the sampler of its settings.
        dataset: starts and goals are drawn from it.
        num_plans: plans to learn from; a tenth more are made to test the model on.
        quantile: the model predicts this quantile of speed error and departure over the noise in plans.
        seed: of everything random here.
        on_progress: called with the plans made and their total.

    Returns:
        The model and its test results: for each horizon the share of test plans that were consistent, and the share
        for which the model predicted this correctly.

    Raises:
        PlanningError: the environment has no velocities, so every plan counts as consistent; or plans have no goals.
    """
    config, settings = planner.config, planner.settings
    if not config.env.velocity_columns:
        raise PlanningError("horizon model: expected an environment with velocity_columns, got none")
    if not planner.model.end_columns:
        raise PlanningError("horizon model: expected a model with goal columns, got none")
    plain = with_settings(
        planner,
        {
            "horizon.rule": "scan",
            "horizon.max_departure": math.inf,  # so that departures are measured
            "selection.num_candidates": 1,
            "selection.rule": "consistency",
            "guidance.scale": 0.0,
        },
    )
    horizons = settings.horizon.tried
    total = round(1.1 * num_plans)
    starts, goals = _choose_ends(dataset, config, total, seed)
    generator = torch.Generator().manual_seed(make_seed(seed, Stream.CALIBRATION, 1))
    chosen = np.empty(total, dtype=np.int64)
    errors, departures = np.empty((2, total))
    # Small enough for a dozen batches of every horizon, so that one of each can be held out for the test.
    at_once = max(1, min(PLANS_AT_ONCE, total // (12 * len(horizons))))
    for number, first in enumerate(range(0, total, at_once)):
        part = slice(first, min(first + at_once, total))
        rung = number % len(horizons)
        plans = plain.plan_horizon(starts[part], goals[part], horizons[rung], generator)
        chosen[part], errors[part] = rung, [plan.speed_error or 0.0 for plan in plans]
        departures[part] = [plan.departure or 0.0 for plan in plans]
        if on_progress is not None:
            on_progress(part.stop, total)
    # Whole batches are held out, so that the test covers every horizon.
    held = (np.arange(total) // at_once) // len(horizons) % 11 == 10
    model = fit_horizon_model(
        starts[~held],
        goals[~held],
        chosen[~held],
        errors[~held],
        departures[~held],
        horizons,
        config.goal_value_columns,
        quantile=quantile,
        seed=seed,
    )
    test = held if held.any() else ~held
    with torch.no_grad():
        predicted = model(torch.from_numpy(starts[test]), torch.from_numpy(goals[test])).numpy()
    predicted = np.exp(predicted[np.arange(test.sum()), :, chosen[test]])
    limits = find_speed_limit(settings), settings.horizon.max_departure or math.inf
    found = np.stack([errors[test], departures[test]], axis=1)
    consistent, expected = np.all(found <= limits, axis=1), np.all(predicted <= limits, axis=1)
    shares, accuracies = [], []
    for rung in range(len(horizons)):
        rows = chosen[test] == rung
        shares.append(float(consistent[rows].mean()) if rows.any() else None)
        accuracies.append(float((consistent == expected)[rows].mean()) if rows.any() else None)
    return model, {
        "horizons": list(horizons),
        "max_speed_error": settings.horizon.max_speed_error,
        "max_departure": settings.horizon.max_departure,
        "share_consistent": shares,
        "accuracy": accuracies,
        "num_plans": num_plans,
        "num_test_plans": int(test.sum()) if held.any() else 0,
        "quantile": quantile,
        "seed": seed,
    }


def _choose_ends(dataset: TrajectoryDataset, config: Config, num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts float32[num, observation_dim] and goals float32[num, goal_columns] from the data."""
    generator = make_generator(seed, Stream.CALIBRATION, 2)
    env, longest = config.env, config.windows.max_horizon
    windows = read_windows(dataset, config, longest, num, generator)
    starts = windows[:, 0].copy()
    at_rest = generator.random(num) < SHARE_AT_REST
    columns = list(env.velocity_columns)
    starts[:, columns] = np.where(at_rest[:, None], 0.0, starts[:, columns])
    followed = windows[np.arange(num), generator.integers(1, longest, num)]
    anywhere = generator.permutation(followed)
    chosen = np.where(generator.random(num)[:, None] < SHARE_FOLLOWED, followed, anywhere)
    return starts.astype(np.float32), chosen[:, list(config.goal_value_columns)].astype(np.float32)

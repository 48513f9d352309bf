"""Search planner settings on a frozen checkpoint with Ray Tune: Optuna proposes, ASHA stops what is not promising.

The fidelity of a trial is its number of evaluation episodes. Trials are scored on tuning episodes, which are never
among those of an evaluation.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from diffplan.cluster.runtime import ray_session, require_cpus
from diffplan.config import (
    Config,
    EnvConfig,
    SearchConfig,
    config_to_dict,
    with_overrides,
)
from diffplan.errors import ClusterError, ConfigError
from diffplan.evaluation.protocol import apply_protocol
from diffplan.evaluation.rollout import evaluate_episodes
from diffplan.evaluation.scores import EpisodeResult
from diffplan.planning.loading import load_planner
from diffplan.progress import Progress
from diffplan.seeding import Stream

RUN_NAME = "run"
FAILURE_PENALTY = 100.0
"""What an episode that never reaches its goal costs beyond its score: the search must not trade goals for speed."""


def make_param_space(config: Config) -> dict[str, Any]:
    """What the search varies, by dotted names of the config; the config's own values are always in it."""
    planning, shortest = config.planning, config.network.min_horizon
    most_steps = config.diffusion.num_diffusion_steps

    def between(low: float, high: float, current: float) -> Any:
        return tune.uniform(min(low, current), max(high, current))

    def among(options: list[int], current: int) -> Any:
        return tune.choice(sorted({*options, current}))

    return {
        "planning.guidance_scale": between(0.0, 10.0, planning.guidance_scale),
        "planning.max_speed_error": between(4.0, 12.0, planning.max_speed_error),
        "planning.min_horizon": among(
            [h for h in (4, 6, 8, 12) if shortest <= h <= planning.max_horizon], planning.min_horizon
        ),
        "planning.horizon_multiple": among([1, 2, 4], planning.horizon_multiple),
        "planning.num_sampling_steps": among([n for n in (4, 8, 16) if n <= most_steps], planning.num_sampling_steps),
        "planning.num_candidates": among([1, 2, 4], planning.num_candidates),
    }


def compute_objective(results: list[EpisodeResult]) -> float:
    """What a search maximises: the mean score less a penalty for episodes that never reach their goal."""
    return float(np.mean([r.score - FAILURE_PENALTY * (not r.success) for r in results]))


def _run_trial(
    params: dict[str, Any], checkpoint: str, config: Config, envs: list[EnvConfig], search: SearchConfig
) -> None:
    """One trial: settings evaluated block by block, in the environment of each protocol."""
    torch.set_num_threads(1)
    planner = load_planner(checkpoint, with_overrides(config, params).planning)
    results: list[EpisodeResult] = []
    plan_seconds = 0.0
    for block in range(search.num_blocks):
        first = block * search.episodes_per_block
        episodes = range(first, first + search.episodes_per_block)
        for env in envs:
            results += evaluate_episodes(planner, env, episodes, seed=search.seed, stream=Stream.TUNING)[0]
        plan_seconds = sum(r.plan_seconds for r in results) / len(results)
        tune.report(
            {
                "objective": compute_objective(results),
                "score_mean": float(np.mean([r.score for r in results])),
                "success_rate": float(np.mean([r.success for r in results])),
                "plan_seconds": plan_seconds,
                "episodes": len(results),
            }
        )


class _ShownProgress(tune.Callback):
    """Counts finished trials on the progress line."""

    def __init__(self, num_trials: int) -> None:
        self._num_trials = num_trials
        self._bar: Progress | None = None
        self._best = float("-inf")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Count a trial."""
        if self._bar is None:
            self._bar = Progress("tune", self._num_trials, "trials")
        self._best = max(self._best, float(trial.last_result.get("objective", float("-inf"))))
        self._bar.advance(1, best=self._best)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Close the line."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bar": None}


def tune_planner(
    checkpoint: str | Path, out: str | Path, *, search: SearchConfig | None = None, resume: bool = False
) -> dict[str, Any]:
    """Search planner settings and write `best.json` and `trials.json` into `out`.

    Args:
        checkpoint: the checkpoint directory.
        out: directory of the search.
        search: size and protocols of the search; None for that of the checkpoint's config.
        resume: go on with a search that was interrupted.

    Returns:
        What `best.json` holds: `settings`, `objective`, `score_mean` and where they come from.

    Raises:
        CheckpointError: no checkpoint, or a damaged one.
        ConfigError: there is a search already and `resume` is not set, or an unknown protocol.
        ClusterError: too few CPUs, or no trial succeeded.
    """
    checkpoint, out = Path(checkpoint).absolute(), Path(out).absolute()
    planner = load_planner(checkpoint)
    config = planner.config
    search = config.search if search is None else search
    envs = [apply_protocol(protocol, config.env) for protocol in search.protocols]
    path = out / RUN_NAME
    if path.exists() and not resume:
        raise ConfigError(f"{out}: there is a search already; go on with it by --resume, or take another --out")
    out.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    since = time.perf_counter()
    with ray_session():
        require_cpus(1, "a search", "start a larger cluster")
        trainable = tune.with_resources(
            tune.with_parameters(_run_trial, checkpoint=str(checkpoint), config=config, envs=envs, search=search),
            {"cpu": 1},
        )
        space = make_param_space(config)
        if resume and tune.Tuner.can_restore(str(path)):
            tuner = tune.Tuner.restore(str(path), trainable=trainable, param_space=space, resume_errored=True)
        else:
            tuner = _make_tuner(trainable, space, config, search, out)
        results = tuner.fit()
    wall_seconds = time.perf_counter() - since
    trials = [
        {
            "params": result.config,
            "error": None if result.error is None else str(result.error).strip().splitlines()[-1],
            **{
                name: (result.metrics or {}).get(name)
                for name in ("objective", "score_mean", "success_rate", "plan_seconds", "episodes")
            },
        }
        for result in results
    ]
    full = search.num_blocks * search.episodes_per_block * len(envs)
    finished = [t for t in trials if t["objective"] is not None and t["episodes"] == full]
    if not finished:
        raise ClusterError(f"{out}: no trial succeeded; the first error was: {trials[0]['error']}")
    best = max(finished, key=lambda trial: trial["objective"])
    settings = config_to_dict(with_overrides(config, best["params"]).planning)
    record = {
        "settings": settings,
        **{k: best[k] for k in ("objective", "score_mean", "success_rate", "plan_seconds", "episodes")},
        "protocols": list(search.protocols),
        "checkpoint": str(checkpoint),
        "num_trials": len(trials),
        "wall_seconds": wall_seconds,
        "search": config_to_dict(search),
    }
    (out / "trials.json").write_text(json.dumps(trials, indent=2) + "\n")
    (out / "best.json").write_text(json.dumps(record, indent=2) + "\n")
    return record


def _make_tuner(trainable: Any, space: dict[str, Any], config: Config, search: SearchConfig, out: Path) -> tune.Tuner:
    current = config_to_dict(config)["planning"]
    defaults = {name: current[name.removeprefix("planning.")] for name in space}
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="objective",
            mode="max",
            num_samples=search.num_trials,
            max_concurrent_trials=search.max_concurrent_trials,
            # The settings in use come first, so a search never ends below them on its own episodes.
            search_alg=OptunaSearch(points_to_evaluate=[defaults], seed=search.seed),
            scheduler=ASHAScheduler(
                time_attr="training_iteration", max_t=search.num_blocks, grace_period=1, reduction_factor=2
            ),
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"trial_{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=RUN_NAME, storage_path=str(out), verbose=0, callbacks=[_ShownProgress(search.num_trials)]
        ),
    )

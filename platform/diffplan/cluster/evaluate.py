"""Evaluate a checkpoint with parallel actors."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from diffplan.cluster.runtime import count_workers, ray_session, require_cpus
from diffplan.cluster.units import run_units
from diffplan.config import EnvConfig, PlanningConfig, config_to_dict
from diffplan.errors import ConfigError
from diffplan.evaluation.protocol import apply_protocol
from diffplan.evaluation.rollout import RecordedEpisode, evaluate_episodes
from diffplan.evaluation.scores import EpisodeResult, results_to_rows, summarize
from diffplan.planning.loading import load_planner
from diffplan.progress import Progress

EPISODES_PER_UNIT = 25
"""Episodes that an actor plans for at once. Part of the protocol: it fixes which random numbers a plan sees."""
NUM_RECORDED = 8
"""Episodes whose trajectories are kept for drawing."""


@ray.remote(num_cpus=1)
class EvaluationActor:
    """Evaluates blocks of episodes with a planner that it loads once."""

    def __init__(
        self,
        checkpoint: str,
        settings: PlanningConfig | None,
        env: EnvConfig,
        seed: int,
        episodes: int,
        goal: Sequence[float] | None,
    ) -> None:
        torch.set_num_threads(1)
        self._planner = load_planner(checkpoint, settings)
        self._env, self._seed, self._episodes, self._goal = env, seed, episodes, goal

    def run(self, unit: int) -> tuple[list[EpisodeResult], list[RecordedEpisode]]:
        """Evaluate the episodes of one unit; those of the first are recorded."""
        first = unit * EPISODES_PER_UNIT
        episodes = range(first, min(first + EPISODES_PER_UNIT, self._episodes))
        recorded = NUM_RECORDED if unit == 0 else 0
        return evaluate_episodes(
            self._planner, self._env, episodes, seed=self._seed, goal=self._goal, num_recorded=recorded
        )


def evaluate(
    checkpoint: str | Path,
    out: str | Path,
    *,
    protocol: str,
    episodes: int = 100,
    seed: int = 0,
    goal: Sequence[float] | None = None,
    settings: PlanningConfig | None = None,
    num_workers: int | None = None,
) -> dict[str, Any]:
    """Evaluate a checkpoint and write `summary.json`, `episodes.parquet` and `recordings.npz` into `out`.

    Args:
        checkpoint: the checkpoint directory.
        out: directory of the results; replaced if there are some.
        protocol: `maze2d` (fixed goal) or `multi2d` (a goal for each episode).
        episodes: number of episodes.
        seed: seed of the episodes; never overlaps with those of tuning.
        goal: a position that every episode must reach, in place of the protocol's goal.
        settings: how to plan; None for the settings of the checkpoint.
        num_workers: actors, one CPU each; None for as many as there are CPUs.

    Returns:
        The summary.

    Raises:
        ConfigError: unknown protocol, no episodes, or a goal inside a wall.
        CheckpointError: no checkpoint, or a damaged one.
        PlanningError: settings that the model cannot serve.
        ClusterError: too few CPUs, or actors that keep dying.
    """
    checkpoint, out = Path(checkpoint).absolute(), Path(out).absolute()
    for name, value in (("episodes", episodes), ("num_workers", num_workers)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}: expected at least 1, got {value}")
    planner = load_planner(checkpoint, settings)  # raises here, in one line, what would fail in every actor
    env = apply_protocol(protocol, planner.config.env)
    results: list[EpisodeResult] = []
    recorded: list[RecordedEpisode] = []

    def on_done(unit: int, result: tuple[list[EpisodeResult], list[RecordedEpisode]]) -> None:
        results.extend(result[0])
        recorded.extend(result[1])
        progress.advance(len(result[0]), score=float(np.mean([r.score for r in results])))

    with ray_session():
        num_workers = count_workers(num_workers)
        require_cpus(num_workers, f"{num_workers} evaluation workers", "lower --num_workers")
        since = time.perf_counter()
        with Progress("evaluate", episodes, "episodes") as progress:
            run_units(
                range(-(-episodes // EPISODES_PER_UNIT)),
                lambda: EvaluationActor.remote(str(checkpoint), settings, env, seed, episodes, goal),
                num_workers,
                on_done,
            )
        wall_seconds = time.perf_counter() - since
    results.sort(key=lambda result: result.episode)
    summary = summarize(
        results,
        env_id=env.env_id,
        protocol=protocol,
        wall_seconds=wall_seconds,
        config={
            "env": config_to_dict(env),
            "planning": config_to_dict(planner.settings),
            "checkpoint": str(checkpoint),
            "seed": seed,
            "goal": None if goal is None else list(goal),
            "episodes_per_unit": EPISODES_PER_UNIT,
        },
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.json").unlink(missing_ok=True)  # written last: where it is, everything is
    pq.write_table(pa.Table.from_pylist(results_to_rows(results)), out / "episodes.parquet", compression="zstd")
    save_recordings(out / "recordings.npz", recorded)
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def save_recordings(path: Path, recorded: list[RecordedEpisode]) -> None:
    """Write trajectories and plans: arrays `observations_<i>`, `plan_<i>`, `goal_<i>` of the i-th recorded episode."""
    arrays: dict[str, Any] = {}
    for i, episode in enumerate(recorded):
        arrays[f"observations_{i}"] = episode.observations
        arrays[f"plan_{i}"] = episode.plan.observations
        arrays[f"goal_{i}"] = np.asarray(episode.result.goal)
    np.savez_compressed(path, **arrays)

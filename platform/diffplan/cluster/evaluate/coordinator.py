"""Evaluate a policy with parallel actors."""

from __future__ import annotations

import io
import itertools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from diffplan.cluster.evaluate.planner_actor import RemotePlanner, count_planners, spawn_planners
from diffplan.cluster.metrics import count_work
from diffplan.cluster.runtime import (
    ROLLOUT_POOL,
    count_gpus,
    count_workers,
    prefer_pool,
    ray_session,
    require_resources,
)
from diffplan.cluster.store_variables import adopt_variables, find_variables
from diffplan.cluster.units import run_units
from diffplan.cluster.work_meter import meter_work
from diffplan.config import EnvConfig, PlanningConfig, config_to_dict
from diffplan.errors import ConfigError
from diffplan.evaluation.policies import follow_planner
from diffplan.evaluation.protocol import EPISODES_PER_UNIT, apply_protocol, choose_protocol
from diffplan.evaluation.rehearsal import rehearse_episode
from diffplan.evaluation.rollout import RecordedEpisode, evaluate_episodes
from diffplan.evaluation.scores import EpisodeResult, results_to_rows, summarize
from diffplan.evaluation.sources import PolicySource, find_policy
from diffplan.evaluation.unit_results import UnitResults
from diffplan.runs.layout import SUMMARY
from diffplan.runs.progress import Progress
from diffplan.runs.usage import record_usage
from diffplan.storage.opening import open_store
from diffplan.storage.store import Store
from diffplan.tasks.contracts import MakePolicy
from diffplan.tasks.registry import task_of

NUM_RECORDED = 8
"""Episodes whose trajectories are kept for drawing."""


@ray.remote(num_cpus=1)
class EvaluationActor:
    """Evaluates units of episodes with a policy that it loads once, or that gets its plans from a planner actor."""

    def __init__(
        self,
        load: Callable[[], MakePolicy],
        planner: Any | None,
        env: EnvConfig,
        seed: int,
        episodes: int,
        episodes_per_unit: int,
        goal: Sequence[float] | None,
        variables: dict[str, str],
    ) -> None:
        adopt_variables(variables)  # the checkpoint may lie in an object store
        torch.set_num_threads(1)
        self._make_policy = load() if planner is None else follow_planner(RemotePlanner(planner))
        self._env, self._seed, self._goal = env, seed, goal
        self._episodes, self._episodes_per_unit = episodes, episodes_per_unit

    def run(self, unit: int) -> tuple[list[EpisodeResult], list[RecordedEpisode]]:
        """Evaluate the episodes of one unit; those of the first are recorded."""
        first = unit * self._episodes_per_unit
        episodes = range(first, min(first + self._episodes_per_unit, self._episodes))
        recorded = NUM_RECORDED if unit == 0 else 0
        evaluated = evaluate_episodes(
            self._make_policy, self._env, episodes, seed=self._seed, goal=self._goal, num_recorded=recorded
        )
        count_work("evaluate", "episodes", len(episodes))
        return evaluated


def evaluate(
    policy: str | Path | PolicySource,
    out: str | Path,
    *,
    protocol: str | None = None,
    episodes: int = 100,
    seed: int = 0,
    goal: Sequence[float] | None = None,
    settings: PlanningConfig | None = None,
    num_workers: int | None = None,
    num_planners: int | None = None,
    episodes_per_unit: int = EPISODES_PER_UNIT,
    resume: bool = False,
) -> dict[str, Any]:
    """Evaluate a policy and write `summary.json`, `episodes.parquet` and `recordings.npz` into `out`.

    Args:
        policy: the policy, or its name; see `diffplan.evaluation.sources.find_policy`.
        out: directory or URL of the results; replaced if there are some.
        protocol: of the environment's task; needed where the policy could be evaluated under several.
        episodes: number of episodes.
        seed: seed of the episodes; never overlaps with those of tuning.
        goal: a position that every episode must reach, in place of the protocol's goal.
        settings: how to plan, where a planner is named; None for the settings of the checkpoint.
        num_workers: actors that run environments, one CPU each; None for as many as there are CPUs left.
        num_planners: actors that plan for all of them, with one CPU each, on GPUs if there are any; None for one per
            GPU; 0 for none: the actors that run environments then plan for themselves. Policies without a planner need
            none.
        episodes_per_unit: episodes that an actor evaluates at once. Another number changes the random numbers, and so
            the results. Many actors need small units to be busy; few are faster with large ones.
        resume: resume an interrupted evaluation; finished units are kept.

    Returns:
        The summary.

    Raises:
        ConfigError: unknown protocol, no episodes, a goal inside a wall, or to resume another evaluation.
        CheckpointError: no checkpoint, or a damaged one.
        StoreError: the store of a URL cannot be reached.
        PlanningError: settings that the model does not support.
        ClusterError: too few CPUs, or actors or planners that keep dying.
    """
    counts = {"episodes": episodes, "num_workers": num_workers, "episodes_per_unit": episodes_per_unit}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name}: expected at least 1, got {value}")
    if num_planners is not None and num_planners < 0:
        raise ConfigError(f"num_planners: expected at least 0, got {num_planners}")
    # Errors that every actor would meet are raised here, in one line.
    source = policy if isinstance(policy, PolicySource) else find_policy(policy, settings=settings)
    protocol = choose_protocol(protocol, source.env, source.protocols)
    env = apply_protocol(protocol, source.env)
    rehearse_episode(
        env,
        seed=seed,
        goal=goal,
        observation_dim=source.observation_dim,
        make_policy=source.load() if source.load_planner is None else None,
    )
    config = {
        "env": config_to_dict(env),
        "policy": source.name,
        **source.record,
        "seed": seed,
        "goal": None if goal is None else list(goal),
        "episodes_per_unit": episodes_per_unit,
    }
    store = open_store(out)
    store.delete(SUMMARY)  # written last: it marks a complete evaluation
    kept = UnitResults(store, {"protocol": protocol, "episodes": episodes, **config}, resume=resume)
    done = kept.read()
    results = [result for unit in done.values() for result in unit]

    def on_done(unit: int, result: tuple[list[EpisodeResult], list[RecordedEpisode]]) -> None:
        if unit == 0:
            save_recordings(store, result[1])
        kept.write(unit, result[0])
        results.extend(result[0])
        progress.advance(len(result[0]), score=float(np.mean([r.score for r in results])))

    def on_busy(actor: str, unit: int, seconds: float) -> None:
        scores = {"score_mean": float(np.mean([r.score for r in results]))}
        if successes := [r.success for r in results if r.success is not None]:
            scores["success_rate"] = float(np.mean(successes))
        meter.note(actor, min(episodes_per_unit, episodes - unit * episodes_per_unit), seconds, **scores)

    with ray_session():
        units = [unit for unit in range(-(-episodes // episodes_per_unit)) if unit not in done]
        num_planners = count_planners(num_planners) if units and source.load_planner is not None else 0
        num_workers = max(count_workers(None) - num_planners, 1) if num_workers is None else num_workers
        require_resources(
            num_workers + num_planners,
            {"CPU": 1},
            f"{num_workers} evaluation workers and {num_planners} planners",
            {"CPU": "lower --num_workers or --num_planners"},
        )
        planners = [] if source.load_planner is None else spawn_planners(source.load_planner, num_planners)
        take_turns = itertools.cycle(planners or [None])
        since = time.perf_counter()
        try:
            with (
                record_usage(
                    store,
                    "evaluate",
                    cpus=num_workers + num_planners,
                    gpus=min(num_planners, count_gpus()),
                    total=episodes,
                    unit="episodes",
                    initial=len(results),
                ) as usage,
                Progress("evaluate", episodes, "episodes", initial=len(results), on_advance=usage.count) as progress,
                meter_work(store, "evaluate", "episodes", usage, len(results)) as meter,
            ):
                run_units(
                    units,
                    lambda: EvaluationActor.options(**prefer_pool(ROLLOUT_POOL)).remote(
                        source.load,
                        next(take_turns),
                        env,
                        seed,
                        episodes,
                        episodes_per_unit,
                        goal,
                        find_variables(),
                    ),
                    num_workers,
                    on_done,
                    on_busy,
                )
        finally:
            for planner in planners:
                ray.kill(planner)
        wall_seconds = time.perf_counter() - since
    results.sort(key=lambda result: result.episode)
    summary = summarize(
        results,
        env_id=env.env_id,
        protocol=protocol,
        references=task_of(env).references(env),
        wall_seconds=wall_seconds,
        config=config,
    )
    table = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(results_to_rows(results)), table, compression="zstd")
    store.replace("episodes.parquet", table.getvalue().to_pybytes())
    store.replace(SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())
    kept.remove()
    return summary


def save_recordings(store: Store, recorded: list[RecordedEpisode]) -> None:
    """Write trajectories and plans into `recordings.npz`.

    It has the arrays `observations_<i>`, `plan_<i>`, `goal_<i>` of the i-th recorded episode. Plans and goals are empty
    where there are none.
    """
    arrays: dict[str, Any] = {}
    for i, episode in enumerate(recorded):
        arrays[f"observations_{i}"] = episode.observations
        none = np.empty((0, *episode.observations.shape[1:]), dtype=np.float32)
        arrays[f"plan_{i}"] = none if episode.plan is None else episode.plan.observations
        arrays[f"goal_{i}"] = np.asarray(episode.result.goal or [], dtype=np.float64)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    store.replace("recordings.npz", content.getvalue())

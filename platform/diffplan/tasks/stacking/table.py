"""The benchmark of the family: three rows of one model, without each of its ingredients, and what it is compared with.

```
<out>/data/<name>/                       demonstrations, one dataset for each kind of plan
      <model>-seed<n>/                   checkpoints and policies
      evaluation/<protocol>/<method>-seed<n>/summary.json
```

Finished stages are not run again, and an interrupted stage is resumed. The results can be made in parts: rows of an
earlier run in the directory of the results stay where the command makes no new ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from diffplan.behaviors.offline_policy import load_offline_policy
from diffplan.cluster.baselines.offline_rl import train_offline_rl
from diffplan.cluster.evaluate.coordinator import evaluate
from diffplan.cluster.runtime import ray_session
from diffplan.cluster.table_stages import Stages, begin_table, read_training_seconds
from diffplan.config import Config, with_overrides
from diffplan.config.offline_rl import Algorithm, CQLSettings, IQLSettings, OfflineRLSettings
from diffplan.evaluation.protocol import BASELINE_PREFIX
from diffplan.evaluation.sources import PolicySource, find_policy
from diffplan.planning.packaging import package_planner
from diffplan.runs.layout import EVALUATION, SUMMARY, TABLE_BEGUN
from diffplan.runs.stages import read_json_object
from diffplan.storage.opening import open_store
from diffplan.tasks.stacking.presets import PRESETS
from diffplan.tasks.stacking.table_page import METHOD_TITLES, PROTOCOLS, draw_table, format_page
from diffplan.tasks.table import TableRequest, check_request
from diffplan.tasks.table_rows import average_rows, find_interval, make_row, resample_means, write_table

METHODS = tuple(METHOD_TITLES)
SCORES = "scores"
"""Key of a row: the scores of the episodes of each training seed."""
SCRIPT_SCORE = "script_score"
"""Metric of a row: what the script reaches in the same episodes, with as many placements."""
SETTINGS: dict[str, dict[str, Any]] = {
    "planner": {},
    "bare": {"selection.num_candidates": 1, "selection.refine": None, "guidance.scale": 0.0},
    "one_candidate": {"selection.num_candidates": 1},
    "no_guide": {"guidance.scale": 0.0},
    "no_refine": {"selection.refine": None, "selection.num_candidates": 64},
}
"""Planner settings of the methods that share the model of the planner; without `refine`, all drafts are candidates."""
MODELS: dict[str, str] = {
    **dict.fromkeys(SETTINGS, "planner"),
    "no_symmetries": "no_symmetries",
    "no_keyframes": "no_keyframes",
    "joints": "joints",
}
"""The trained model of each method that plans."""
ONLY: dict[str, tuple[str, ...]] = dict.fromkeys(("bc", "iql", "cql", "no_refine"), ("unconditional",))
"""Protocols of methods that are not told what is asked, or differ from the planner only where no end is fixed."""
STEPS_PER_MOVE = 9
"""Steps of 0.05 s of a move, on average and rounded up."""
BASELINE_SETTINGS: dict[Algorithm, OfflineRLSettings] = {
    "iql": IQLSettings(expectile=0.7, inverse_temperature=3.0, normalize_rewards=True),
    "cql": CQLSettings(),
}


@dataclass(frozen=True)
class TableSize:
    """How much work a table is.

    Attributes:
        collection_moves: moves of the arm in each dataset.
        training_steps: of each planner.
        cloning_steps: of each cloned policy.
        baseline_updates: of each algorithm of offline reinforcement learning.
        episodes: evaluation episodes of each training seed.
    """

    collection_moves: int = PRESETS["stacking"].config.collection.num_steps
    training_steps: int = PRESETS["stacking"].config.training.num_steps
    cloning_steps: int = 10_000
    baseline_updates: dict[Algorithm, int] = field(default_factory=lambda: {"iql": 20_000, "cql": 4_000})
    episodes: int = 100


SMOKE = TableSize(
    collection_moves=2_000,
    training_steps=60,
    cloning_steps=60,
    baseline_updates={"iql": 20, "cql": 10},
    episodes=4,
)
"""The smallest size at which every stage really runs."""


def make_config(model: str) -> Config:
    """The experiment of a model of `MODELS`; each differs from the preset in one thing."""
    config = PRESETS["stacking"].config
    if model == "no_symmetries":
        return with_overrides(config, {"windows.symmetries": ()})
    if model == "joints":
        return PRESETS["stacking-joints"].config
    if model == "no_keyframes":  # as many steps of 0.05 s as placements take, 0.3 s apart
        return with_overrides(
            config,
            {
                "env.env_id": "diffplan/StackUnconditional-Fine-v1",
                "env.step_seconds": 0.05,
                "windows.min_horizon": 16,
                "windows.max_horizon": 16,
                "windows.stride": 6,
                "windows.start_every": 1,
                "planning.horizon.min": 16,
                "planning.horizon.max": 16,
            },
        )
    return config


class StackingTable:
    """One model for three rows: a tower, a tower in a given order, and rearranged piles."""

    tasks = PROTOCOLS
    methods = METHODS

    def make(self, request: TableRequest, announce: Callable[[str], None] = lambda line: None) -> list[dict[str, Any]]:
        """Run the stages that are not finished, and return the rows; see `diffplan.tasks.table.Table`.

        Rows have one more key, `SCORES`.
        """
        check_request(request, PROTOCOLS, METHODS)
        size = SMOKE if request.smoke else TableSize()
        if request.episodes is not None:
            size = dataclasses.replace(size, episodes=request.episodes)
        begin_table(request.out, TABLE_BEGUN, {"seed": request.seed, **dataclasses.asdict(size)})
        rows = []
        with ray_session():
            for protocol in request.tasks or PROTOCOLS:
                script = _Run(request, size, 0, announce).score("script", protocol)["score_mean"]
                for method in request.methods or METHODS:
                    if protocol in ONLY.get(method, PROTOCOLS):
                        rows.append(_score(request, size, announce, method, protocol, script))
        return rows

    def write(self, rows: Sequence[dict[str, Any]], directory: Path, command: str) -> Path:
        """Write `stacking.json`, `.md` and `.png` into a directory; returns the path of the page.

        Rows of the table that is there are kept where there are no new ones. Each has its own command.
        """
        return write_table(rows, directory / "stacking", format_page, draw_table)

    def package(self, request: TableRequest, directory: Path) -> dict[str, int]:
        """Write the planner of training seed 0 as a checkpoint to give away, and return its bytes by its name."""
        run = _Run(request, SMOKE if request.smoke else TableSize(), 0, lambda line: None)
        checkpoint = run.find_checkpoint("planner")
        return {"stacking": package_planner(checkpoint, directory / "stacking", make_config("planner").planning)}


def _score(
    request: TableRequest, size: TableSize, announce: Callable[[str], None], method: str, protocol: str, script: float
) -> dict[str, Any]:
    """The row of a method under a protocol, over all training seeds."""
    num_seeds = 1 if method in ("script", "demonstrator") else request.seeds
    rows = [_Run(request, size, seed, announce).score(method, protocol) for seed in range(num_seeds)]
    scores = [row.pop(SCORES) for row in rows]
    row = average_rows(rows)
    row["score_ci95"] = find_interval(resample_means(scores))
    row["metrics"] = {**row["metrics"], SCRIPT_SCORE: script}
    return {**row, SCORES: scores}


class _Run:
    """The stages of one training seed."""

    def __init__(self, request: TableRequest, size: TableSize, seed: int, announce: Callable[[str], None]) -> None:
        self._request, self._size, self._seed = request, size, seed
        self._root, self._announce = request.out.absolute(), announce
        self._stages = Stages(f"training seed {seed}", announce)

    def score(self, method: str, protocol: str) -> dict[str, Any]:
        """The row of a method under a protocol, with its scores."""
        out = self._root / EVALUATION / protocol / f"{method}-seed{self._seed}"
        source, seconds = self._prepare(method)
        if not self._stages.is_done(out / SUMMARY, f"evaluate {method}, {protocol}"):
            evaluate(
                source,
                out,
                protocol=protocol,
                episodes=self._size.episodes,
                seed=self._request.seed,
                resume=True,
            )
        summary = read_json_object(open_store(out), SUMMARY)
        command = f"{self._request.command} --tasks {protocol} --methods {method}"
        row = make_row(summary, task=protocol, method=method, training_seconds=seconds, command=command)
        scores = pq.read_table(out / "episodes.parquet", columns=["score"]).column("score").to_pylist()
        return {**row, SCORES: [round(score, 3) for score in scores]}

    def find_checkpoint(self, model: str) -> Path:
        """Where the checkpoint of a model is."""
        return (self._request.models or self._root) / f"{model}-seed{self._seed}"

    def _prepare(self, method: str) -> tuple[PolicySource, float | None]:
        """The policy to evaluate, and the seconds that its training took."""
        if method in ("script", "demonstrator"):
            return find_policy(f"{BASELINE_PREFIX}{method}", env=make_config("planner").env), None
        if method == "bc":
            checkpoint = self._train("bc", self._make_cloning())
            return find_policy(checkpoint), read_training_seconds(checkpoint)
        if method in ("iql", "cql"):
            return self._train_offline(method)
        model = MODELS[method]
        config = with_overrides(make_config(model), {"training.num_steps": self._size.training_steps})
        checkpoint = self._train(model, config)
        settings = with_overrides(config.planning, SETTINGS.get(method, {}))
        return find_policy(checkpoint, settings=settings), read_training_seconds(checkpoint)

    def _train(self, model: str, config: Config) -> Path:
        out = self.find_checkpoint(model)
        if self._request.models is None:
            config = with_overrides(config, {"training.seed": self._seed})
            what = METHOD_TITLES.get(model, model)
            self._stages.train(config, self._collect(config, model), out, what, cpus_per_worker=1)
        return out

    def _make_cloning(self) -> Config:
        """A cloned policy: the action from the observation, for whatever the demonstrations do next."""
        return with_overrides(
            make_config("planner"),
            {
                "training.objective": "behavior_cloning",
                "training.num_steps": self._size.cloning_steps,
                "windows.columns": "actions_observations",
                "windows.known_columns": (),
                "windows.start_every": 1,
                "windows.deltas": False,
                "planning.controller": "actions",
                "planning.selection.refine": None,
            },
        )

    def _train_offline(self, method: Algorithm) -> tuple[PolicySource, float | None]:
        policy = self.find_checkpoint(method)
        if not self._stages.is_done(policy, f"train {method}"):
            train_offline_rl(
                self._collect(make_config("planner"), "planner"),
                policy,
                algorithm=method,
                num_updates=self._size.baseline_updates[method],
                settings=BASELINE_SETTINGS[method],
                seed=self._seed,
            )
        return find_policy(policy), load_offline_policy(policy).description.training["seconds"]

    def _collect(self, config: Config, model: str) -> Path:
        """The demonstrations: of moves in positions of the cup, of moves in joint angles, or of short steps."""
        name = {"joints": "joints", "no_keyframes": "steps"}.get(model, "moves")
        if self._request.datasets is not None:
            return self._request.datasets / name
        moves = self._size.collection_moves
        num_steps = moves if name != "steps" else STEPS_PER_MOVE * moves
        config = with_overrides(config, {"collection.num_steps": num_steps})
        return Stages(name, self._announce).collect(config, self._root / "data" / name)

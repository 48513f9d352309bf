"""The paper's Table 1 in one command: data, training, search, evaluation and baselines, each stage done once.

```
<out>/<maze>/dataset/ checkpoint/ search/ policies/<method>-<protocol>/ evaluation/<protocol>/<method>/summary.json
      <maze>-seed1/ …   what is trained once more, with training seed 1, on the same data
```

Finished stages are not run again, and an interrupted stage is resumed: run the command again until the table is
complete. Existing data and models can replace a stage.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diffplan.behaviors.offline_policy import load_offline_policy
from diffplan.cluster.baselines.offline_rl import train_offline_rl
from diffplan.cluster.evaluate.coordinator import evaluate
from diffplan.cluster.runtime import ray_session
from diffplan.cluster.table_stages import Stages, begin_table, read_training_seconds
from diffplan.cluster.tune.search import tune_planner
from diffplan.config import CalibrationConfig, Config, EnvConfig, SearchConfig, with_overrides
from diffplan.config.offline_rl import Algorithm
from diffplan.environments import get_episode_limit
from diffplan.evaluation.protocol import apply_protocol
from diffplan.evaluation.scores import normalize_score
from diffplan.evaluation.sources import BASELINE_PREFIX, PolicySource, find_policy
from diffplan.planning.packaging import package_planner
from diffplan.planning.settings import load_settings
from diffplan.runs.layout import CALIBRATION, POLICIES, SUMMARY, TABLE_BEGUN
from diffplan.runs.stages import read_json_object
from diffplan.storage.opening import open_store
from diffplan.tasks.maze2d.environment import get_limit_returns, get_maze, get_reference_returns
from diffplan.tasks.maze2d.table_page import MAZES, METHOD_TITLES, PROTOCOL_TITLES, draw_table, format_page
from diffplan.tasks.registry import get_preset, task_of
from diffplan.tasks.table import ROW_KEYS, TableRequest, check_request
from diffplan.tasks.table_rows import average_rows, make_row
from diffplan.training.companions import fit_companions
from diffplan.tuning.studies import find_study

METHODS = tuple(method for method in METHOD_TITLES if method != "limit")
TRAINED = ("diffuser", "bc", "iql", "cql")
"""Methods whose results depend on the training seed."""


@dataclass(frozen=True)
class TableSize:
    """How much work a table is.

    Attributes:
        episodes: evaluation episodes of each protocol.
        baseline_updates: gradient updates of each algorithm for one goal, and of its goal-conditioned variant. They
            take at least a quarter of an hour of a CPU core for each algorithm and maze.
        selection_episodes: tuning episodes by which the best policy of a training is chosen.
        cloning_steps: training steps of the cloned policy.
        search: size of the search for planner settings.
        num_plans: plans that the horizon model learns from.
    """

    episodes: int = 100
    baseline_updates: dict[Algorithm, tuple[int, int]] = field(
        default_factory=lambda: {"iql": (60_000, 12_000), "cql": (5_000, 5_000)}
    )
    selection_episodes: int = 50
    cloning_steps: int = 10_000
    search: SearchConfig = field(
        default_factory=lambda: SearchConfig(
            num_trials=32, episodes_per_block=25, num_blocks=6, max_concurrent_trials=2
        )
    )
    num_plans: int = 200_000


SMOKE = TableSize(
    episodes=4,
    baseline_updates={"iql": (30, 30), "cql": (10, 10)},
    selection_episodes=2,
    cloning_steps=50,
    search=SearchConfig(num_trials=2, episodes_per_block=2, num_blocks=1, max_concurrent_trials=2),
    num_plans=1_200,
)
"""The smallest size at which every stage really runs."""


@dataclass(frozen=True)
class Plan:
    """The work of a request, after its checks.

    Attributes:
        out: directory of the work.
        mazes: keys of `MAZES`.
        methods: of `METHODS`.
        size: the amount of work.
        seed: of the evaluation episodes.
        seeds: training seeds, counted from 0.
        datasets: directory with a dataset for each maze; None to collect.
        models: directory with a checkpoint for each maze; None to train.
        preset_suffix: ending of the presets' names, `-smoke` for the smallest ones.
        command: command that makes all rows.
    """

    out: Path
    mazes: tuple[str, ...]
    methods: tuple[str, ...]
    size: TableSize
    seed: int
    seeds: int
    datasets: Path | None
    models: Path | None
    preset_suffix: str
    command: str

    @classmethod
    def make(cls, request: TableRequest) -> Plan:
        """The plan of a request; raises `ConfigError` for an unknown maze or method, or a number below 1."""
        check_request(request, tuple(MAZES), METHODS)
        size = SMOKE if request.smoke else TableSize()
        return cls(
            out=request.out.absolute(),
            mazes=request.tasks or (("umaze",) if request.smoke else tuple(MAZES)),
            methods=request.methods or METHODS,
            size=size if request.episodes is None else dataclasses.replace(size, episodes=request.episodes),
            seed=request.seed,
            seeds=request.seeds,
            datasets=request.datasets,
            models=request.models,
            preset_suffix="-smoke" if request.smoke else "",
            command=request.command,
        )


class Maze2DTable:
    """The benchmark of the family: Table 1 of Janner et al. 2022, single and multi-task."""

    tasks = tuple(MAZES)
    methods = METHODS

    def make(self, request: TableRequest, announce: Callable[[str], None] = lambda line: None) -> list[dict[str, Any]]:
        """Run the stages that are not finished, and return the rows; see `diffplan.tasks.table.Table`."""
        plan = Plan.make(request)
        begin(plan)
        rows = []
        with ray_session():
            for maze in plan.mazes:
                runs = [_Run(plan, maze, seed, announce) for seed in range(plan.seeds)]
                for method in plan.methods:
                    # Methods without training do not depend on the training seed.
                    used = runs if method in TRAINED else runs[:1]
                    for protocol in PROTOCOL_TITLES:
                        seeds = [run.score(method, protocol) for run in used]
                        rows.append(average_rows(seeds) if method in TRAINED else {**seeds[0], "seeds": None})
                rows += [row for protocol in PROTOCOL_TITLES for row in runs[0].limit(protocol)]
        return rows

    def write(self, rows: Sequence[dict[str, Any]], directory: Path, command: str) -> Path:
        """Write `table1.json`, `table1.md` and `table1.png` into a directory; returns the path of the page."""
        directory.mkdir(parents=True, exist_ok=True)
        machine = f"{os.cpu_count()} CPU cores, {platform.machine()}"
        record = {"command": command, "machine": machine, "rows": list(rows)}
        (directory / "table1.json").write_text(json.dumps(record, indent=1) + "\n")
        page = directory / "table1.md"
        page.write_text(format_page(rows, command=command, machine=machine, notes=NOTES))
        draw_table(rows).savefig(directory / "table1.png", dpi=110)
        return page

    def package(self, request: TableRequest, directory: Path) -> dict[str, int]:
        """Write the planners of the table as checkpoints to give away, and return the bytes of each."""
        plan = Plan.make(request)
        sizes = {}
        for maze in plan.mazes:
            run = _Run(plan, maze, 0, lambda line: None)
            name = f"maze2d-{maze}"
            settings = load_settings(run.search_directory / "best.json")
            sizes[name] = package_planner(run.checkpoint_directory, directory / name, settings)
        return sizes


def begin(plan: Plan) -> None:
    """Record the request of a table, and refuse to continue one of another seed or size."""
    asked = {"seed": plan.seed, "presets": f"maze2d-*{plan.preset_suffix}", **dataclasses.asdict(plan.size)}
    begin_table(plan.out, TABLE_BEGUN, asked)


NOTES = (
    "All policies but MPPI and the waypoint controller know nothing but the data; those two know the simulator and the "
    "map.",
    "The published table gives MPPI the true simulator too; its settings are unknown. Ours are in docs/baselines.md.",
    "CQL and IQL are trained for each goal of Maze2D, and once, goal-conditioned, for Multi2D, and the best of ten "
    "policies of each training is chosen on tuning episodes. The cloned policy is goal-conditioned and serves both.",
)


class _Run:
    """The stages of one maze with one training seed.

    Attributes:
        checkpoint_directory: of the diffuser with its companions.
        search_directory: of the search for planner settings; all seeds use those found for seed 0.
    """

    def __init__(self, plan: Plan, maze: str, seed: int, announce: Callable[[str], None]) -> None:
        self._plan, self._maze, self._seed, self._announce = plan, maze, seed, announce
        name = maze if seed == 0 else f"{maze}-seed{seed}"
        self._stages = Stages(name, announce)
        self._root = plan.out / name
        preset = get_preset(f"maze2d-{maze}{plan.preset_suffix}")
        self._config: Config = with_overrides(preset, {"training.seed": seed} if seed else {})
        self.search_directory = plan.out / maze / "search"
        models = self._root / "checkpoint" if plan.models is None else plan.models / name
        self.checkpoint_directory = models

    def score(self, method: str, protocol: str) -> dict[str, Any]:
        """The row of a method under a protocol."""
        out = self._root / "evaluation" / protocol / method
        source, seconds = self._prepare(method, protocol)
        if not self._stages.is_done(out / SUMMARY, f"evaluate {method} under {protocol}"):
            evaluate(
                source, out, protocol=protocol, episodes=self._plan.size.episodes, seed=self._plan.seed, resume=True
            )
        summary = read_json_object(open_store(out), SUMMARY)
        command = f"{self._plan.command} --tasks {self._maze} --methods {method}"
        return make_row(summary, task=self._maze, method=method, training_seconds=seconds, command=command)

    def limit(self, protocol: str) -> list[dict[str, Any]]:
        """The row of the physical limit on the same episodes, if any method was evaluated."""
        import pyarrow.parquet as pq

        env = apply_protocol(protocol, self._config.env)
        compute = get_limit_returns(env)
        episodes = self._root / "evaluation" / protocol / self._plan.methods[0] / "episodes.parquet"
        path = self._root / "evaluation" / protocol / "limit.json"
        if compute is None:
            return []
        if not self._stages.is_done(path, f"compute the limit under {protocol}"):
            table = pq.read_table(episodes, columns=["start", "goal"]).to_pydict()
            returns = compute(np.array(table["start"]), np.array(table["goal"]), get_episode_limit(env))
            scores = [normalize_score(float(value), get_reference_returns(env)) for value in returns]
            path.write_text(json.dumps({"score_mean": float(np.mean(scores)), "episodes": len(scores)}) + "\n")
        found = read_json_object(open_store(path.parent), path.name)
        command = f"{self._plan.command} --tasks {self._maze}"
        named = {"protocol": protocol, "task": self._maze, "method": "limit", "command": command}
        return [{**dict.fromkeys(ROW_KEYS), **named, **{name: found[name] for name in ("score_mean", "episodes")}}]

    def _prepare(self, method: str, protocol: str) -> tuple[PolicySource, float | None]:
        """The policy to evaluate, and the seconds that its training took."""
        if method == "diffuser":
            checkpoint = self._checkpoint()
            settings = load_settings(self._search() / "best.json")
            return find_policy(checkpoint, settings=settings), read_training_seconds(checkpoint)
        if method == "bc":
            checkpoint = self._clone()
            return find_policy(checkpoint), read_training_seconds(checkpoint)
        if method in ("iql", "cql"):
            policy = self._policy(method, protocol)
            return find_policy(policy), load_offline_policy(policy).description.training["seconds"]
        return find_policy(f"{BASELINE_PREFIX}{method}", env=self._config.env), None

    def _dataset(self) -> Path:
        if self._plan.datasets is not None:
            return self._plan.datasets / self._maze
        return self._stages.collect(self._config, self._plan.out / self._maze / "dataset")

    def _checkpoint(self) -> Path:
        """The diffuser with its companions."""
        out = self.checkpoint_directory
        if self._plan.models is not None:
            return out
        self._stages.train(self._config, self._dataset(), out, "the diffuser")
        if not self._stages.is_done(out / CALIBRATION, "calibrate"):
            fit_companions(out, calibration=CalibrationConfig(num_plans=self._plan.size.num_plans))
        return out

    def _clone(self) -> Path:
        """The goal-conditioned cloned policy."""
        training = dataclasses.replace(
            self._config.training,
            objective="behavior_cloning",
            num_steps=self._plan.size.cloning_steps,
            batch_size=256,
            checkpoint_interval=self._plan.size.cloning_steps,
        )
        config = dataclasses.replace(self._config, training=training)
        out = self._root / POLICIES / "bc"
        self._stages.train(config, self._dataset(), out, "the cloned policy")
        return out

    def _search(self) -> Path:
        """Planner settings from tuning episodes of both protocols."""
        out = self.search_directory
        if not self._stages.is_done(out / "best.json", "search planner settings"):
            study = find_study("thorough", task_of(self._config.env))
            checkpoint = _Run(self._plan, self._maze, 0, self._announce)._checkpoint()
            tune_planner(checkpoint, out, study=study, search=self._plan.size.search, resume=out.exists())
        return out

    def _policy(self, algorithm: Algorithm, protocol: str) -> Path:
        """A policy of offline reinforcement learning."""
        out = self._root / POLICIES / f"{algorithm}-{protocol}"
        if self._stages.is_done(out, f"train {algorithm} for {protocol}"):
            return out
        single, conditioned = self._plan.size.baseline_updates[algorithm]
        goal = self._fixed_goal() if protocol == "maze2d" else None
        return train_offline_rl(
            self._dataset(),
            out,
            algorithm=algorithm,
            goal=goal,
            num_updates=conditioned if goal is None else single,
            num_selection_episodes=self._plan.size.selection_episodes,
            protocol=protocol,
            seed=self._seed,
        )

    def _fixed_goal(self) -> list[float]:
        env: EnvConfig = self._config.env
        maze = get_maze(env)
        assert maze is not None
        return [float(value) for value in maze.goal_cell]

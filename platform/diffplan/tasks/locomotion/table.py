"""The benchmark of the family: planners and what they are compared with, on the same data, in one command.

```
<out>/<dataset>/dataset/ (or behavior/dataset/) checkpoint/ search/ search_plain/ policies/<method>/
      <dataset>/evaluation/<protocol>/<method>/summary.json
      <dataset>-seed1/ …   what is trained once more, with training seed 1, on the same data
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
from diffplan.cluster.baselines.online_rl import DATASET, POLICY, train_online
from diffplan.cluster.evaluate.coordinator import evaluate
from diffplan.cluster.runtime import ray_session
from diffplan.cluster.table_stages import Stages, begin_table, read_training_seconds
from diffplan.cluster.tune.search import tune_planner
from diffplan.config import Config, PlanningConfig, SearchConfig, with_overrides
from diffplan.config.offline_rl import Algorithm, CQLSettings, IQLSettings, OfflineRLSettings
from diffplan.data.format.dataset import open_dataset
from diffplan.evaluation.protocol import apply_protocol
from diffplan.evaluation.scores import normalize_score
from diffplan.evaluation.sources import PolicySource, find_policy
from diffplan.planning.packaging import package_planner
from diffplan.planning.settings import load_settings
from diffplan.runs.layout import BEST, CALIBRATION, EVALUATION, POLICIES, SUMMARY, TABLE_BEGUN
from diffplan.runs.stages import read_json_object
from diffplan.storage.opening import open_store
from diffplan.tasks.locomotion.environment import get_reference_returns
from diffplan.tasks.locomotion.presets import DATASETS, PRESETS, REPLAYS, ROBOTS
from diffplan.tasks.locomotion.table_page import METHOD_TITLES, draw_table, format_page
from diffplan.tasks.registry import task_of
from diffplan.tasks.table import ROW_KEYS, TableRequest, check_request
from diffplan.tasks.table_rows import average_rows, find_interval, make_row, resample_means, write_table
from diffplan.training.companions import fit_companions
from diffplan.tuning.studies import find_study

TASKS = tuple(f"{robot}-{data}" for data in DATASETS for robot in ROBOTS)
METHODS = tuple(METHOD_TITLES)
SCORES = "scores"
"""Key of a row: the scores of the episodes of each training seed."""
BASELINE_SETTINGS: dict[Algorithm, OfflineRLSettings] = {
    "iql": IQLSettings(expectile=0.7, inverse_temperature=3.0, normalize_rewards=True),
    "cql": CQLSettings(),
}
"""Settings of the authors for locomotion (Kostrikov et al. 2021, Kumar et al. 2020)."""


@dataclass(frozen=True)
class TableSize:
    """How much work a table is.

    Attributes:
        collection_steps: steps of each dataset.
        replay_steps: steps of the datasets that are replay buffers.
        training_steps: of each planner.
        cloning_steps: of each cloned policy.
        baseline_updates: of each algorithm of offline reinforcement learning.
        episodes: evaluation episodes of each training seed.
        search: size of each search for planner settings.
    """

    collection_steps: int = 1_000_000
    replay_steps: int = 200_000
    training_steps: int = 20_000
    cloning_steps: int = 10_000
    baseline_updates: dict[Algorithm, int] = field(default_factory=lambda: {"iql": 50_000, "cql": 8_000})
    episodes: int = 100
    search: SearchConfig = field(
        default_factory=lambda: SearchConfig(num_trials=12, episodes_per_block=16, num_blocks=2)
    )


SMOKE = TableSize(
    collection_steps=6_000,
    replay_steps=6_000,
    training_steps=60,
    cloning_steps=60,
    baseline_updates={"iql": 20, "cql": 10},
    episodes=4,
    search=SearchConfig(num_trials=2, episodes_per_block=2, num_blocks=1),
)
"""The smallest size at which every stage really runs."""


@dataclass(frozen=True)
class Plan:
    """The work of a request, after its checks.

    Attributes:
        request: what to make.
        datasets: names of the presets, one for each dataset.
        methods: of `METHODS`.
        size: the amount of work.
    """

    request: TableRequest
    datasets: tuple[str, ...]
    methods: tuple[str, ...]
    size: TableSize

    @classmethod
    def make(cls, request: TableRequest) -> Plan:
        """The plan of a request; raises `ConfigError` for an unknown dataset or method, or a number below 1."""
        check_request(request, TASKS, METHODS)
        size = SMOKE if request.smoke else TableSize()
        if request.episodes is not None:
            size = dataclasses.replace(size, episodes=request.episodes)
        datasets = request.tasks or (("hopper-medium",) if request.smoke else TASKS)
        return cls(request=request, datasets=datasets, methods=request.methods or METHODS, size=size)


class LocomotionTable:
    """Three robots, and datasets of different quality for each."""

    tasks = TASKS
    methods = METHODS

    def make(self, request: TableRequest, announce: Callable[[str], None] = lambda line: None) -> list[dict[str, Any]]:
        """Run the stages that are not finished, and return the rows; see `diffplan.tasks.table.Table`.

        Rows have one more key, `SCORES`.
        """
        plan = Plan.make(request)
        begin_table(request.out, TABLE_BEGUN, {"seed": request.seed, **dataclasses.asdict(plan.size)})
        rows = []
        with ray_session():
            for dataset in plan.datasets:
                runs = [_Run(plan, dataset, seed, announce) for seed in range(request.seeds)]
                for method in plan.methods:
                    if method == "behavior":
                        rows.append(runs[0].describe_behavior())
                        continue
                    seeds = [run.score(method) for run in runs]
                    scores = [row.pop(SCORES) for row in seeds]
                    row = average_rows(seeds)
                    row["score_ci95"] = find_interval(resample_means(scores))
                    rows.append({**row, SCORES: scores})
        return rows

    def write(self, rows: Sequence[dict[str, Any]], directory: Path, command: str) -> Path:
        """Write `locomotion.json`, `.md` and `.png` into a directory; returns the path of the page.

        Rows of the table that is there are kept where there are no new ones. Each has its own command.
        """
        return write_table(rows, directory / "locomotion", format_page, draw_table)

    def package(self, request: TableRequest, directory: Path) -> dict[str, int]:
        """Write the planners of medium data as checkpoints to give away, and return the bytes of each."""
        plan = Plan.make(request)
        sizes = {}
        for dataset in plan.datasets:
            run = _Run(plan, dataset, 0, lambda line: None)
            robot, _, data = dataset.partition("-")
            if data == "medium":
                settings = load_settings(run.search_directory / BEST)
                sizes[robot] = package_planner(run.checkpoint_directory, directory / robot, settings)
        return sizes


class _Run:
    """The stages of one dataset with one training seed.

    Attributes:
        checkpoint_directory: of the planner with its companions.
        search_directory: of the search for planner settings, which all training seeds share.
    """

    def __init__(self, plan: Plan, dataset: str, seed: int, announce: Callable[[str], None]) -> None:
        self._plan, self._dataset_name, self._seed, self._announce = plan, dataset, seed, announce
        name = dataset if seed == 0 else f"{dataset}-seed{seed}"
        request = plan.request
        self._stages = Stages(name, announce)
        self._root = request.out.absolute() / name
        self._config: Config = with_overrides(
            PRESETS[dataset].config,
            {
                "collection.num_steps": plan.size.collection_steps,
                "training.num_steps": plan.size.training_steps,
                "training.seed": seed,
            },
        )
        self._protocol = dataset.partition("-")[2]
        self.search_directory = request.out.absolute() / dataset / "search"
        self.checkpoint_directory = self._root / "checkpoint" if request.models is None else request.models / name

    def describe_behavior(self) -> dict[str, Any]:
        """The row of the policies that collected the data, from the returns of its episodes."""
        dataset = open_dataset(self._dataset())
        references = get_reference_returns(apply_protocol(self._protocol, self._config.env))
        scores = [normalize_score(float(r), references) for r in dataset.episodes.column("undiscounted_return")]
        lengths = dataset.episodes.length
        return {
            **dict.fromkeys(ROW_KEYS),
            "protocol": self._protocol,
            "task": self._dataset_name,
            "method": "behavior",
            "score_mean": sum(scores) / len(scores),
            "score_ci95": find_interval(resample_means([scores])),
            "metrics": {"length": float(lengths.mean())},
            "episodes": len(scores),
            "settings": {"behavior": self._describe_behavior(), "num_steps": dataset.num_steps},
            "command": self._describe_command("behavior"),
        }

    def _describe_behavior(self) -> str:
        if self._dataset_name in REPLAYS:
            return "replay buffer of soft actor-critic"
        return self._config.collection.behavior

    def score(self, method: str) -> dict[str, Any]:
        """The row of a method, with its scores."""
        out = self._root / EVALUATION / self._protocol / method
        source, seconds = self._prepare(method)
        if not self._stages.is_done(out / SUMMARY, f"evaluate {method}"):
            evaluate(
                source,
                out,
                protocol=self._protocol,
                episodes=self._plan.size.episodes,
                seed=self._plan.request.seed,
                resume=True,
            )
        summary = read_json_object(open_store(out), SUMMARY)
        row = make_row(
            summary,
            task=self._dataset_name,
            method=method,
            training_seconds=seconds,
            command=self._describe_command(method),
        )
        scores = pq.read_table(out / "episodes.parquet", columns=["score"]).column("score").to_pylist()
        return {**row, SCORES: [round(score, 3) for score in scores]}

    def _describe_command(self, method: str) -> str:
        return f"{self._plan.request.command} --tasks {self._dataset_name} --methods {method}"

    def _prepare(self, method: str) -> tuple[PolicySource, float | None]:
        """The policy to evaluate, and the seconds that its training took."""
        if method in ("planner", "planner_plain"):
            checkpoint = self._checkpoint()
            settings = load_settings(self._search(method) / BEST)
            return find_policy(checkpoint, settings=settings), read_training_seconds(checkpoint)
        if method in ("bc", "bc_best"):
            checkpoint = self._clone(method, best_share=0.2 if method == "bc_best" else 1.0)
            return find_policy(checkpoint), read_training_seconds(checkpoint)
        assert method in ("iql", "cql")
        policy = self._root / POLICIES / method
        if not self._stages.is_done(policy, f"train {method}"):
            train_offline_rl(
                self._dataset(),
                policy,
                algorithm=method,
                num_updates=self._plan.size.baseline_updates[method],
                settings=BASELINE_SETTINGS[method],
                seed=self._seed,
            )
        return find_policy(policy), load_offline_policy(policy).description.training["seconds"]

    def _dataset(self) -> Path:
        if self._plan.request.datasets is not None:
            return self._plan.request.datasets / self._dataset_name
        root = self._plan.request.out.absolute() / self._dataset_name
        if self._dataset_name not in REPLAYS:
            return self._stages.collect(self._config, root / "dataset")
        if not self._stages.is_done(root / "behavior" / POLICY, "train a policy by soft actor-critic"):
            train_online(self._config.env, root / "behavior", num_steps=self._plan.size.replay_steps, resume=True)
        return root / "behavior" / DATASET

    def _checkpoint(self) -> Path:
        """The planner with its companions."""
        out = self.checkpoint_directory
        if self._plan.request.models is not None:
            return out
        self._stages.train(self._config, self._dataset(), out, "the planner", cpus_per_worker=1)
        if not self._stages.is_done(out / CALIBRATION, "calibrate"):
            fit_companions(out, settings=self._plan_with_value(), seed=self._seed)
        return out

    def _plan_with_value(self) -> PlanningConfig:
        """The settings of the preset, with a value to weigh candidates by."""
        given = {"guidance.value": "plan", "selection.rule": "soft"}
        return with_overrides(self._config.planning, given)

    def _clone(self, method: str, *, best_share: float) -> Path:
        """A cloned policy, of all episodes or of the best ones."""
        training = dataclasses.replace(
            self._config.training,
            objective="behavior_cloning",
            num_steps=self._plan.size.cloning_steps,
            checkpoint_interval=self._plan.size.cloning_steps,
            return_weight=0.0,
        )
        windows = dataclasses.replace(self._config.windows, best_share=best_share)
        config = dataclasses.replace(self._config, training=training, windows=windows)
        out = self._root / POLICIES / method
        self._stages.train(config, self._dataset(), out, METHOD_TITLES[method], cpus_per_worker=1)
        return out

    def _search(self, method: str) -> Path:
        """Planner settings from tuning episodes, the same for all training seeds; with or without a value."""
        has_value = method == "planner"
        out = self.search_directory if has_value else self.search_directory.with_name("search_plain")
        what = "with" if has_value else "without"
        if not self._stages.is_done(out / BEST, f"search planner settings {what} a value"):
            settings = self._plan_with_value()
            if not has_value:
                settings = with_overrides(settings, {"guidance.value": None, "selection.rule": "mean"})
            num_seeds, size = self._plan.request.seeds, self._plan.size.search
            episodes = -(-size.episodes_per_block // num_seeds)
            search = dataclasses.replace(size, protocols=(self._protocol,), episodes_per_block=episodes)
            runs = [_Run(self._plan, self._dataset_name, seed, self._announce) for seed in range(num_seeds)]
            checkpoints = [run._checkpoint() for run in runs]
            tune_planner(
                checkpoints[0],
                out,
                others=checkpoints[1:],
                settings=settings,
                study=find_study("jumps" if has_value else "plain", task_of(self._config.env)),
                search=search,
                resume=out.exists(),
            )
        return out

"""Read the contents of a run directory for its report. Missing parts are None or empty."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diffplan.checkpoint import CONFIG, Checkpoint, load_checkpoint
from diffplan.config import Config, EnvConfig, PlanningConfig, config_from_dict
from diffplan.data.format.dataset import TrajectoryDataset, open_dataset
from diffplan.data.format.manifest import MANIFEST_NAME
from diffplan.errors import DataError
from diffplan.evaluation.protocol import list_protocols
from diffplan.files import parse_json, read_arrays, read_file
from diffplan.runs.layout import CHECKPOINT, DATASET, EVALUATION, PIPELINE, SEARCH, SUMMARY, TENSORBOARD
from diffplan.runs.records import Best, Importances, Pareto, Pipeline, Summary, Trial, check
from diffplan.storage.opening import open_store
from diffplan.storage.store import LocalStore
from diffplan.tasks.contracts import Figures, PublishedScore
from diffplan.tasks.registry import DEFAULT_TASK, find_task, make_experiment_figures, make_figures, task_of
from diffplan.tasks.task import Task

MAX_CURVE_POINTS = 1_000
MAX_OBSERVATIONS = 1_000_000
MAX_EPISODES = 1_000_000
"""Episodes of an evaluation."""
SUMMARY_KEYS = (
    *("env_id", "protocol", "episodes", "references", "config"),
    *("score_mean", "score_ci95", "success_rate", "success_ci95"),
)
"""Keys of the summary of an evaluation that the report shows."""


@dataclass(frozen=True)
class Recording:
    """A recorded episode: float[steps, observation_dim] executed and planned, and the goal's position."""

    observations: np.ndarray
    plan: np.ndarray
    goal: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """The output of an evaluation: its summary, a row for each episode, and recordings of the first episodes."""

    summary: dict[str, Any]
    episodes: list[dict[str, Any]]
    recordings: list[Recording]

    @property
    def env(self) -> EnvConfig:
        """The environment under its protocol."""
        return config_from_dict(EnvConfig, self.summary["config"].get("env") or {"env_id": self.summary["env_id"]})


@dataclass(frozen=True)
class Search:
    """The output of a search; see `diffplan.report.search_files`."""

    best: dict[str, Any]
    trials: list[dict[str, Any]]
    importances: dict[str, dict[str, float]] = field(default_factory=dict)
    pareto: dict[str, Any] | None = None

    @property
    def full_episodes(self) -> int:
        """Episodes of a full trial."""
        return int(self.best["episodes"])


@dataclass(frozen=True)
class Curve:
    """A scalar over training steps."""

    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class RunContents:
    """The contents of a run for its report.

    Attributes:
        path: the run directory; for a run in an object store, derived from its URL.
        dataset: the dataset.
        checkpoint: the checkpoint.
        curves: scalars of the training by name.
        evaluations: evaluations by protocol.
        search: the search of planner settings.
        pipeline: the record of the pipeline.
        env: the environment, if a part names one.
        figures: the figures of the environment; None without an environment.
        task: the task of the environment.
        has_references: whether scores are normalised.
    """

    path: Path
    dataset: TrajectoryDataset | None
    checkpoint: Checkpoint | None
    curves: dict[str, Curve]
    evaluations: dict[str, Evaluation]
    search: Search | None
    pipeline: dict[str, Any]
    env: EnvConfig | None
    figures: Figures | None
    task: Task
    has_references: bool

    @property
    def config(self) -> Config | None:
        """The experiment."""
        return self.checkpoint.config if self.checkpoint else None

    @property
    def protocols(self) -> list[str]:
        """Protocols of the experiment, and other evaluated protocols."""
        config = self.config
        own = self.task.protocols if config is None else list_protocols(config.env, config.search.protocols)
        return list(dict.fromkeys([*own, *self.evaluations]))

    @property
    def stride(self) -> int:
        """Environment steps between two steps of a plan."""
        return self.config.windows.stride if self.config else 1

    @property
    def score_word(self) -> str:
        """The name of the scores of evaluations."""
        return "score" if self.has_references else "return"

    def title_of(self, protocol: str) -> str:
        """The title of a protocol on the page."""
        known = self.task.protocols.get(protocol)
        return known.title if known else protocol

    def describe_protocol(self, protocol: str) -> str:
        """The title and the description of a protocol."""
        known = self.task.protocols.get(protocol)
        return f"{known.title} — {known.note}" if known and known.note else self.title_of(protocol)

    def list_published(self, protocol: str) -> tuple[PublishedScore, ...]:
        """Published scores for a protocol in the environment that was evaluated; none for a goal of the user's own."""
        evaluation = self.evaluations.get(protocol)
        env = self.env if evaluation is None else evaluation.env
        is_own_goal = evaluation is not None and evaluation.summary["config"].get("goal") is not None
        return () if env is None or is_own_goal else self.task.published(env, protocol)

    @property
    def total_seconds(self) -> float | None:
        """Total seconds of all stages, if recorded."""
        stages = self.pipeline.get("stages") or []
        return sum(float(stage["seconds"]) for stage in stages) if stages else None

    @property
    def settings(self) -> PlanningConfig | None:
        """The final planner settings of the run: those of its evaluations, its search or its checkpoint."""
        found = [e.summary.get("config", {}).get("planning") for e in self.evaluations.values()]
        found += [self.search.best.get("settings")] if self.search else []
        for values in found:
            if values:
                return config_from_dict(PlanningConfig, values)
        return self.config.planning if self.config else None


def read_run(where: str | Path) -> RunContents:
    """Read a run directory.

    Args:
        where: directory or URL. From a URL, results are copied to this machine to be read; the dataset and the
            checkpoint are read as usual.

    Raises:
        DataError: there is no part of a run, or a part is damaged.
        CheckpointError: the checkpoint is damaged.
        ConfigError: the environment cannot be made on this machine.
        StoreError: the store of a URL cannot be reached.
    """
    store = open_store(where)
    if isinstance(store, LocalStore):
        return _read_run(Path(where), str(where))
    with tempfile.TemporaryDirectory(prefix="diffplan-") as directory:
        parts = ["", SEARCH, TENSORBOARD, *store.list_directories(EVALUATION)]
        for part in parts:
            for stored in store.list(part):
                path = Path(directory) / stored.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(store.read(stored.name))
        return _read_run(Path(directory), store.uri)


def _read_run(run: Path, where: str) -> RunContents:
    """Read a run with results in a directory, and dataset and checkpoint at a path or URL."""
    has_dataset, has_checkpoint = (
        name in {stored.name for stored in open_store(f"{where}/{part}").list("")}
        for part, name in ((DATASET, MANIFEST_NAME), (CHECKPOINT, CONFIG))
    )
    dataset = open_dataset(f"{where}/{DATASET}") if has_dataset else None
    checkpoint = load_checkpoint(f"{where}/{CHECKPOINT}") if has_checkpoint else None
    evaluations = {
        protocol: _read_evaluation(run / EVALUATION / protocol) for protocol in _order_protocols(run / EVALUATION)
    }
    search = _read_search(run / SEARCH) if (run / SEARCH / "best.json").is_file() else None
    curves = _read_curves(run / TENSORBOARD)
    if not (dataset or checkpoint or evaluations or search or curves):
        raise DataError(
            f"{where}: expected a pipeline run (dataset/, checkpoint/, evaluation/ …), got {_describe(run)}"
        )
    env = _find_env(dataset, checkpoint, evaluations)
    path = run / PIPELINE
    pipeline = check(Pipeline, _read_object(path), str(path)) if path.is_file() else {}
    return RunContents(
        path=Path(where),
        dataset=dataset,
        checkpoint=checkpoint,
        curves=curves,
        evaluations=evaluations,
        search=search,
        pipeline=pipeline,
        env=env,
        figures=make_experiment_figures(checkpoint.config) if checkpoint else make_figures(env) if env else None,
        task=task_of(env) if env else find_task(DEFAULT_TASK),
        has_references=any(evaluation.summary["references"] for evaluation in evaluations.values()),
    )


def sample_observations(dataset: TrajectoryDataset) -> np.ndarray:
    """Observations float[rows, observation_dim] of at most about a million rows, from evenly spaced shards."""
    rows_per_shard = max(dataset.num_steps // len(dataset.shards), 1)
    num_shards = int(np.clip(MAX_OBSERVATIONS // rows_per_shard, 1, len(dataset.shards)))
    indices = np.unique(np.linspace(0, len(dataset.shards) - 1, num_shards).round().astype(int))
    shards = [dataset.shards[i] for i in indices]
    stride = max(sum(shard.num_rows for shard in shards) // MAX_OBSERVATIONS, 1)
    return np.concatenate([dataset.column(shard, "observation")[::stride] for shard in shards])


def _find_env(
    dataset: TrajectoryDataset | None, checkpoint: Checkpoint | None, evaluations: dict[str, Evaluation]
) -> EnvConfig | None:
    if dataset:
        return dataset.env
    if checkpoint:
        return checkpoint.config.env
    for evaluation in evaluations.values():
        return evaluation.env
    return None


def _order_protocols(directory: Path) -> list[str]:
    """Protocols with a finished evaluation, by name."""
    return sorted(path.parent.name for path in directory.glob(f"*/{SUMMARY}"))


def _describe(run: Path) -> str:
    if not run.exists():
        return "nothing there"
    if not run.is_dir():
        return "a file"
    names = sorted(path.name for path in run.iterdir())
    return f"a directory with {', '.join(names[:4])}{' …' if len(names) > 4 else ''}" if names else "an empty directory"


def _read_json(path: Path) -> Any:
    try:
        return parse_json(read_file(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected JSON, got something else ({error}); run its stage again") from None


def _read_object(path: Path, *required: str) -> dict[str, Any]:
    values = _read_json(path)
    lacking = [name for name in required if name not in values] if isinstance(values, dict) else ["a JSON object"]
    if lacking:
        raise DataError(f"{path}: expected {lacking[0]} in it, got none; run its stage again")
    return values


def _read_evaluation(directory: Path) -> Evaluation:
    summary = check(Summary, _read_object(directory / SUMMARY, *SUMMARY_KEYS), str(directory / SUMMARY))
    if summary["success_rate"] is not None and summary["success_ci95"] is None:
        raise DataError(f"{directory / SUMMARY}: expected success_ci95 beside success_rate, got none; evaluate again")
    episodes, recordings = directory / "episodes.parquet", directory / "recordings.npz"
    try:
        return Evaluation(
            summary,
            _read_episodes(episodes) if episodes.is_file() else [],
            _read_recordings(recordings) if recordings.is_file() else [],
        )
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise DataError(f"{directory}: expected results of an evaluation, got damaged files ({error})") from None


def _read_episodes(path: Path) -> list[dict[str, Any]]:
    num_rows = pq.read_metadata(path).num_rows
    if num_rows > MAX_EPISODES:  # equal rows take no room in the file, but they do here
        raise ValueError(f"{path.name} claims {num_rows} episodes, expected at most {MAX_EPISODES}")
    table = pq.read_table(path)
    for name in ("episode", "length"):
        if not pa.types.is_integer(table.schema.field(name).type) or table.column(name).null_count:
            raise ValueError(f"{path.name} has the {name} of an episode as {table.schema.field(name).type}")
    kind = table.schema.field("time_to_goal_steps").type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        raise ValueError(f"{path.name} has time_to_goal_steps as {kind}")
    return table.to_pylist()


def _read_recordings(path: Path) -> list[Recording]:
    arrays = read_arrays(path)
    count = sum(name.startswith("goal_") for name in arrays)
    found = [Recording(arrays[f"observations_{i}"], arrays[f"plan_{i}"], arrays[f"goal_{i}"]) for i in range(count)]
    for recording in found:
        for array, ndim in ((recording.observations, 2), (recording.plan, 2), (recording.goal, 1)):
            if array.ndim != ndim or array.dtype.kind not in "fiu":
                raise ValueError(f"{path.name} has an array of shape {array.shape} and type {array.dtype}")
    return found


def _read_search(directory: Path) -> Search:
    paths = {name: directory / f"{name}.json" for name in ("best", "trials", "importances", "pareto")}
    best = check(Best, _read_object(paths["best"], "settings", "objective", "episodes"), str(paths["best"]))
    search = Search(
        best,
        check(list[Trial], _read_json(paths["trials"]), str(paths["trials"])) if paths["trials"].is_file() else [],
        check(Importances, _read_object(paths["importances"]), str(paths["importances"]))
        if paths["importances"].is_file()
        else {},
        check(Pareto, _read_object(paths["pareto"], "objectives", "points", "best"), str(paths["pareto"]))
        if paths["pareto"].is_file()
        else None,
    )
    _check_trials(search, paths["trials"])
    return search


def _check_trials(search: Search, path: Path) -> None:
    """Raise `DataError` unless finished trials have what the page shows of them, and a front is one of these trials."""
    cure = "run its stage again"
    for trial in search.trials:
        if trial.get("objective") is not None and (trial.get("episodes") is None or "params" not in trial):
            raise DataError(f"{path}: expected params and episodes of every finished trial, got none; {cure}")
    if search.pareto is None:
        return
    full = [trial for trial in search.trials if trial.get("is_full")]
    for trial in full:
        if any(not isinstance(trial.get(metric), int | float) for metric in search.pareto["objectives"]):
            raise DataError(f"{path}: expected both objectives of every full trial, got others; {cure}")
    known, named = {trial.get("trial") for trial in full}, [search.pareto["best"]]
    named += [point.get("trial") for point in search.pareto["points"]]
    if unknown := [number for number in named if number not in known]:
        raise DataError(f"{path}: expected the trial {unknown[0]} that is on the front, got none; {cure}")


def _read_curves(directory: Path) -> dict[str, Curve]:
    files = list(directory.glob("events.out.tfevents.*"))
    if not files:
        return {}
    for path in files:
        if not path.is_file():  # TensorBoard would wait for a pipe
            raise DataError(f"{path}: expected a file of TensorBoard, got a pipe, device or directory; delete it")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # late: it takes a second

    events = EventAccumulator(str(directory), size_guidance={"scalars": MAX_CURVE_POINTS, "images": 1})
    events.Reload()
    curves = {}
    for name in events.Tags()["scalars"]:
        # A resumed run logs some steps twice; the later one counts.
        points = {event.step: event.value for event in events.Scalars(name)}
        curves[name] = Curve(sorted(points), [points[step] for step in sorted(points)])
    return curves

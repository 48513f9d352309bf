"""Run a study with Ray Tune: Optuna proposes settings, ASHA stops bad trials early.

The fidelity of a trial is its number of evaluation episodes, and of training steps. Trials are scored on tuning
episodes, which are never among those of an evaluation. The search is kept in one file (`diffplan.tuning.journal`), and
resumed from it.
"""

from __future__ import annotations

import logging
import math
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from diffplan.checkpoint import CONFIG, load_checkpoint
from diffplan.cluster.runtime import count_gpus, count_workers, ray_session, require_resources
from diffplan.cluster.store_variables import find_variables
from diffplan.cluster.tune.proposals import JournalSearcher, SearchProgress
from diffplan.cluster.tune.storage import SearchStorage, open_search, read_begun_at
from diffplan.cluster.tune.trials import run_planner_trial, run_training_trial
from diffplan.config import Config, EnvConfig, PlanningConfig, SearchConfig, config_to_dict
from diffplan.config.study import Study
from diffplan.data.format.dataset import open_dataset, write_snapshot
from diffplan.errors import ClusterError, ConfigError
from diffplan.evaluation.protocol import apply_protocol, choose_protocols
from diffplan.evaluation.rehearsal import rehearse_episode
from diffplan.evaluation.scores import find_metric
from diffplan.planning.loading import load_planner
from diffplan.planning.planner import with_settings
from diffplan.report.search_files import write_search
from diffplan.runs.usage import record_usage
from diffplan.seeding import Stream
from diffplan.tasks.pretrained import PREFIX
from diffplan.tasks.registry import task_of
from diffplan.training.batches import index_windows
from diffplan.training.conditions import check_condition
from diffplan.tuning.journal import SearchJournal
from diffplan.tuning.metrics import LESS_IS_BETTER, OBJECTIVE_FIELD
from diffplan.tuning.space import make_space, read_own_values
from diffplan.tuning.studies import DEFAULT_STUDY, find_study, size_search

RUN_NAME = "run"
"""Directory of Tune's own files."""
MAX_BARREN_ROUNDS = 5
"""Consecutive rounds in which processes of trials died and no trial finished, before the remaining trials are given
up."""
_SIZES = ("num_trials", "max_concurrent_trials")
"""What may change when a search goes on; of the study, only what is not in `IDENTITY_FIELDS`."""
IDENTITY_FIELDS = ("kind", "vary", "objectives")


@dataclass(frozen=True)
class _Task:
    """A search to run.

    Attributes:
        study: the study.
        config: the experiment.
        search: its size.
        envs: the environment under each protocol.
        space: what is varied.
        source: checkpoint or dataset, an absolute path or URL.
        identity: content that the search depends on, as JSON values; a search is resumed only with the same.
        trial: runs a trial.
        arguments: its arguments beside the other fields.
    """

    study: Study
    config: Config
    search: SearchConfig
    envs: list[EnvConfig]
    space: dict[str, BaseDistribution]
    source: str
    identity: dict[str, Any]
    trial: Callable[..., None]
    arguments: dict[str, Any]


def tune_planner(
    checkpoint: str | Path,
    out: str | Path,
    *,
    others: Sequence[str | Path] = (),
    settings: PlanningConfig | None = None,
    study: Study | None = None,
    search: SearchConfig | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Search settings of planning with a finished model, and write the results into `out`.

    Args:
        checkpoint: directory or URL of the checkpoint.
        out: directory or URL of the search.
        others: further checkpoints of the same experiment, such as those of other training seeds. Each trial runs its
            episodes with every one of them, so that the settings suit them all.
        settings: planner settings that are varied; None for those of the checkpoint.
        study: a study of kind `planner`; None for the study `planner`.
        search: size and protocols of the search; None for those of the study on the checkpoint's experiment.
        resume: go on with a search that was interrupted.

    Returns:
        What `best.json` holds; see `diffplan.report.search_files.write_search`.

    Raises:
        CheckpointError: no checkpoint, or a damaged one.
        ConfigError: there is a search already and `resume` is not set; the search there is a different one; an unknown
            protocol or field; a study of kind `training`; another checkpoint is of another environment.
        ClusterError: too few CPUs, or no trial succeeded.
    """
    source, planner = _locate(checkpoint), load_planner(checkpoint, settings)
    config = replace(planner.config, planning=planner.settings)
    given: dict[str, Any] = {} if settings is None else {"planning": config_to_dict(settings)}
    for other in others:
        if (found := load_planner(other, planner.settings).config.env) != config.env:
            raise ConfigError(f"{other}: expected a checkpoint of {config.env.env_id} as the first, got {found.env_id}")
    if others:
        given["others"] = [_identify(other) for other in others]
    study = find_study(DEFAULT_STUDY, task_of(config.env)) if study is None else study
    _require_kind(study, "planner")
    search = _choose(size_search(study, config.search) if search is None else search, config)
    task = _Task(
        study=study,
        config=config,
        search=search,
        envs=_find_envs(search, config, planner.model.layout.observation_dim),
        space=make_space(study, config, lambda changed: with_settings(planner, changed.planning)),
        source=source,
        identity={"checkpoint": _identify(checkpoint), **given},
        trial=run_planner_trial,
        arguments={"others": [_locate(other) for other in others], "variables": find_variables()},
    )
    return _run(task, out, resume=resume)


def tune_training(
    data: str | Path,
    config: Config,
    out: str | Path,
    *,
    study: Study | None = None,
    search: SearchConfig | None = None,
    num_training_steps: int | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Search settings of training: each trial trains a model in its own process and evaluates it.

    Trials train by the loop of `diffplan train` on one CPU, or on a GPU if the cluster has any; they write no
    checkpoint.

    Args:
        data: directory or URL of the dataset; the search is pinned to its newest snapshot.
        config: the experiment that is varied.
        out: directory or URL of the search.
        study: a study of kind `training`; None for the study `training`.
        search: size and protocols of the search; None for those of the study on the experiment.
        num_training_steps: steps of a full trial; None for the study's share of the experiment's.
        resume: go on with a search that was interrupted; its unfinished trials train from the beginning.

    Returns:
        What `best.json` holds; see `diffplan.report.search_files.write_search`.

    Raises:
        DataError: the dataset is missing or damaged, or its episodes are too short.
        ConfigError: as `tune_planner`, or the experiment trains no diffuser.
        ClusterError: too few CPUs, or no trial succeeded.
    """
    study = find_study("training", task_of(config.env)) if study is None else study
    _require_kind(study, "training")
    if config.training.objective != "diffusion":
        raise ConfigError(f"training.objective: expected diffusion to search, got {config.training.objective}")
    if num_training_steps is None:
        num_training_steps = math.ceil(study.training_share * config.training.num_steps)
    if num_training_steps < 1:
        raise ConfigError(f"num_training_steps: expected at least 1, got {num_training_steps}")
    search = _choose(size_search(study, config.search) if search is None else search, config)
    begun = read_begun_at(out) if resume else {}
    dataset = open_dataset(data, snapshot=begun.get("snapshot"))
    index_windows(dataset, config, held_out=False)  # raises here, in one line, rather than in every trial
    check_condition(config.network, dataset)  # likewise
    snapshot = write_snapshot(dataset) if dataset.snapshot is None else dataset.snapshot
    task = _Task(
        study=study,
        config=config,
        search=search,
        envs=_find_envs(search, config, dataset.manifest.observation_dim),
        space=make_space(study, config, lambda changed: index_windows(dataset, changed, held_out=False)),
        source=dataset.uri,
        identity={
            "dataset": dataset.manifest.dataset_uuid,
            "snapshot": snapshot,
            "config": config_to_dict(config),
            "num_training_steps": num_training_steps,
        },
        trial=run_training_trial,
        arguments={
            "snapshot": snapshot,
            "num_training_steps": num_training_steps,
            "variables": find_variables(),
        },
    )
    return _run(task, out, resume=resume)


def _choose(search: SearchConfig, config: Config) -> SearchConfig:
    """The search with its protocols and its objective named; raises `ConfigError` for unknown ones."""
    objective = search.objective or task_of(config.env).objective
    find_metric(objective, task_of(config.env), OBJECTIVE_FIELD)
    return replace(search, protocols=choose_protocols(search.protocols, config.env), objective=objective)


def _find_envs(search: SearchConfig, config: Config, observation_dim: int) -> list[EnvConfig]:
    """The environment under each protocol; raises `ConfigError`, in one line, for what would fail in every trial."""
    envs = [apply_protocol(protocol, config.env) for protocol in search.protocols]
    for env in envs:
        rehearse_episode(env, seed=search.seed, stream=Stream.TUNING, observation_dim=observation_dim)
    return envs


def _run(task: _Task, out: str | Path, *, resume: bool) -> dict[str, Any]:
    """Run the remaining trials, and write the results."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # why trials fail is in trials.json
    since = time.perf_counter()
    with open_search(out, resume=resume) as storage, ray_session():
        require_resources(1, {"CPU": 1}, "a search", {"CPU": "start a larger cluster"})
        study, search = task.study, task.search
        at_once = min(search.max_concurrent_trials, count_workers(None))
        journal = _open_journal(task, storage)
        num_barren = 0
        while num_barren < MAX_BARREN_ROUNDS and (num_left := search.num_trials - journal.num_finished) > 0:
            with record_usage(
                storage.store,
                "tune",
                cpus=at_once,
                gpus=min(at_once, count_gpus()) if _trains_on_gpu(study) else 0,
                total=search.num_trials,
                unit="trials",
                initial=journal.num_finished,
            ) as usage:
                _make_tuner(task, journal, storage.directory, num_left, usage.count).fit()
            if journal.num_lost == 0:  # trials that failed by themselves would fail again
                break
            # A trial may be lost any number of times, as long as others finish in the meantime.
            num_barren = 0 if search.num_trials - journal.num_finished < num_left else num_barren + 1
            journal = _open_journal(task, storage)
        trials = journal.read_trials()
        if not any(trial.is_full for trial in trials):
            storage.save()
            first = trials[0].error if trials else None
            raise ClusterError(f"{storage.store.uri}: no trial succeeded; the first error was: {first}")
        best = write_search(
            storage.directory,
            study=study,
            config=task.config,
            search=search,
            space=task.space,
            trials=trials,
            source=task.source,
            wall_seconds=time.perf_counter() - since,
        )
        storage.publish()
    return best


def _open_journal(task: _Task, storage: SearchStorage) -> SearchJournal:
    """The journal of the search; trials that failed or were running are proposed again."""
    study, search = task.study, task.search
    return SearchJournal(
        storage.directory,
        study,
        task.space,
        begun={
            "study": {name: value for name, value in config_to_dict(study).items() if name in IDENTITY_FIELDS},
            **{name: value for name, value in config_to_dict(search).items() if name not in _SIZES},
            **task.identity,
        },
        own=read_own_values(study, task.config),
        seed=search.seed,
        on_finish=storage.save,
    )


def _trains_on_gpu(study: Study) -> bool:
    return study.kind == "training" and count_gpus() > 0


def _make_tuner(
    task: _Task, journal: SearchJournal, directory: Path, num_trials: int, on_advance: Callable[[int], None]
) -> tune.Tuner:
    study, search = task.study, task.search
    metric = study.objectives[0]
    mode = "min" if LESS_IS_BETTER[metric] else "max"
    trainable = tune.with_parameters(
        task.trial,
        study=study,
        config=task.config,
        search=search,
        envs=task.envs,
        source=task.source,
        **task.arguments,
    )
    return tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1, "gpu": 1} if _trains_on_gpu(study) else {"cpu": 1}),
        tune_config=tune.TuneConfig(
            num_samples=num_trials,
            max_concurrent_trials=search.max_concurrent_trials,
            search_alg=JournalSearcher(journal, metric, mode),
            scheduler=_make_scheduler(study, search, metric, mode),
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"trial_{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=RUN_NAME,
            storage_path=str(directory),
            verbose=0,
            callbacks=[SearchProgress(journal, search.num_trials, metric, mode, on_advance)],
        ),
    )


def _make_scheduler(study: Study, search: SearchConfig, metric: str, mode: str) -> TrialScheduler:
    if study.is_pareto:  # a trial that is worse in one objective may be on the front by the other
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="training_iteration",
        metric=metric,
        mode=mode,
        max_t=search.num_blocks,
        grace_period=1,
        reduction_factor=2,
    )


def _require_kind(study: Study, kind: str) -> None:
    if study.kind != kind:
        wanted = "a dataset and a preset" if study.kind == "training" else "a checkpoint"
        raise ConfigError(f"study: expected one of kind {kind}, got one of kind {study.kind}, which takes {wanted}")


def _identify(checkpoint: str | Path) -> int:
    """The checksum of a checkpoint's record, which has those of its files."""
    return zlib.crc32((load_checkpoint(checkpoint).path / CONFIG).read_bytes())


def _locate(checkpoint: str | Path) -> str:
    """Path or URL of a checkpoint for processes elsewhere."""
    text = str(checkpoint)
    return text if "://" in text or text.startswith(PREFIX) else str(Path(checkpoint).absolute())

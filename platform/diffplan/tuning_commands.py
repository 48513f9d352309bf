"""`diffplan tune`: searches, and what there is to search."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from diffplan.commands import parse, show
from diffplan.config import Config, SearchConfig
from diffplan.config.study import Study
from diffplan.errors import ConfigError
from diffplan.tasks.pretrained import PREFIX
from diffplan.tasks.registry import DEFAULT_TASK, find_experiment, find_task, list_task_presets, list_tasks, task_of
from diffplan.tasks.task import Task
from diffplan.tuning.studies import DEFAULT_STUDY, find_study, list_studies, size_search

SECONDS_PER_EPISODE = 0.06
"""Of a trial on one CPU core, with a calibrated planner that replans rarely; measured by the search shown in
docs/tuning.md."""
HEADER = ("study", "kind", "objectives", "trials", "varies", "time")


@dataclasses.dataclass(kw_only=True)
class TuneArguments:
    """Search settings with Ray Tune; `diffplan tune --list` shows the studies."""

    source: Positional[str]
    """Directory or URL of the checkpoint whose settings are searched; for a study of kind training, of the dataset."""
    out: str
    """Directory or URL of the search."""
    study: str = DEFAULT_STUDY
    """What is searched for: a name of `tune --list`, or a JSON file of one's own."""
    preset: str | None = None
    """The experiment that a study of kind training varies."""
    num_training_steps: int | None = None
    """Steps that a trial of a study of kind training trains; a quarter of the preset's if not given."""
    cost_weight: float | None = None
    """Points of the score that a second of planning in an episode is worth, when the best trial is chosen."""
    protocols: tuple[str, ...] | None = None
    """Protocols that trials are scored on."""
    objective: Annotated[str | None, arg(name="search.objective")] = None
    """Metric of an episode that the search improves; that of the task if not given."""
    num_trials: int | None = None
    """Settings to try."""
    episodes_per_block: int | None = None
    """Episodes between two reports of a trial."""
    num_blocks: int | None = None
    """Blocks of a full trial."""
    max_concurrent_trials: int | None = None
    """Trials that run at once."""
    seed: int | None = None
    """Seed of the search and of the tuning episodes."""
    resume: bool = False
    """Go on with a search that was interrupted, or with more trials."""


def parse_tune(arguments: list[str]) -> TuneArguments:
    """The arguments of `diffplan tune`."""
    return parse(TuneArguments, arguments, "tune")


def tune(arguments: list[str]) -> None:
    """`diffplan tune`."""
    if "--list" in arguments:
        if arguments != ["--list"]:
            others = " ".join(argument for argument in arguments if argument != "--list")
            raise ConfigError(f"tune --list: expected nothing beside it, got {others}")
        show("\n".join(describe_studies()))
        return
    parsed = parse_tune(arguments)
    study = find_study(parsed.study, _find_task(parsed))
    if parsed.cost_weight is not None:
        study = dataclasses.replace(study, cost_weight=parsed.cost_weight)
    best = _tune_planner(parsed, study) if study.kind == "planner" else _tune_training(parsed, study)
    show("\n".join(_describe_best(parsed, study, best)))


def _find_task(parsed: TuneArguments) -> Task:
    """The task whose studies there are: of the preset, or of the checkpoint."""
    if parsed.preset is not None:
        return find_experiment(parsed.preset).task
    from diffplan.checkpoint import is_checkpoint, load_checkpoint

    if "://" not in parsed.source and not parsed.source.startswith(PREFIX) and not is_checkpoint(Path(parsed.source)):
        return find_task(DEFAULT_TASK)  # a dataset: a study of kind training asks for the preset
    return task_of(load_checkpoint(parsed.source).config.env)


def _tune_planner(parsed: TuneArguments, study: Study) -> dict[str, Any]:
    for name in ("preset", "num_training_steps"):
        if getattr(parsed, name) is not None:
            raise ConfigError(f"--{name}: expected none with a study of kind planner, got {getattr(parsed, name)}")
    from diffplan.checkpoint import load_checkpoint
    from diffplan.cluster.tune import tune_planner

    search = _size(parsed, study, load_checkpoint(parsed.source).config)
    return tune_planner(parsed.source, parsed.out, study=study, search=search, resume=parsed.resume)


def _tune_training(parsed: TuneArguments, study: Study) -> dict[str, Any]:
    if parsed.preset is None:
        raise ConfigError(f"tune --study {parsed.study}: expected --preset PRESET, the experiment to vary, got none")
    config = find_experiment(parsed.preset).config
    from diffplan.cluster.tune import tune_training

    return tune_training(
        parsed.source,
        config,
        parsed.out,
        study=study,
        search=_size(parsed, study, config),
        num_training_steps=parsed.num_training_steps,
        resume=parsed.resume,
    )


def _size(parsed: TuneArguments, study: Study, config: Config) -> SearchConfig:
    given = {f.name: getattr(parsed, f.name) for f in dataclasses.fields(SearchConfig)}
    given = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(size_search(study, config.search), **given)


def _describe_best(parsed: TuneArguments, study: Study, best: dict[str, Any]) -> list[str]:
    from diffplan.report.search_files import PICTURE
    from diffplan.run_directory import BEST

    lines = [
        f"best of {best['num_trials']} settings on {best['episodes']} tuning episodes "
        f"({', '.join(best['protocols'])}): score {best['score_mean']:.1f}, {_describe_success(best)}"
        f"{1e3 * best['plan_seconds']:.1f} ms of planning in an episode",
        f"settings: {parsed.out}/{BEST}",
    ]
    if study.is_pareto:
        lines += _describe_front(parsed.out)
    if study.kind == "training":
        options = shlex.join(best["train_arguments"])
        lines.append(f"train it: diffplan train {parsed.preset} --data {parsed.source} --out DIR {options}")
    return [*lines, f"picture: {parsed.out}/{PICTURE}"]


def _describe_front(out: str) -> list[str]:
    import json

    from diffplan.data.opening import open_store
    from diffplan.report.search_files import PARETO
    from diffplan.terminal import draw_table

    front = json.loads(open_store(out).read(PARETO))
    rows = [
        [
            point["settings_file"],
            f"{point['score_mean']:.1f}",
            "-" if point["success_rate"] is None else f"{point['success_rate']:.1%}",
            f"{1e3 * point['plan_seconds']:.1f} ms",
            "best.json" if point["trial"] == front["best"] else "",
        ]
        for point in front["points"]
    ]
    table = draw_table(("Pareto front", "score", "success", "planning", ""), rows)
    return ["", *table, "", f"front: {out}/{PARETO}"]


def _describe_success(best: dict[str, Any]) -> str:
    return "" if best["success_rate"] is None else f"success {best['success_rate']:.1%}, "


def describe_studies() -> list[str]:
    """Lines of a table of all studies, task by task, and of what each varies."""
    from diffplan.terminal import draw_table, format_duration
    from diffplan.training.cost import estimate_seconds, measure_matmul_throughput

    throughput = measure_matmul_throughput()
    lines = []
    for name in list_tasks():
        task = find_task(name)
        if not task.studies and name != DEFAULT_TASK:
            continue
        preset_name, preset = next(iter(list_task_presets(task).items()))
        layout = preset.layout
        training = 0.0 if layout is None else estimate_seconds(preset.config, layout.transition_dim, throughput)
        rows, notes = [], []
        for study_name, study in list_studies(task).items():
            search = size_search(study, preset.config.search)
            cost = search.num_trials * estimate_trial_seconds(study, search, training, max(len(task.protocols), 1))
            row = [study_name, study.kind, ", ".join(study.objectives), str(search.num_trials), str(len(study.vary))]
            known = layout is not None
            rows.append([*row, format_duration(cost / search.max_concurrent_trials) if known else "-"])
            notes += ["", f"{study_name}: {study.description}", *_wrap(", ".join(study.vary))]
        title = "every other task" if name == DEFAULT_TASK else f"task {name} (times of {preset_name})"
        lines += [title, *draw_table(HEADER, rows, left=3), *notes, ""]
    return [
        *lines,
        "The time is a rough one on two CPU cores, if no trial were stopped early; with one objective most are. Of a",
        "study of kind training it rests on the speed of this machine right now.",
        "Sizes: --num_trials, --episodes_per_block, --num_blocks, --num_training_steps. A study of your own:",
        "--study FILE.json, see docs/tuning.md.",
    ]


def estimate_trial_seconds(
    study: Study, search: SearchConfig, training_seconds: float, num_protocols: int = 1
) -> float:
    """A rough time of a full trial on one CPU core.

    Args:
        study: of the trial.
        search: its blocks.
        training_seconds: of the whole experiment.
        num_protocols: that trials are scored on, where the search names none.
    """
    blocks = search.num_blocks
    if study.kind == "training":  # each block evaluates the model anew, on the episodes of all blocks so far
        blocks = search.num_blocks * (search.num_blocks + 1) // 2
    seconds = blocks * search.episodes_per_block * (len(search.protocols) or num_protocols) * SECONDS_PER_EPISODE
    return seconds + (study.training_share * training_seconds if study.kind == "training" else 0.0)


def _wrap(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)

"""`diffplan tune`."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from diffplan.cli.command import Arguments, Call, Command, advanced
from diffplan.cli.experiments import find_config_of, require_counts
from diffplan.cli.output import plain_warnings, show
from diffplan.cli.overrides import list_section, override_section
from diffplan.config import PlanningConfig, SearchConfig, config_to_dict
from diffplan.config.study import Study
from diffplan.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from diffplan.tasks.task import Task


@dataclass(kw_only=True)
class TuneArguments(Arguments):
    """Search planner settings, or training settings, with Ray Tune."""

    source: Annotated[Positional[str], arg(metavar="CHECKPOINT|DATA")]
    """Directory or URL of the checkpoint whose settings are searched, or of the dataset for a training study."""
    out: str
    """Directory or URL of the search."""
    list: bool = False
    """Show all studies with their sizes and approximate times."""
    study: str = "planner"
    """The study: a name from `tune --list`, or your own JSON file."""
    preset: str | None = None
    """Experiment that a training study varies."""
    num_training_steps: int | None = None
    """Training steps of each trial of a training study; a quarter of the preset's if not given."""
    settings: str | None = None
    """Path or URL of planner settings, all or some, that a planner study varies; those of the checkpoint if not
    given."""
    cost_weight: float | None = advanced(None)
    """Cost of one second of planning in an episode, in points of the score, in the choice of the best trial."""
    also: tuple[str, ...] = ()
    """Further checkpoints of the same experiment, such as those of other training seeds: a planner study looks for
    settings that suit all."""
    trust: bool = False
    """Allow checkpoint and study to name functions and URLs."""
    resume: bool = False
    """Continue an interrupted search, or add trials."""


def check(call: Call[TuneArguments]) -> None:
    """Raise `ConfigError` for a number out of range or an unknown study."""
    _size(call, SearchConfig())
    require_counts(call.arguments, "num_training_steps")
    _check_study(call.arguments)


def _check_study(arguments: TuneArguments) -> None:
    """Raise `ConfigError` for a study that no task has, or that takes other arguments.

    The checkpoint or dataset is not read: the task may be known only where the command will run.
    """
    from diffplan.tasks.pretrained import PREFIX
    from diffplan.tasks.registry import load_tasks
    from diffplan.tuning.studies import list_studies

    if arguments.study.endswith(".json"):
        return
    is_known = arguments.preset is not None or arguments.source.startswith(PREFIX)
    known = [list_studies(task) for task in ([_find_task(arguments)] if is_known else load_tasks().values())]
    kinds = {studies[arguments.study].kind for studies in known if arguments.study in studies}
    if not kinds:
        raise ConfigError(unknown_name("study", arguments.study, {name for studies in known for name in studies}))
    if kinds == {"planner"}:
        _refuse_training_options(arguments)
    elif kinds == {"training"}:
        _require_preset(arguments)


def _refuse_training_options(arguments: TuneArguments) -> None:
    """Raise `ConfigError` for options that a study of kind planner does not have."""
    for name in ("preset", "num_training_steps"):
        if getattr(arguments, name) is not None:
            raise ConfigError(f"--{name}: expected none with a study of kind planner, got {getattr(arguments, name)}")


def _require_preset(arguments: TuneArguments) -> str:
    if arguments.preset is None:
        raise ConfigError(f"tune --study {arguments.study}: expected --preset PRESET, the experiment to vary, got none")
    return arguments.preset


def run(call: Call[TuneArguments]) -> None:
    """Search, and print the best trial."""
    arguments = call.arguments
    study = _find_study(arguments)
    with plain_warnings():
        best = _tune_planner(call, study) if study.kind == "planner" else _tune_training(call, study)
    show("\n".join(_describe_best(arguments, study, best)))


def _find_study(arguments: TuneArguments) -> Study:
    from diffplan.planning.trust import require_trust
    from diffplan.tuning.studies import find_study

    study = find_study(arguments.study, _find_task(arguments))
    if arguments.study.endswith(".json") and not arguments.trust:
        varied = {
            field: values.get("among")
            for name, values in config_to_dict(study)["vary"].items()
            for field in (name, *values["also"])
        }
        require_trust(varied, arguments.study, prefix="")
    if arguments.cost_weight is not None:
        study = dataclasses.replace(study, cost_weight=arguments.cost_weight)
    return study


def _find_task(arguments: TuneArguments) -> Task:
    """The task that provides the studies: that of the preset, or of the checkpoint."""
    from diffplan.checkpoint import is_checkpoint, load_checkpoint
    from diffplan.tasks.pretrained import PREFIX
    from diffplan.tasks.registry import DEFAULT_TASK, find_experiment, find_task, task_of

    if arguments.preset is not None:
        return find_experiment(arguments.preset).task
    source = arguments.source
    if "://" not in source and not source.startswith(PREFIX) and not is_checkpoint(Path(source)):
        return find_task(DEFAULT_TASK)  # a dataset: a study of kind training needs the preset
    return task_of(load_checkpoint(source).config.env)


def _tune_planner(call: Call[TuneArguments], study: Study) -> dict[str, Any]:
    arguments = call.arguments
    _refuse_training_options(arguments)
    from diffplan.checkpoint import load_checkpoint
    from diffplan.cli.settings import choose_settings
    from diffplan.cluster.tune.search import tune_planner
    from diffplan.tuning.studies import size_search

    config = load_checkpoint(arguments.source).config
    settings = choose_settings(
        config.planning, arguments.source, file=arguments.settings, overrides=call.overrides, trust=arguments.trust
    )
    search = _size(call, size_search(study, config.search))
    return tune_planner(
        arguments.source,
        arguments.out,
        others=arguments.also,
        settings=None if settings == config.planning else settings,
        study=study,
        search=search,
        resume=arguments.resume,
    )


def _tune_training(call: Call[TuneArguments], study: Study) -> dict[str, Any]:
    arguments = call.arguments
    preset = _require_preset(arguments)
    if arguments.also:
        raise ConfigError(f"--also: expected none with a study of kind training, got {', '.join(arguments.also)}")
    if arguments.settings is not None or list_section(call.overrides, "planning"):
        raise ConfigError(
            f"tune --study {arguments.study}: expected no planner settings with a study of kind training; leave out "
            "--settings and the fields of planning"
        )
    from diffplan.cluster.tune.search import tune_training
    from diffplan.tuning.studies import size_search

    config = find_config_of(preset, arguments.source, {})
    return tune_training(
        arguments.source,
        config,
        arguments.out,
        study=study,
        search=_size(call, size_search(study, config.search)),
        num_training_steps=arguments.num_training_steps,
        resume=arguments.resume,
    )


def _size(call: Call[TuneArguments], search: SearchConfig) -> SearchConfig:
    return override_section(search, call.overrides, "search")


def _describe_best(arguments: TuneArguments, study: Study, best: dict[str, Any]) -> list[str]:
    from diffplan.report.search_files import PICTURE
    from diffplan.runs.layout import BEST

    lines = [
        f"best of {best['num_trials']} settings on {best['episodes']} tuning episodes "
        f"({', '.join(best['protocols'])}): score {best['score_mean']:.1f}, {_describe_success(best)}"
        f"{1e3 * best['plan_seconds']:.1f} ms of planning in an episode",
        f"settings: {arguments.out}/{BEST}",
    ]
    if study.is_pareto:
        lines += _describe_front(arguments.out)
    if study.kind == "training":
        options = shlex.join(best["train_arguments"])
        lines.append(f"train it: diffplan train {arguments.preset} --data {arguments.source} --out DIR {options}")
    return [*lines, f"picture: {arguments.out}/{PICTURE}"]


def _describe_front(out: str) -> list[str]:
    from diffplan.report.search_files import PARETO
    from diffplan.runs.records import Pareto
    from diffplan.runs.stages import read_json_object
    from diffplan.storage.opening import open_store
    from diffplan.terminal import draw_table

    front = read_json_object(open_store(out), PARETO, Pareto)
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


def list_studies() -> list[str]:
    """Lines of a table of all studies."""
    from diffplan.cli.study_tables import describe_studies

    return describe_studies()


COMMAND = Command(
    arguments=TuneArguments,
    run=run,
    check=check,
    sections={"search": SearchConfig, "planning": PlanningConfig},
    aliases={f.name: f"search.{f.name}" for f in dataclasses.fields(SearchConfig)},
    places=("source", "out", "study", "settings", "also"),
    lists=list_studies,
)

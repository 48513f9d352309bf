"""`diffplan pipeline`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffplan.cli.command import Call, Command, ExperimentArguments
from diffplan.cli.experiments import find_config, find_config_to_collect, require_counts
from diffplan.cli.output import plain_warnings, show
from diffplan.config import (
    CalibrationConfig,
    CollectionConfig,
    DiffusionConfig,
    EnvConfig,
    NetworkConfig,
    PlanningConfig,
    SearchConfig,
    TrainingConfig,
    WindowConfig,
)
from diffplan.errors import ConfigError


@dataclass(kw_only=True)
class PipelineArguments(ExperimentArguments):
    """Collect, train, calibrate, tune, evaluate and report."""

    out: str | None = None
    """Directory or URL of the run; if not given, a new one under runs/, linked as runs/latest."""
    resume: bool = False
    """Continue the run at --out."""
    episodes: int = 100
    """Evaluation episodes of each protocol."""
    seed: int = 0
    """Seed of the evaluation episodes."""
    num_workers: int | None = None
    """Actors of collection and evaluation; one per CPU if not given."""
    use_gpu: bool | None = None
    """As `--use_gpu` of train."""
    trust: bool = False
    """Allow the files of a resumed run to name functions and URLs that the experiment does not name."""


def check(call: Call[PipelineArguments]) -> None:
    """Raise `ConfigError` for arguments that cannot be run."""
    find_config_to_collect(call)
    arguments = call.arguments
    if arguments.resume and arguments.out is None:
        raise ConfigError("--resume: expected --out DIR, the run to go on with, got none")
    require_counts(arguments, "episodes", "num_workers")


def run(call: Call[PipelineArguments]) -> None:
    """Run all stages, and print the scores."""
    from diffplan.cluster.pipeline import new_run_directory, point_latest, run_pipeline
    from diffplan.evaluation.table import format_table
    from diffplan.tasks.registry import find_experiment

    arguments, config = call.arguments, find_config(call)
    out = arguments.out or str(new_run_directory("runs", find_experiment(arguments.experiment).name))
    with plain_warnings():
        summaries = run_pipeline(
            config,
            out,
            preset=arguments.experiment,
            command=call.line,
            episodes=arguments.episodes,
            seed=arguments.seed,
            num_workers=arguments.num_workers,
            use_gpu=arguments.use_gpu,
            resume=arguments.resume,
            trust=arguments.trust,
            announce=show,
        )
    if arguments.out is None:
        point_latest(Path(out))
    show("\n" + format_table(summaries, config.env))
    show(f"\nreport: {out}/report.html")


COMMAND = Command(
    arguments=PipelineArguments,
    run=run,
    check=check,
    sections={
        "collection": CollectionConfig,
        "training": TrainingConfig,
        "windows": WindowConfig,
        "network": NetworkConfig,
        "diffusion": DiffusionConfig,
        "calibration": CalibrationConfig,
        "planning": PlanningConfig,
        "search": SearchConfig,
        "env": EnvConfig,
    },
    aliases={
        "num_steps": "collection.num_steps",
        "behavior": "collection.behavior",
        "num_plans": "calibration.num_plans",
    },
    places=("out",),
)

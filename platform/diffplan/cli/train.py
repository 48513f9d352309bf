"""`diffplan train`."""

from __future__ import annotations

from dataclasses import dataclass

from diffplan.cli.command import Call, Command, ExperimentArguments, advanced
from diffplan.cli.experiments import check_known_environment, find_config, find_config_for, require_counts
from diffplan.cli.output import plain_warnings, show
from diffplan.config import (
    DiffusionConfig,
    EnvConfig,
    NetworkConfig,
    PlanningConfig,
    TrainingConfig,
    WindowConfig,
)


@dataclass(kw_only=True)
class TrainArguments(ExperimentArguments):
    """Fit a diffuser with Ray Train.

    The environment is that of the dataset. A preset for another one is refused, unless --env.env_id names it.
    """

    data: str
    """Directory or URL of the dataset."""
    out: str
    """Directory or URL of the checkpoint."""
    list: bool = False
    """Show all presets with their sizes and rough training times."""
    dry_run: bool = False
    """Show the cost of the run, measured in a few steps, and write nothing."""
    resume: bool = False
    """Continue an interrupted run."""
    num_workers: int = 1
    """Data-parallel workers."""
    min_workers: int | None = advanced(None)
    """Fewest workers to train with if the cluster has no room for all; waits for all if not given."""
    cpus_per_worker: int | None = advanced(None)
    """CPUs of each worker; an equal share of the cluster's if not given."""
    use_gpu: bool | None = None
    """Whether each worker has a GPU; waits for nodes that the cluster adds on demand. If not given, GPUs are used if
    enough are free now."""
    tensorboard: str | None = advanced(None)
    """Directory or URL of TensorBoard files; OUT/tensorboard if not given."""
    verify_on_read: bool = advanced(False)
    """Verify the checksums of all data before training uses them."""


def check(call: Call[TrainArguments]) -> None:
    """Raise `ConfigError` for an experiment that is none, or numbers out of range."""
    find_config(call)
    require_counts(call.arguments, "num_workers", "min_workers", "cpus_per_worker")


def run(call: Call[TrainArguments]) -> None:
    """Train, or show the cost of training."""
    arguments = call.arguments
    config = find_config_for(call, arguments.data)
    is_other_env = "env.env_id" in call.overrides
    if is_other_env:
        check_known_environment(config.env)
    if arguments.dry_run:
        from diffplan.cli.training_tables import describe_cost

        lines = describe_cost(
            arguments.experiment, config, arguments.data, arguments.cpus_per_worker, is_other_env=is_other_env
        )
        show("\n".join(lines))
        return
    from diffplan.cluster.train.driver import train_on_cluster

    with plain_warnings():
        out = train_on_cluster(
            config,
            arguments.data,
            arguments.out,
            num_workers=arguments.num_workers,
            min_workers=arguments.min_workers,
            cpus_per_worker=arguments.cpus_per_worker,
            use_gpu=arguments.use_gpu,
            resume=arguments.resume,
            tensorboard=arguments.tensorboard,
            verify_on_read=arguments.verify_on_read,
            is_other_env=is_other_env,
        )
    show(f"checkpoint: {out}")


def list_presets() -> list[str]:
    """Lines of a table of all presets."""
    from diffplan.cli.training_tables import describe_presets

    return describe_presets()


COMMAND = Command(
    arguments=TrainArguments,
    run=run,
    check=check,
    sections={
        "training": TrainingConfig,
        "windows": WindowConfig,
        "network": NetworkConfig,
        "diffusion": DiffusionConfig,
        "planning": PlanningConfig,
        "env": EnvConfig,
    },
    places=("data", "out", "tensorboard"),
    lists=list_presets,
)

"""`diffplan collect`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from diffplan.cli.command import Call, Command, ExperimentArguments
from diffplan.cli.experiments import find_config, find_config_to_collect, require_counts
from diffplan.cli.output import show
from diffplan.config import CollectionConfig, EnvConfig
from diffplan.terminal import format_bytes


@dataclass(kw_only=True)
class CollectArguments(ExperimentArguments):
    """Collect a dataset by rollouts of an environment in Ray actors."""

    out: str
    """Directory or URL of the dataset."""
    num_workers: int | None = None
    """Actors, one CPU each; one per CPU of the cluster if not given."""
    resume: bool = False
    """Continue an interrupted collection."""


def check(call: Call[CollectArguments]) -> None:
    """Raise `ConfigError` for an experiment that is none, or numbers out of range."""
    find_config_to_collect(call)
    require_counts(call.arguments, "num_workers")


def run(call: Call[CollectArguments]) -> None:
    """Collect, and print the size of the dataset."""
    from diffplan.cluster.collect.coordinator import collect

    config, arguments = find_config(call), call.arguments
    dataset = collect(
        config.env, config.collection, arguments.out, num_workers=arguments.num_workers, resume=arguments.resume
    )
    size = format_bytes(dataset.num_bytes)
    show(f"{arguments.out}: {dataset.num_steps:,} steps in {len(dataset.episodes):,} episodes, {size}")


COMMAND = Command(
    arguments=CollectArguments,
    run=run,
    check=check,
    sections={"collection": CollectionConfig, "env": EnvConfig},
    aliases={f.name: f"collection.{f.name}" for f in dataclasses.fields(CollectionConfig)},
    places=("out",),
)

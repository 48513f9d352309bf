"""`diffplan baseline …`: train what planners are compared with."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from diffplan.commands import parse, show
from diffplan.config.offline_rl import SETTINGS, Algorithm, CQLSettings, IQLSettings, OfflineRLSettings
from diffplan.errors import ConfigError
from diffplan.suggestion import unknown_name

USAGE = """\
usage: diffplan baseline train cql|iql DATASET --out DIR [--goal X Y] [--num_updates N] [arguments]

  train cql   conservative Q-learning (Kumar et al. 2020), by RLlib
  train iql   implicit Q-learning (Kostrikov et al. 2021), by RLlib

With --goal the policy is for that goal; without, it is told its goal.
`diffplan baseline train cql --help` lists the arguments."""


@dataclasses.dataclass(kw_only=True)
class TrainArguments:
    """Train a policy by offline reinforcement learning on a dataset, its rewards relabelled for the goal at hand."""

    dataset: Annotated[Positional[str], arg(metavar="DATASET")]
    """Directory or URL of the dataset."""
    out: Path
    """Directory to make, of the policy."""
    goal: tuple[float, ...] | None = None
    """Where the policy is to go; without one, it is told its goal."""
    num_updates: int | None = None
    """Gradient updates; what docs/baselines.md recommends if not given."""
    num_selection_episodes: int = 0
    """Tuning episodes that ten policies of the training are scored on, of which the best is written; 0 writes the last
    one."""
    protocol: str | None = None
    """Protocol of these episodes; needed where the task has several."""
    seed: int = 0
    """Seed of everything random."""


@dataclasses.dataclass(kw_only=True)
class TrainCQLArguments(TrainArguments):
    """Train a policy by conservative Q-learning on a dataset, its rewards relabelled for the goal at hand."""

    settings: OmitArgPrefixes[CQLSettings] = dataclasses.field(default_factory=CQLSettings)


@dataclasses.dataclass(kw_only=True)
class TrainIQLArguments(TrainArguments):
    """Train a policy by implicit Q-learning on a dataset, its rewards relabelled for the goal at hand."""

    settings: OmitArgPrefixes[IQLSettings] = dataclasses.field(default_factory=IQLSettings)


PARSED: dict[str, type[TrainCQLArguments] | type[TrainIQLArguments]] = {
    "cql": TrainCQLArguments,
    "iql": TrainIQLArguments,
}


def parse_baseline(arguments: list[str]) -> TrainCQLArguments | TrainIQLArguments:
    """The arguments of `diffplan baseline`; raises `ConfigError` for anything but `train` of a known algorithm."""
    if not arguments:
        raise ConfigError("baseline: expected `train cql` or `train iql`, got nothing")
    if arguments[0] != "train":
        raise ConfigError(unknown_name("baseline", arguments[0], ("train",)))
    if len(arguments) < 2:
        raise ConfigError(f"baseline train: expected one of {', '.join(SETTINGS)}, got nothing")
    algorithm = arguments[1]
    if algorithm not in PARSED:
        raise ConfigError(unknown_name("baseline train", algorithm, tuple(PARSED)))
    return parse(PARSED[algorithm], arguments[2:], f"baseline train {algorithm}")


def run(arguments: list[str]) -> None:
    """`diffplan baseline`."""
    if arguments[:1] in (["-h"], ["--help"]) or arguments[1:2] in (["-h"], ["--help"]):
        show(USAGE)
        return
    parsed = parse_baseline(arguments)
    _train("cql" if isinstance(parsed, TrainCQLArguments) else "iql", parsed, parsed.settings)


def _train(algorithm: Algorithm, parsed: TrainArguments, settings: OfflineRLSettings) -> None:
    from diffplan.cluster.offline_rl import train_offline_rl
    from diffplan.evaluation.baselines.offline_policy import load_offline_policy

    out = train_offline_rl(
        parsed.dataset,
        parsed.out,
        algorithm=algorithm,
        goal=parsed.goal,
        num_updates=parsed.num_updates,
        settings=settings,
        seed=parsed.seed,
        num_selection_episodes=parsed.num_selection_episodes,
        protocol=parsed.protocol,
    )
    record = load_offline_policy(out).description.training
    rate = record["num_updates"] / max(record["seconds"], 1e-9)
    show(f"{parsed.out}: {algorithm}, {record['num_updates']:,} updates, {rate:.1f} updates/s, goal: {record['goal']}")

"""`diffplan baseline …`: train the baselines of planners."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from diffplan.cli.command import Arguments, Call, Command, Group, advanced
from diffplan.cli.experiments import require_counts
from diffplan.cli.output import show
from diffplan.config import with_overrides
from diffplan.config.offline_rl import SETTINGS, CQLSettings, IQLSettings

if TYPE_CHECKING:
    from diffplan.config.offline_rl import Algorithm


@dataclass(kw_only=True)
class BaselineArguments(Arguments):
    """Train a policy by offline reinforcement learning on a dataset, with rewards relabelled for the goals."""

    dataset: Annotated[Positional[str], arg(metavar="DATASET")]
    """Directory or URL of the dataset."""
    out: Path
    """New directory for the policy."""
    goal: tuple[float, ...] | None = None
    """Fixed goal of the policy; without one, the policy is conditioned on goals."""
    num_updates: int | None = None
    """Gradient updates; the number that docs/baselines.md recommends if not given."""
    num_selection_episodes: int = advanced(0)
    """Tuning episodes on which ten policies of the training are scored; the best one is written. 0 writes the last
    policy."""
    protocol: str | None = advanced(None)
    """Protocol of these episodes; required if the task has several."""
    seed: int = 0
    """Seed of everything random."""


@dataclass(kw_only=True)
class CQLArguments(BaselineArguments):
    """Train a policy by conservative Q-learning (Kumar et al. 2020), with RLlib.

    With --goal the policy is for that goal; without, it is conditioned on goals.
    """


@dataclass(kw_only=True)
class IQLArguments(BaselineArguments):
    """Train a policy by implicit Q-learning (Kostrikov et al. 2021), with RLlib.

    With --goal the policy is for that goal; without, it is conditioned on goals.
    """


def run_cql(call: Call[CQLArguments]) -> None:
    """Train with CQL."""
    _train("cql", call)


def run_iql(call: Call[IQLArguments]) -> None:
    """Train with IQL."""
    _train("iql", call)


def _train(algorithm: Algorithm, call: Call[CQLArguments] | Call[IQLArguments]) -> None:
    from diffplan.behaviors.offline_policy import load_offline_policy
    from diffplan.cluster.baselines.offline_rl import train_offline_rl

    arguments = call.arguments
    out = train_offline_rl(
        arguments.dataset,
        arguments.out,
        algorithm=algorithm,
        goal=arguments.goal,
        num_updates=arguments.num_updates,
        settings=with_overrides(SETTINGS[algorithm](), call.overrides),
        seed=arguments.seed,
        num_selection_episodes=arguments.num_selection_episodes,
        protocol=arguments.protocol,
    )
    made = load_offline_policy(out).description.training
    rate = made["num_updates"] / max(made["seconds"], 1e-9)
    show(f"{arguments.out}: {algorithm}, {made['num_updates']:,} updates, {rate:.1f} updates/s, goal: {made['goal']}")


def check_cql(call: Call[CQLArguments]) -> None:
    """Raise `ConfigError` for settings out of range."""
    _check("cql", call)


def check_iql(call: Call[IQLArguments]) -> None:
    """Raise `ConfigError` for settings out of range."""
    _check("iql", call)


def _check(algorithm: Algorithm, call: Call[CQLArguments] | Call[IQLArguments]) -> None:
    with_overrides(SETTINGS[algorithm](), call.overrides)
    require_counts(call.arguments, "num_updates")
    require_counts(call.arguments, "num_selection_episodes", least=0)


_PLACES = ("dataset", "out")
_TRAIN = Group(
    "Train a policy by offline reinforcement learning.",
    {
        "cql": Command(
            arguments=CQLArguments, run=run_cql, check=check_cql, sections={"": CQLSettings}, places=_PLACES
        ),
        "iql": Command(
            arguments=IQLArguments, run=run_iql, check=check_iql, sections={"": IQLSettings}, places=_PLACES
        ),
    },
)
COMMAND = Group("Train what planners are compared with.", {"train": _TRAIN})

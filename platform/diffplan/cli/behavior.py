"""`diffplan behavior …`: train policies that collect data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from diffplan.cli.command import Arguments, Call, Command, Group
from diffplan.cli.experiments import check_known_environment, require_counts
from diffplan.cli.output import plain_warnings, show
from diffplan.cli.overrides import override_section
from diffplan.config import EnvConfig, with_overrides
from diffplan.config.online_rl import SACSettings


@dataclass(kw_only=True)
class TrainArguments(Arguments):
    """Train a policy in its environment by soft actor-critic, with RLlib, and keep its replay buffer as a dataset.

    OUT/policy.npz is the policy, OUT/snapshots/ has those of the training, and OUT/dataset is the replay buffer.
    """

    env_id: Annotated[Positional[str], arg(metavar="ENV")]
    """Gymnasium id, or `module:Id`."""
    out: Path
    """New directory for policies and data."""
    num_steps: int
    """Environment steps."""
    seed: int = 0
    """Seed of everything random."""
    resume: bool = False
    """Continue an interrupted training, or add steps."""


def check(call: Call[TrainArguments]) -> None:
    """Raise `ConfigError` for settings out of range, or an environment that cannot be trained in."""
    require_counts(call.arguments, "num_steps")
    _find_settings(call)
    check_known_environment(_find_env(call))


def _find_env(call: Call[TrainArguments]) -> EnvConfig:
    return override_section(EnvConfig(env_id=call.arguments.env_id), call.overrides, "env")


def _find_settings(call: Call[TrainArguments]) -> SACSettings:
    own = {name: value for name, value in call.overrides.items() if not name.startswith("env.")}
    return with_overrides(SACSettings(), own)


def run(call: Call[TrainArguments]) -> None:
    """Train, and say how to use what came of it."""
    from diffplan.cluster.baselines.online_rl import DATASET, train_online

    arguments = call.arguments
    with plain_warnings():
        policy = train_online(
            _find_env(call),
            arguments.out,
            num_steps=arguments.num_steps,
            settings=_find_settings(call),
            seed=arguments.seed,
            resume=arguments.resume,
        )
    show(f"dataset: {arguments.out / DATASET}")
    show(f"policy: collect with --behavior policy:{policy}")


_TRAIN = Command(
    arguments=TrainArguments,
    run=run,
    check=check,
    sections={"": SACSettings, "env": EnvConfig},
    places=("out",),
)
COMMAND = Group("Train policies that collect data.", {"train": _TRAIN})

"""`diffplan evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from diffplan.cli.command import Arguments, Call, Command, advanced
from diffplan.cli.experiments import require_counts
from diffplan.cli.output import show
from diffplan.cli.overrides import list_section, override_section
from diffplan.config import EnvConfig, PlanningConfig
from diffplan.evaluation.protocol import BASELINE_PREFIX, choose_protocol
from diffplan.tasks.pretrained import PREFIX, find_pretrained

if TYPE_CHECKING:
    from diffplan.evaluation.sources import PolicySource


@dataclass(kw_only=True)
class EvaluatedEnv:
    """The environment, in place of that of the checkpoint; the columns keep their meanings."""

    env_id: str | None = None
    """Gymnasium id, or `module:Id`."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of `gymnasium.make`."""
    task: str | None = None
    """Task of the environment, a name or an import path; if not given, the installed task that claims its id."""


@dataclass(kw_only=True)
class EvaluateArguments(Arguments):
    """Score a planner or a baseline in parallel actors."""

    policy: Annotated[Positional[str], arg(metavar="POLICY")]
    """Directory or URL of a checkpoint, a pretrained planner of a task (pretrained:NAME), or a baseline such as
    baseline:random."""
    out: str
    """Directory or URL of the results."""
    protocol: str | None = None
    """Protocol of the task; required if it has several."""
    episodes: int = 100
    """Number of episodes."""
    seed: int = 0
    """Seed of the episodes; searches use other episodes."""
    settings: str | None = None
    """Path or URL of planner settings, all or some, that replace those of the checkpoint, such as best.json of a
    search."""
    trust: bool = False
    """Allow settings and checkpoint to name functions and URLs."""
    resume: bool = False
    """Continue an interrupted evaluation."""
    goal: tuple[float, ...] | None = advanced(None)
    """A position that every episode must reach, in place of the protocol's goal."""
    num_workers: int | None = None
    """Actors that run environments, one CPU each; one per free CPU if not given."""
    num_planners: int | None = advanced(None)
    """Actors that plan for all of them; one for each GPU if not given. With 0 each actor plans for itself."""
    episodes_per_unit: int | None = advanced(None)
    """Episodes that an actor evaluates in one batch, 50 if not given; results depend on it, as on the seed. With more
    actors than units, some are idle."""


def check(call: Call[EvaluateArguments]) -> None:
    """Raise `ConfigError` for a number out of range, an unknown baseline or an unknown protocol."""
    require_counts(call.arguments, "episodes", "num_workers", "episodes_per_unit")
    require_counts(call.arguments, "num_planners", least=0)
    check_policy(call)


def check_policy(call: Call[Any]) -> None:
    """Raise `ConfigError` for an unknown baseline, pretrained planner or protocol."""
    arguments, env = call.arguments, None
    if "env.env_id" in call.overrides:
        env = override_section(EnvConfig(env_id=""), call.overrides, "env")
    if arguments.policy.startswith(BASELINE_PREFIX):
        from diffplan.evaluation.sources import check_baseline

        env = check_baseline(arguments.policy, env)
    elif arguments.policy.startswith(PREFIX):
        find_pretrained(arguments.policy.removeprefix(PREFIX))
    if env is not None and arguments.protocol is not None:
        choose_protocol(arguments.protocol, env)


def find_source(call: Call[Any]) -> PolicySource:
    """The policy of a call with the options `policy`, `settings` and `trust`, and the sections `env` and `planning`."""
    from diffplan.cli.settings import choose_settings
    from diffplan.evaluation.sources import find_own_settings, find_policy
    from diffplan.tasks.registry import complete_env

    arguments = call.arguments
    own_env, own_settings = find_own_settings(arguments.policy)
    changed = list_section(call.overrides, "env")
    env = None
    if own_env is not None:
        env = override_section(own_env, call.overrides, "env")
    elif "env_id" in changed:
        env = complete_env(override_section(EnvConfig(env_id=""), call.overrides, "env"))
    settings = None
    if own_settings is not None or arguments.settings is not None or list_section(call.overrides, "planning"):
        settings = choose_settings(
            own_settings or PlanningConfig(),
            arguments.policy,
            file=arguments.settings,
            overrides=call.overrides,
            trust=arguments.trust,
        )
    return find_policy(arguments.policy, env=env, settings=settings)


def run(call: Call[EvaluateArguments]) -> None:
    """Evaluate, and print the scores."""
    from diffplan.cluster.evaluate.coordinator import evaluate
    from diffplan.evaluation.protocol import EPISODES_PER_UNIT
    from diffplan.evaluation.table import format_table

    arguments, source = call.arguments, find_source(call)
    summary = evaluate(
        source,
        arguments.out,
        protocol=arguments.protocol,
        episodes=arguments.episodes,
        seed=arguments.seed,
        goal=arguments.goal,
        num_workers=arguments.num_workers,
        num_planners=arguments.num_planners,
        episodes_per_unit=EPISODES_PER_UNIT if arguments.episodes_per_unit is None else arguments.episodes_per_unit,
        resume=arguments.resume,
    )
    show(format_table({summary["protocol"]: summary}, source.env))
    show(f"summary: {arguments.out}/summary.json")


COMMAND = Command(
    arguments=EvaluateArguments,
    run=run,
    check=check,
    sections={"env": EvaluatedEnv, "planning": PlanningConfig},
    aliases={"env_id": "env.env_id"},
    places=("policy", "out", "settings"),
)

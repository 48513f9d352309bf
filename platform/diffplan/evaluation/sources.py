"""Policies to evaluate, by name: a checkpoint, a planner that comes with the package, or a baseline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffplan.behaviors.offline_policy import DESCRIPTION, OfflinePolicy, load_offline_policy
from diffplan.checkpoint import load_checkpoint
from diffplan.config import EnvConfig, PlanningConfig, config_to_dict
from diffplan.errors import CheckpointError, ConfigError, unknown_name
from diffplan.evaluation.baselines.mppi import MppiSettings, follow_mppi
from diffplan.evaluation.policies import follow_clone, follow_planner, list_scripted
from diffplan.evaluation.protocol import BASELINE_PREFIX
from diffplan.planning.loading import load_planner, load_policy
from diffplan.planning.planner import Planner
from diffplan.tasks.contracts import MakePolicy, RolloutContext
from diffplan.tasks.registry import complete_env, task_of

MPPI: dict[str, MppiSettings] = {"mppi": MppiSettings(), "mppi_sparse": MppiSettings(dense_weight=0.0)}
"""MPPI in the true simulator: with the dense reward in addition (the default), or with the task's reward alone."""


@dataclass(frozen=True)
class PolicySource:
    """A policy that actors load by themselves.

    Attributes:
        name: the user's name for it; the absolute path of a directory.
        env: the environment that it acts in, without a protocol.
        record: its description in results, as JSON values.
        load: makes it; may take seconds, because it reads checkpoints.
        load_planner: loads its planner onto a device; None for a policy without a planner.
        observation_dim: size of the observations that its planner was trained with; None for a policy without one.
        protocols: protocols that its experiment names.
    """

    name: str
    env: EnvConfig
    record: dict[str, Any]
    load: Callable[[], MakePolicy]
    load_planner: Callable[[str], Planner] | None = None
    observation_dim: int | None = None
    protocols: tuple[str, ...] = ()


def find_policy(
    name: str | Path, *, env: EnvConfig | None = None, settings: PlanningConfig | None = None
) -> PolicySource:
    """The policy of a name. Errors that actors would meet are raised here.

    Args:
        name: directory or URL of a checkpoint of a diffuser or of a cloned policy, directory of a policy of
            `diffplan baseline train`, `pretrained:NAME`, or `baseline:NAME`.
        env: the environment; None for that of the checkpoint. A baseline has none of its own.
        settings: planner settings; None for those of the checkpoint.

    Raises:
        CheckpointError: no checkpoint there, a damaged one, or one of an objective that cannot act.
        ConfigError: an unknown baseline, one without an environment, or settings for a policy that does not plan.
        PlanningError: settings that the model does not support.
    """
    name = str(name)
    if name.startswith(BASELINE_PREFIX):
        return _find_baseline(name, env, settings)
    where = name if ":" in name else str(Path(name).absolute())
    if (Path(where) / DESCRIPTION).is_file():
        _refuse_settings(settings, where)
        description = load_offline_policy(where).description
        record = {"checkpoint": where, "algorithm": description.algorithm, "training": description.training}
        return PolicySource(where, description.env if env is None else env, record, _LoadOfflinePolicy(where))
    checkpoint = load_checkpoint(where)
    env = checkpoint.config.env if env is None else env
    objective, protocols = checkpoint.config.training.objective, checkpoint.config.search.protocols
    if objective == "diffusion":
        planner = load_planner(where, settings)
        record = {"checkpoint": where, "planning": config_to_dict(planner.settings)}
        load = _LoadPlanner(where, settings)
        observation_dim = planner.model.layout.observation_dim
        return PolicySource(
            where, env, record, load, load.on_device, observation_dim, checkpoint.config.search.protocols
        )
    if objective != "behavior_cloning":
        raise CheckpointError(
            f"{where}: expected a checkpoint that can act (training.objective diffusion or behavior_cloning), "
            f"got {objective}"
        )
    _refuse_settings(settings, where)
    return PolicySource(where, env, {"checkpoint": where}, _LoadClone(where), protocols=protocols)


def find_own_settings(name: str | Path) -> tuple[EnvConfig | None, PlanningConfig | None]:
    """The environment and the planner settings of a checkpoint.

    Args:
        name: as for `find_policy`.

    Returns:
        The environment, None for a baseline; and the settings, None for a policy that does not plan.

    Raises:
        CheckpointError: no checkpoint there, or a damaged one.
    """
    name = str(name)
    if name.startswith(BASELINE_PREFIX):
        return None, None
    if ":" not in name and (Path(name) / DESCRIPTION).is_file():
        return load_offline_policy(name).description.env, None
    config = load_checkpoint(name).config
    return config.env, config.planning if config.training.objective == "diffusion" else None


def check_baseline(name: str, env: EnvConfig | None) -> EnvConfig:
    """The environment of a baseline; raises `ConfigError` if there is none, or no such baseline in it."""
    if env is None:
        raise ConfigError(f"{name}: expected --env.env_id, the environment that it is to act in, got none")
    short = name.removeprefix(BASELINE_PREFIX)
    if short not in (known := [*list_scripted(task_of(env)), *MPPI]):
        raise ConfigError(unknown_name("baseline", short, known))
    return env


def _find_baseline(name: str, env: EnvConfig | None, settings: PlanningConfig | None) -> PolicySource:
    short = name.removeprefix(BASELINE_PREFIX)
    env = complete_env(check_baseline(name, env))
    _refuse_settings(settings, name)
    if short in MPPI:
        return PolicySource(name, env, {"baseline": short, "mppi": asdict(MPPI[short])}, _LoadMppi(MPPI[short]))
    return PolicySource(name, env, {"baseline": short}, _LoadScripted(short, env))


def _refuse_settings(settings: PlanningConfig | None, name: str) -> None:
    if settings is not None:
        raise ConfigError(f"{name}: expected no planner settings, for it does not plan; leave out --settings")


# Classes and not closures, because they are pickled for actors.


@dataclass(frozen=True)
class _LoadPlanner:
    where: str
    settings: PlanningConfig | None

    def __call__(self) -> MakePolicy:
        return follow_planner(self.on_device("cpu"))

    def on_device(self, device: str) -> Planner:
        return load_planner(self.where, self.settings, device=device)


@dataclass(frozen=True)
class _LoadClone:
    where: str

    def __call__(self) -> MakePolicy:
        return follow_clone(load_policy(self.where))


@dataclass(frozen=True)
class _LoadScripted:
    name: str
    env: EnvConfig

    def __call__(self) -> MakePolicy:
        return list_scripted(task_of(self.env))[self.name]


@dataclass(frozen=True)
class _LoadMppi:
    settings: MppiSettings

    def __call__(self) -> MakePolicy:
        return follow_mppi(self.settings)


@dataclass(frozen=True)
class _LoadOfflinePolicy:
    where: str

    def __call__(self) -> MakePolicy:
        policy = load_offline_policy(self.where)

        def make(context: RolloutContext) -> OfflinePolicy:
            return policy

        return make

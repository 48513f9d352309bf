"""Tasks and presets by name.

A task is found by the name of a family in `diffplan.tasks`, by an import path (`my_package.tasks:PUSHING`), or through
the entry point group `diffplan.tasks` of an installed package. No module imports a family by an import statement.
"""

from __future__ import annotations

import fnmatch
import functools
import pkgutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from diffplan.config import Config, EnvConfig
from diffplan.errors import ConfigError, unknown_name
from diffplan.importing import is_import_path, load_object
from diffplan.tasks.task import Preset, Protocol, Task

if TYPE_CHECKING:
    from diffplan.tasks.contracts import Figures

ENTRY_POINTS = "diffplan.tasks"
DEFAULT_TASK = "gymnasium"
"""The task of environments that no other task claims."""
TASK_ATTRIBUTE = "TASK"
"""Name of the task in a family's package."""


@dataclass(frozen=True)
class Experiment:
    """The experiment that the first argument of a command names.

    Attributes:
        task: the task.
        name: of the preset.
        preset: the preset; its environment names the task.
    """

    task: Task
    name: str
    preset: Preset

    @property
    def config(self) -> Config:
        """The experiment of the preset."""
        return self.preset.config


@functools.cache
def list_tasks() -> dict[str, str]:
    """Import paths of the installed tasks by name; the default task comes last."""
    import diffplan.tasks

    found: dict[str, str] = {}
    for module in pkgutil.iter_modules(diffplan.tasks.__path__):
        if module.ispkg:
            found[module.name] = f"diffplan.tasks.{module.name}:{TASK_ATTRIBUTE}"
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
        if point.name in (*found, DEFAULT_TASK) and found.get(point.name) != point.value:
            raise ConfigError(
                f"task {point.name!r}: expected one of that name, got {found.get(point.name, 'the default task')} and "
                f"{point.value}; uninstall one of the packages"
            )
        found[point.name] = point.value
    return {**found, DEFAULT_TASK: f"diffplan.tasks.gymnasium:{TASK_ATTRIBUTE}"}


_being_loaded: set[str] = set()
"""Tasks whose modules are being imported: such a module may look up presets of other tasks."""


@functools.cache
def find_task(reference: str) -> Task:
    """The task of a name or an import path.

    Raises:
        ConfigError: no such task (the message suggests the nearest), or no task at the import path.
    """
    known = list_tasks()
    if reference not in known and not is_import_path(reference):
        raise ConfigError(unknown_name("task", reference, known))
    _being_loaded.add(reference)
    try:
        task = load_object(known.get(reference, reference), "task")
    finally:
        _being_loaded.discard(reference)
    if not isinstance(task, Task):
        raise ConfigError(f"task: expected a diffplan Task at {reference}, got {type(task).__name__}")
    return task


def load_tasks() -> dict[str, Task]:
    """The installed tasks by name. One that cannot be loaded is left out, with a warning."""
    found = {}
    for name in list_tasks():
        if name not in _being_loaded:
            try:
                found[name] = find_task(name)
            except ConfigError as error:
                warnings.warn(f"task {name}: it cannot be loaded; {error}", stacklevel=2)
    return found


def task_of(env: EnvConfig) -> Task:
    """The task of an environment: the one that its config names, else the one that claims its id, else the default.

    Raises:
        ConfigError: the named task cannot be found.
    """
    if env.task is not None:
        return find_task(env.task)
    return find_task(_find_claimant(env.env_id))


def _find_claimant(env_id: str) -> str:
    for name, task in load_tasks().items():
        if any(fnmatch.fnmatchcase(env_id, pattern) for pattern in task.env_ids):
            return name
    return DEFAULT_TASK


def complete_env(env: EnvConfig) -> EnvConfig:
    """An environment with its task, and with unknown roles of columns filled in by the task.

    Raises:
        ConfigError: the environment cannot be made, or its spaces are not supported.
    """
    if env.task is None:
        env = replace(env, task=_find_claimant(env.env_id))
    complete = task_of(env).complete_env or find_task(DEFAULT_TASK).complete_env
    assert complete is not None
    return complete(env)


def fill_roles(env: EnvConfig) -> EnvConfig:
    """An environment with the roles that its task knows. If it is not installed here, some roles may stay unknown.

    Raises:
        ConfigError: it names a task that cannot be found.
    """
    task = task_of(env)
    if task.complete_env is None or task.name == DEFAULT_TASK:
        return env
    try:
        return task.complete_env(env)
    except ConfigError:  # the task may have to make the environment, which is not installed here
        return env


def make_figures(env: EnvConfig) -> Figures:
    """The figures of an environment: of plans, rollouts and data."""
    make = task_of(env).figures or find_task(DEFAULT_TASK).figures
    assert make is not None
    return make(env)


def make_experiment_figures(config: Config) -> Figures:
    """The figures of an experiment, with problems whose goals are in the goal columns of its plans."""
    goal_columns = config.goal_value_columns if config.goal_columns else ()
    return make_figures(replace(config.env, goal_columns=goal_columns))


def list_guides(env: EnvConfig) -> Mapping[str, type]:
    """The guides of an environment's task, beside those of `diffplan.diffusion.guides`; none if it is not installed."""
    try:
        return task_of(env).guides()
    except ConfigError:
        return {}


def list_task_presets(task: Task) -> Mapping[str, Preset]:
    """The presets of a task; the generic one if it has none."""
    return task.presets or find_task(DEFAULT_TASK).presets


def _all_presets() -> dict[str, tuple[str, Preset]]:
    """Presets of all installed tasks by their names, each with the name of its task."""
    found: dict[str, tuple[str, Preset]] = {}
    for name, task in load_tasks().items():
        for preset, value in task.presets.items():
            found.setdefault(preset, (name, value))
    return found


def find_experiment(text: str) -> Experiment:
    """The experiment that `PRESET`, `TASK` or `TASK/PRESET` names; a task alone means its first preset.

    Args:
        text: the name of a preset or of a task, or for example `my_package.tasks:PUSHING/small`.

    Raises:
        ConfigError: no such preset or task; the message suggests the nearest.
    """
    reference, slash, name = text.partition("/")
    known = {} if slash else _all_presets()
    if text in known:
        reference, preset = known[text]
        return _make_experiment(reference, text, preset)
    if not is_import_path(reference) and reference not in list_tasks():
        raise ConfigError(_unknown_experiment(text))
    presets = list_task_presets(find_task(reference))
    name = name if slash else next(iter(presets))
    if name not in presets:
        raise ConfigError(unknown_name(f"preset of {reference}", name, presets))
    return _make_experiment(reference, name, presets[name])


def _make_experiment(reference: str, name: str, preset: Preset) -> Experiment:
    env = replace(preset.config.env, task=reference)
    return Experiment(find_task(reference), name, replace(preset, config=replace(preset.config, env=env)))


def _unknown_experiment(text: str) -> str:
    """One line about an unknown preset or task; suggests the nearest name instead of listing all."""
    import difflib

    near = difflib.get_close_matches(text, [*_all_presets(), *list_tasks()], n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "`diffplan train --list` shows the presets"
    return f"expected a preset, or a task (a name, or an import path such as my_package:TASK), got {text!r}; {hint}"


def find_preset(name: str) -> Preset:
    """A preset: its config and the sizes of its environment; raises `ConfigError` as `find_experiment` does."""
    return find_experiment(name).preset


def get_preset(name: str) -> Config:
    """The config of a preset; raises `ConfigError` as `find_experiment` does."""
    return find_preset(name).config


def list_presets() -> list[str]:
    """Names of the presets of all installed tasks."""
    return sorted(_all_presets())


def find_frame(name: str) -> Callable[[str | None], Any]:
    """A change of coordinates on import, by name, from any installed task; takes Gymnasium's spec of the source (JSON).

    Raises:
        ConfigError: none of that name; the message suggests the nearest.
    """
    frames = {key: make for task in load_tasks().values() for key, make in task.frames.items()}
    if name not in frames:
        raise ConfigError(unknown_name("--frame", name, frames))
    return frames[name]


def find_protocols(env: EnvConfig) -> dict[str, Protocol]:
    """The protocols of an environment by name."""
    found = task_of(env).protocols
    return {
        name: protocol
        for name, protocol in found.items()
        if not protocol.env_ids or any(fnmatch.fnmatchcase(env.env_id, pattern) for pattern in protocol.env_ids)
    }

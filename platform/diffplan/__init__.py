"""diffplan: planning with diffusion on Ray.

The public API is imported on first use, so `import diffplan` costs nothing:

* `load_policy(path)` makes what acts by a checkpoint: `reset(observation, goal)`, then `act(observation)`;
* `load_planner(path)` makes a planner; `Fixed` and `Bounds` are what plans can be asked to keep;
* `open_dataset(path)` opens a trajectory dataset;
* `get_preset(name)`, `with_overrides(config, {...})` make the config of an experiment;
* `Task`, `Preset` and `Protocol` describe environments of your own; `diffplan.tasks.contracts` has what a task brings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffplan.config import Config, EnvConfig, PlanningConfig, with_overrides
    from diffplan.data.format.dataset import TrajectoryDataset, open_dataset
    from diffplan.evaluation.acting import LoadedPolicy, load_policy
    from diffplan.planning.constraints import Bounds, Fixed
    from diffplan.planning.loading import load_planner
    from diffplan.planning.planner import Planner
    from diffplan.tasks.registry import find_task, get_preset, list_presets
    from diffplan.tasks.task import Preset, Protocol, Task
    from diffplan.types import Plan

_HOMES = {
    "Config": "diffplan.config",
    "EnvConfig": "diffplan.config",
    "PlanningConfig": "diffplan.config",
    "with_overrides": "diffplan.config",
    "TrajectoryDataset": "diffplan.data.format.dataset",
    "open_dataset": "diffplan.data.format.dataset",
    "LoadedPolicy": "diffplan.evaluation.acting",
    "load_policy": "diffplan.evaluation.acting",
    "Planner": "diffplan.planning.planner",
    "load_planner": "diffplan.planning.loading",
    "Bounds": "diffplan.planning.constraints",
    "Fixed": "diffplan.planning.constraints",
    "Plan": "diffplan.types",
    "find_task": "diffplan.tasks.registry",
    "get_preset": "diffplan.tasks.registry",
    "list_presets": "diffplan.tasks.registry",
    "Preset": "diffplan.tasks.task",
    "Protocol": "diffplan.tasks.task",
    "Task": "diffplan.tasks.task",
}

__all__ = [
    "Bounds",
    "Config",
    "EnvConfig",
    "Fixed",
    "LoadedPolicy",
    "Plan",
    "Planner",
    "PlanningConfig",
    "Preset",
    "Protocol",
    "Task",
    "TrajectoryDataset",
    "find_task",
    "get_preset",
    "list_presets",
    "load_planner",
    "load_policy",
    "open_dataset",
    "with_overrides",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'diffplan' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)

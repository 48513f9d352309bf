"""diffplan: planning with diffusion on Ray.

The public API is imported on first use, so `import diffplan` costs nothing:

* `open_dataset(path)` opens a trajectory dataset;
* `load_planner(path)` makes a planner from a checkpoint; `Fixed` and `Bounds` are what plans can be asked to keep;
* `get_preset(name)`, `with_overrides(config, {...})` make the config of an experiment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffplan.config import Config, PlanningConfig, with_overrides
    from diffplan.data.dataset import TrajectoryDataset, open_dataset
    from diffplan.planning.loading import load_planner
    from diffplan.planning.planner import Planner
    from diffplan.planning.problem import Bounds, Fixed
    from diffplan.tasks.registry import get_preset, list_presets

_HOMES = {
    "Config": "diffplan.config",
    "PlanningConfig": "diffplan.config",
    "with_overrides": "diffplan.config",
    "TrajectoryDataset": "diffplan.data.dataset",
    "open_dataset": "diffplan.data.dataset",
    "Planner": "diffplan.planning.planner",
    "load_planner": "diffplan.planning.loading",
    "Bounds": "diffplan.planning.problem",
    "Fixed": "diffplan.planning.problem",
    "get_preset": "diffplan.tasks.registry",
    "list_presets": "diffplan.tasks.registry",
}

__all__ = [
    "Bounds",
    "Config",
    "Fixed",
    "Planner",
    "PlanningConfig",
    "TrajectoryDataset",
    "get_preset",
    "list_presets",
    "load_planner",
    "open_dataset",
    "with_overrides",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'diffplan' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)

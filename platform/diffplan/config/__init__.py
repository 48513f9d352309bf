"""The complete description of an experiment: frozen dataclasses, a dict/JSON codec and dotted overrides.

A `Config` holds everything from the environment to the evaluation. `diffplan.tasks` has the presets; the command line,
Ray Tune and checkpoints all use the same dotted names for its fields (`diffusion.num_diffusion_steps`).
"""

from diffplan.config.calibration import CalibrationConfig
from diffplan.config.codec import (
    config_from_dict,
    config_from_json,
    config_to_dict,
    config_to_json,
    with_overrides,
)
from diffplan.config.environment import CollectionConfig, EnvConfig
from diffplan.config.planning import (
    Actions,
    ConditionConfig,
    GuidanceConfig,
    HeadControl,
    HorizonConfig,
    InverseDynamics,
    Never,
    OwnController,
    PlanningConfig,
    Receding,
    SamplingConfig,
    SelectionConfig,
    Sooner,
    Targets,
    Tracking,
)
from diffplan.config.schema import (
    Config,
    DiffusionConfig,
    NetworkConfig,
    SearchConfig,
    TrainingConfig,
)
from diffplan.config.windows import WindowConfig

__all__ = [
    "Actions",
    "CalibrationConfig",
    "CollectionConfig",
    "ConditionConfig",
    "Config",
    "DiffusionConfig",
    "EnvConfig",
    "GuidanceConfig",
    "HeadControl",
    "HorizonConfig",
    "InverseDynamics",
    "NetworkConfig",
    "Never",
    "OwnController",
    "PlanningConfig",
    "Receding",
    "SamplingConfig",
    "SearchConfig",
    "SelectionConfig",
    "Sooner",
    "Targets",
    "Tracking",
    "TrainingConfig",
    "WindowConfig",
    "config_from_dict",
    "config_from_json",
    "config_to_dict",
    "config_to_json",
    "with_overrides",
]

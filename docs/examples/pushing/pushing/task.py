"""The task: everything that diffplan is told of this environment. Each part may be left out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from diffplan.config import (
    CollectionConfig,
    Config,
    DiffusionConfig,
    EnvConfig,
    HorizonConfig,
    NetworkConfig,
    OwnController,
    PlanningConfig,
    SamplingConfig,
    SearchConfig,
    Sooner,
    TrainingConfig,
    WindowConfig,
)
from diffplan.config.study import Among, Between, Study
from diffplan.tasks.task import Preset, Protocol, Task
from pushing import ENV_ID
from pushing.controller import PushingController
from pushing.environment import STEP_SECONDS
from pushing.metrics import METRICS, get_references, measure
from pushing.scripted import BEHAVIORS, POLICIES

if TYPE_CHECKING:
    from diffplan.tasks.contracts import Figures

ROLES = EnvConfig(
    env_id=f"pushing:{ENV_ID}",  # module:Id, which works where the package is not installed too
    position_columns=(0, 1, 2, 3, 4, 5),
    velocity_columns=(6, 7, 8, 9, 10, 11),
    goal_columns=(3, 4, 5),
    step_seconds=STEP_SECONDS,
)
"""What the columns of an observation mean: positions of pusher and block, their velocities; goals are for the block."""

SMALL = Config(
    env=ROLES,
    collection=CollectionConfig(behavior="scripted", action_noise=0.15, num_steps=200_000),
    windows=WindowConfig(min_horizon=4, max_horizon=18, horizon_multiple=1, stride=5),
    network=NetworkConfig(dim=32, dim_mults=(1, 2, 4)),
    diffusion=DiffusionConfig(num_diffusion_steps=32),
    training=TrainingConfig(num_steps=2_500),
    planning=PlanningConfig(
        sampling=SamplingConfig(num_steps=8),
        horizon=HorizonConfig(min=4, max=18, multiple=1, rule="scan", max_speed_error=1.5),
        controller=OwnController(kind="push"),
        replanning=Sooner(max_deviation=0.0),
    ),
    search=SearchConfig(num_trials=6, episodes_per_block=16, num_blocks=2),
)
"""Trains in about a minute on two CPU cores."""

SMOKE = replace(
    SMALL,
    collection=CollectionConfig(behavior="scripted", num_steps=6_000, episodes_per_unit=10),
    network=NetworkConfig(dim=8, dim_mults=(1, 2)),
    training=TrainingConfig(num_steps=20, batch_size=8, checkpoint_interval=10, picture_interval=20),
    search=SearchConfig(num_trials=2, episodes_per_block=2, num_blocks=1),
)
"""Every stage in seconds, to see that they work; its plans are bad."""

STUDY = Study(
    description="how bold plans are, how fast they are followed, and by which controller",
    vary={
        "planning.horizon.max_speed_error": Between(low=0.8, high=3.0),
        "planning.controller.pace": Between(low=0.8, high=1.5),
        "planning.replanning.interval": Among(among=(0, 20, 40)),
        "planning.controller.kind": Among(among=("push", "inverse_dynamics")),
    },
)


def complete_env(env: EnvConfig) -> EnvConfig:
    """An environment with the roles of its columns, where they are not given."""
    if env.position_columns:
        return env
    return replace(ROLES, env_id=env.env_id, env_kwargs=env.env_kwargs, task=env.task)


def _make_figures(env: EnvConfig) -> Figures:
    from pushing.figures import PushingFigures  # imported late, for matplotlib takes a while

    return PushingFigures(env)


TASK = Task(
    name="pushing",
    description="a pusher in three dimensions that pushes a block to a target",
    env_ids=("pushing/*", "pushing:pushing/*"),
    presets={
        "pushing-small": Preset(config=SMALL, observation_dim=12, action_dim=3),
        "pushing-smoke": Preset(config=SMOKE, observation_dim=12, action_dim=3),
    },
    complete_env=complete_env,
    protocols={
        "near": Protocol(title="Near", note="targets near the block", env_kwargs={"reach": "near"}),
        "far": Protocol(title="Far", note="targets across the box", env_kwargs={"reach": "far"}),
    },
    behaviors=BEHAVIORS,
    policies=POLICIES,
    controllers={"push": PushingController},
    metrics=METRICS,
    measure=measure,
    objective="score",
    references=get_references,
    figures=_make_figures,
    studies={"planner": STUDY},
)

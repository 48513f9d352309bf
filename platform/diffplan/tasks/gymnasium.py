"""The default task: any Gymnasium environment with Box observations and actions.

Episodes are scored by their return. They have goals if observations are Dicts with `achieved_goal` and `desired_goal`,
or if `windows.goal_columns` names the columns that `goal` in the infos has values for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import gymnasium

from diffplan.config import (
    Actions,
    CollectionConfig,
    Config,
    DiffusionConfig,
    EnvConfig,
    GuidanceConfig,
    HorizonConfig,
    NetworkConfig,
    PlanningConfig,
    Receding,
    SamplingConfig,
    SearchConfig,
    SelectionConfig,
    TrainingConfig,
    WindowConfig,
)
from diffplan.config.study import Among, Between, Study
from diffplan.environments import GoalInInfos, make_env
from diffplan.errors import ConfigError
from diffplan.tasks.task import Preset, Task

if TYPE_CHECKING:
    from diffplan.tasks.contracts import Figures

HORIZON = 8
"""Transitions of a window and of a plan. Few are enough, because the value accounts for what follows; in a longer plan
of random actions no candidate is good throughout."""


def complete_env(env: EnvConfig) -> EnvConfig:
    """An environment with its goal columns, if its observations are Dicts with goals.

    Raises:
        ConfigError: it cannot be made, or its observations or actions are not vectors of numbers.
    """
    made = make_env(env)
    try:
        for name, space, advice in (
            ("observations", made.observation_space, "flatten them with a wrapper; images are not planned in"),
            ("actions", made.action_space, "diffusion plans continuous actions"),
        ):
            if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
                raise ConfigError(
                    f"env.env_id {env.env_id!r}: expected {name} in a Box of one dimension, got {_describe(space)}; "
                    f"{advice}"
                )
        if isinstance(made, GoalInInfos) and not env.goal_columns:
            return replace(env, goal_columns=made.goal_columns)
        return env
    finally:
        made.close()


def _describe(space: gymnasium.Space) -> str:
    if isinstance(space, gymnasium.spaces.Dict):
        return f"a Dict of {', '.join(space.spaces)}"
    if isinstance(space, gymnasium.spaces.Box):
        return f"a Box of shape {space.shape}"
    return str(space)


def _make_figures(env: EnvConfig) -> Figures:
    from diffplan.report.curves import CurveFigures

    return CurveFigures(env)


def _make_preset() -> Preset:
    """Receding-horizon control: plans of actions and observations, guided and ranked by a value."""
    return Preset(
        config=Config(
            env=EnvConfig(env_id=""),
            collection=CollectionConfig(num_steps=100_000),
            windows=WindowConfig(
                min_horizon=HORIZON,
                max_horizon=HORIZON,
                horizon_multiple=1,
                stride=1,
                columns="actions_observations",
                padding="end",
            ),
            network=NetworkConfig(dim=32, dim_mults=(1, 2)),
            # One step changes an observation by little of its range; v-prediction resolves such small changes better.
            diffusion=DiffusionConfig(num_diffusion_steps=32, prediction="velocity"),
            training=TrainingConfig(num_steps=4_000, batch_size=128, discount=0.98),
            planning=PlanningConfig(
                sampling=SamplingConfig(num_steps=5),
                horizon=HorizonConfig(min=HORIZON, max=HORIZON, multiple=1),
                selection=SelectionConfig(num_candidates=4, rule="guide"),
                guidance=GuidanceConfig(value="actions", scale=1.5, target="denoised"),
                controller=Actions(),
                replanning=Receding(interval=1),
            ),
            search=SearchConfig(num_trials=8, episodes_per_block=8, num_blocks=2),
        )
    )


_STUDY = Study(
    description="how plans are made: strength of the value, candidates, how often to plan again",
    vary={
        "planning.guidance.scale": Between(low=0.0, high=4.0),
        "planning.selection.num_candidates": Among(among=(1, 4, 16)),
        "planning.replanning.interval": Among(among=(1, 2, 4)),
    },
)


TASK = Task(
    name="gymnasium",
    description="any Gymnasium environment with Box observations and actions",
    presets={"gymnasium": _make_preset()},
    complete_env=complete_env,
    figures=_make_figures,
    studies={"planner": _STUDY},
)

"""What plans are asked for in this family: a speed, where the environment has a target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffplan.config import EnvConfig
from diffplan.planning.constraints import Fixed
from diffplan.tasks.contracts import Ask


def ask_for_speed(env: EnvConfig, observations: np.ndarray, infos: Mapping[str, Any]) -> Ask:
    """Ask for the mean speed `target_speed` up to the end of the plan, if the environment has that argument.

    Where observations have the position along x, it is fixed at the end of the plan. Where they do not, a guide pulls
    the mean of the planned velocities along x towards the speed.
    """
    del infos
    target = env.env_kwargs.get("target_speed")
    if target is None:
        return Ask()
    if not env.env_kwargs.get("exclude_current_positions_from_observation", True):
        return Ask(constraints=(Fixed([float(target)], columns=(0,), step=-1, per_second=True),))
    return Ask(guides=(f"-abs(mean(observation[..., {observations.shape[1] // 2}]) - {float(target)})",))

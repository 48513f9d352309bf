"""A controller for environments whose actions are targets of what they observe, such as joint angles to go to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffplan.config import EnvConfig
from diffplan.errors import PlanningError
from diffplan.planning.control.controllers import PlanFollower
from diffplan.planning.interpolation import Interpolation


class TargetController(PlanFollower):
    """Acts by the planned values of observation columns, one environment step ahead.

    Source: the position control of Janner et al. 2022, section 5.2, where planned joint angles are the targets of the
    arm.

    Args:
        env: the environment.
        columns: the observation columns whose planned values are the action, in the order of its columns.
        action_low: lower bounds of the action.
        action_high: upper bounds of the action.
        interpolation: between plan steps.
        pace: factor on the speed at which plans are followed.
        max_lag: a plan pauses while the position is further than this from it; 0 never pauses.

    Raises:
        PlanningError: another number of columns than of the actions.
    """

    can_hold = False

    def __init__(
        self,
        env: EnvConfig,
        columns: Sequence[int],
        action_low: np.ndarray | float = -1.0,
        action_high: np.ndarray | float = 1.0,
        interpolation: Interpolation = "linear",
        pace: float = 1.0,
        max_lag: float = 0.0,
    ) -> None:
        super().__init__(env, action_low, action_high, interpolation, pace, max_lag)
        if np.ndim(action_low) and np.size(action_low) != len(columns):
            raise PlanningError(
                f"planning.controller.columns: expected {np.size(action_low)} observation columns, one for each column "
                f"of an action of {env.env_id}, got {list(columns)}"
            )
        self._columns = list(columns)

    def compute_actions(self, observations: np.ndarray, targets: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """The planned values."""
        del observations, envs
        return targets[:, self._columns]

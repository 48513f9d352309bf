"""From plans to actions: a controller of this task's own.

A tracking controller brings the pusher where the plan has it. But a block slides off a pusher that is a little beside
the plan, and then the best tracking does not bring it back. So this one looks at the block too: while the plan pushes,
the block is pushed to where the plan has it.
"""

from __future__ import annotations

import numpy as np

from diffplan.config import OwnController
from diffplan.planning.control.controllers import PlanFollower
from diffplan.planning.control.registry import ControllerContext
from pushing.environment import BLOCK, BLOCK_VELOCITY, PUSHER, PUSHER_VELOCITY
from pushing.scripted import push, steer

GAIN = 3.0
"""Velocity of the block for each unit that it is away from the plan."""
SLOWEST, FASTEST = 0.1, 1.2
"""Speed below which the block is left where it is, and speed that it is pushed at, at most."""


class PushingController(PlanFollower):
    """Pushes the block to where the plan has it, and else follows the planned way of the pusher.

    Args:
        context: bounds of the actions, and settings.
    """

    def __init__(self, context: ControllerContext) -> None:
        settings = context.settings.controller
        assert isinstance(settings, OwnController)
        super().__init__(
            context.env,
            context.action_low,
            context.action_high,
            settings.interpolation,
            settings.pace,
            settings.max_lag,
        )

    def compute_actions(self, observations: np.ndarray, targets: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """Actions float[num, 3]; they are clipped to the bounds of the action space."""
        velocities = targets[:, BLOCK_VELOCITY] + GAIN * (targets[:, BLOCK] - observations[:, BLOCK])
        speeds = np.linalg.norm(velocities, axis=1, keepdims=True)
        pushed = push(observations, velocities * np.minimum(1.0, FASTEST / np.maximum(speeds, 1e-9)))
        follow = steer(observations, targets[:, PUSHER], targets[:, PUSHER_VELOCITY])
        return np.where(speeds > SLOWEST, pushed, follow)

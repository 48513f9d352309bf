"""How to push a block by hand: what collects the data, what planners are compared with, and half of the controller."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffplan.errors import ConfigError
from diffplan.tasks.contracts import Behavior, BehaviorContext, BehaviorPart, Policy, RolloutContext
from pushing.environment import (
    ACTION_HIGH,
    ACTION_LOW,
    BLOCK,
    CONTACT,
    DRAG,
    HOVER,
    PUSHER,
    PUSHER_VELOCITY,
    STIFFNESS,
    THRUST,
    is_at_goal,
)

CLEARANCE = 0.15
"""How far from touching it the pusher goes round the block."""
MAX_TURN, IN_LINE = 0.8, 0.35
"""How far ahead on its way round it aims, and how far from right behind the block it begins to press, in radians."""
SPEED, SLOWING = 0.8, 3.0
"""Speed at which the block is pushed, and speed for each unit of distance near the target."""
POSITION_GAIN, VELOCITY_GAIN = 40.0, 6.0
"""Acceleration for each unit of distance and of velocity."""


GOAL_LIMIT = 0.9
"""Points that the behavior pushes to are within this on each axis."""
MIN_GOAL_STEPS, MAX_GOAL_STEPS = 15, 120
"""Steps for which a point is pursued, at least and at most."""


def steer(observations: np.ndarray, targets: np.ndarray, target_velocities: np.ndarray | float = 0.0) -> np.ndarray:
    """Actions that bring pushers to points, float[num, 3], where they are to have some velocity."""
    velocities = observations[:, PUSHER_VELOCITY]
    accelerations = POSITION_GAIN * (targets - observations[:, PUSHER]) + VELOCITY_GAIN * (
        target_velocities - velocities
    )
    return HOVER + (accelerations + DRAG * velocities) / THRUST


def push(observations: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Actions that move blocks, not clipped: go round behind the block, then press.

    Args:
        observations: float[num, 12].
        velocities: how the blocks are to move, float[num, 3].
    """
    blocks = observations[:, BLOCK]
    speeds = np.linalg.norm(velocities, axis=1, keepdims=True)
    forward = velocities / np.maximum(speeds, 1e-9)
    # Where the pusher is, seen from the block: so far round from right behind it, on this side.
    offsets = observations[:, PUSHER] - blocks
    behind = -(offsets * forward).sum(axis=1, keepdims=True)
    aside = offsets + behind * forward
    lengths = np.linalg.norm(aside, axis=1, keepdims=True)
    side = np.where(lengths > 1e-6, aside / np.maximum(lengths, 1e-6), _perpendicular(forward))
    angles = np.arctan2(lengths, behind)

    pressing = blocks - (CONTACT - speeds / STIFFNESS) * forward
    angles_ahead = np.maximum(angles - MAX_TURN, 0.0)
    going_round = blocks + (CONTACT + CLEARANCE) * (np.sin(angles_ahead) * side - np.cos(angles_ahead) * forward)
    is_behind = angles < IN_LINE
    return steer(observations, np.where(is_behind, pressing, going_round), np.where(is_behind, velocities, 0.0))


def approach(observations: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """Velocities that bring blocks to points, float[num, 3]."""
    ways = goals - observations[:, BLOCK]
    distances = np.linalg.norm(ways, axis=1, keepdims=True)
    return ways * np.minimum(SPEED / np.maximum(distances, 1e-9), SLOWING)


def _perpendicular(directions: np.ndarray) -> np.ndarray:
    """Some direction at right angles to each of float[num, 3]."""
    found = np.cross(directions, np.eye(3)[np.abs(directions).argmin(axis=1)])
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)


class PushingBehavior:
    """Pushes the block to one random point after another, with noise, so that data show many ways.

    Args:
        action_noise: standard deviation of noise added to actions.
    """

    def __init__(self, action_noise: float) -> None:
        self._action_noise = action_noise

    def reset(self, observations: np.ndarray, generators: Sequence[np.random.Generator]) -> None:
        """Start episodes. Each environment has its own generator, so that its data do not depend on the others."""
        self._generators = generators
        self._goals = np.stack([_draw_goal(generator) for generator in generators])
        self._steps = np.zeros(len(generators), dtype=int)

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions float32[num_envs, 3]."""
        done = is_at_goal(observations, self._goals) & (self._steps >= MIN_GOAL_STEPS)
        for i in np.flatnonzero(done | (self._steps >= MAX_GOAL_STEPS)):
            self._goals[i], self._steps[i] = _draw_goal(self._generators[int(i)]), 0
        self._steps += 1
        noise = np.stack([generator.standard_normal(3) for generator in self._generators])
        actions = push(observations, approach(observations, self._goals)) + self._action_noise * noise
        return np.clip(actions, ACTION_LOW, ACTION_HIGH).astype(np.float32)

    def columns(self) -> dict[str, np.ndarray]:
        """`goal`: the point that is pursued, a further column of the dataset."""
        return {"goal": self._goals.copy()}


def _draw_goal(generator: np.random.Generator) -> np.ndarray:
    return generator.uniform(-GOAL_LIMIT, GOAL_LIMIT, 3)


class PushingPolicy:
    """Pushes the block to the goal of the episode, without a model."""

    def reset(self, observations: np.ndarray, goals: np.ndarray | None) -> None:
        """Start episodes."""
        if goals is None:
            raise ConfigError("baseline:scripted: expected episodes with a goal, got none")
        self._goals = goals

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions float32[num_envs, 3]."""
        return np.clip(push(observations, approach(observations, self._goals)), ACTION_LOW, ACTION_HIGH).astype(
            np.float32
        )


def _make_behavior(context: BehaviorContext) -> Behavior:
    return PushingBehavior(context.action_noise)


def _make_policy(context: RolloutContext) -> Policy:
    return PushingPolicy()


BEHAVIORS = {"scripted": BehaviorPart(_make_behavior, columns={"goal": 3})}
POLICIES = {"scripted": _make_policy}

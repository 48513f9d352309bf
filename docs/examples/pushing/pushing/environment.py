"""The environment: a pusher that flies in a box and pushes a block to a target, in NumPy.

Three thrusters move the pusher, one on each axis, and work against a current: an action of 0.8 holds it still, the
least one (-0.4) and the greatest one (2.0) accelerate it alike. The block resists: it moves only while the pusher
presses into it, away from the pusher and as fast as it is pressed, and stays where it was left.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
from gymnasium import spaces

STEP_SECONDS = 0.05
ACTION_LOW, ACTION_HIGH = -0.4, 2.0
HOVER = 0.8
"""The action that holds the pusher still."""
THRUST, DRAG = 5.0, 4.0
"""Acceleration for each unit of action above `HOVER`, and deceleration for each unit of velocity."""
STIFFNESS = 10.0
"""Speed of the block for each unit that the pusher presses into it."""
CONTACT = 0.3
"""Distance between the centers of pusher and block at which they touch."""
BLOCK_LIMIT, PUSHER_LIMIT = 1.0, 1.6
"""Largest coordinate of the block and of the pusher, which has room to get behind the block everywhere."""
GOAL_RADIUS = 0.15
"""The block is at its target within this distance."""
START_LIMIT = 0.8
"""Largest coordinate of the block and of its target at the start."""
START_DISTANCES = (0.4, 0.8)
"""How far the pusher is from the block at the start, at least and at most."""
REACHES = {"any": (0.3, 2.0), "near": (0.3, 0.8), "far": (1.2, 2.0)}
"""How far targets are from the block at the start, at least and at most."""
PUSHER, BLOCK = slice(0, 3), slice(3, 6)
PUSHER_VELOCITY, BLOCK_VELOCITY = slice(6, 9), slice(9, 12)
"""Columns of an observation."""

Reach = Literal["any", "near", "far"]
OBSERVATION_SPACE = spaces.Box(-np.inf, np.inf, (12,), np.float64)
ACTION_SPACE = spaces.Box(ACTION_LOW, ACTION_HIGH, (3,), np.float32)


def move(observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """The physics: one step of 0.05 s, for one environment or a batch.

    Args:
        observations: float64[..., 12]; they are the whole state.
        actions: float[..., 3]; clipped to [-0.4, 2.0].

    Returns:
        The observations after it, float64[..., 12].
    """
    pushers, blocks, velocities = (
        observations[..., PUSHER],
        observations[..., BLOCK],
        observations[..., PUSHER_VELOCITY],
    )
    forces = np.clip(actions, ACTION_LOW, ACTION_HIGH) - HOVER
    velocities = velocities + STEP_SECONDS * (THRUST * forces - DRAG * velocities)
    free = pushers + STEP_SECONDS * velocities
    moved_pushers = np.clip(free, -PUSHER_LIMIT, PUSHER_LIMIT)
    velocities = np.where(free == moved_pushers, velocities, 0.0)  # a wall stops it
    away = blocks - moved_pushers
    distances = np.sqrt((away**2).sum(axis=-1, keepdims=True))
    pressed = np.maximum(CONTACT - distances, 0.0)
    moved_blocks = blocks + STEP_SECONDS * STIFFNESS * pressed * away / np.maximum(distances, 1e-9)
    moved_blocks = np.clip(moved_blocks, -BLOCK_LIMIT, BLOCK_LIMIT)
    return np.concatenate([moved_pushers, moved_blocks, velocities, (moved_blocks - blocks) / STEP_SECONDS], axis=-1)


def is_at_goal(observations: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """Whether the block is at its target, bool[...]."""
    return ((observations[..., BLOCK] - goals) ** 2).sum(axis=-1) <= GOAL_RADIUS**2


def draw_start(
    generator: np.random.Generator, reach: Reach, goal: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The first observation, at rest, and the target of an episode; the target may be given.

    Raises:
        ValueError: a target outside of the block's limits.
    """
    if goal is not None:
        goal = np.asarray(goal, dtype=np.float64)
        if goal.shape != (3,) or not (np.abs(goal) <= BLOCK_LIMIT).all():
            raise ValueError(f"goal: expected 3 numbers from {-BLOCK_LIMIT} to {BLOCK_LIMIT}, got {goal.tolist()}")
    least, most = REACHES[reach]
    block, drawn = generator.uniform(-START_LIMIT, START_LIMIT, (2, 3))
    while goal is None and not least <= np.linalg.norm(drawn - block) <= most:
        block, drawn = generator.uniform(-START_LIMIT, START_LIMIT, (2, 3))
    direction = generator.standard_normal(3)
    pusher = block + generator.uniform(*START_DISTANCES) * direction / np.linalg.norm(direction)
    return np.concatenate([pusher, block, np.zeros(6)]), drawn if goal is None else goal


class PushingEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """Push a block to a target; every step that it is there is paid, and reaching it ends nothing.

    Observation: positions of pusher (3) and block (3), velocities of pusher (3) and block (3). Action: thrust on each
    axis in [-0.4, 2.0]. Reward: 1 while the block is within 0.15 of the target. `info` has `goal` float64[3] and
    `success` (the block is there now). `reset(options={"goal": [x, y, z]})` sets the target.

    Args:
        reach: how far the target is from the block, a name of `REACHES`.
        render_mode: `rgb_array` or None.
    """

    metadata: ClassVar[dict[str, Any]] = {  # pyright: ignore[reportIncompatibleVariableOverride]
        "render_modes": ["rgb_array"],
        "render_fps": round(1 / STEP_SECONDS),
    }

    def __init__(self, reach: Reach = "any", render_mode: str | None = None) -> None:
        check_reach(reach)
        self.observation_space, self.action_space = OBSERVATION_SPACE, ACTION_SPACE
        self.reach: Reach = reach
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed)
        self._observation, self._goal = draw_start(self.np_random, self.reach, (options or {}).get("goal"))
        return self._observation.copy(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move for one step."""
        self._observation = move(self._observation, np.asarray(action, dtype=np.float64))
        info = self._info()
        return self._observation.copy(), float(info["success"]), False, False, info

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """The box from above and from the side, uint8[240, 480, 3]; None without a render mode."""
        if self.render_mode is None:
            return None
        views = [self._draw_view(0, 1), self._draw_view(0, 2)]
        return np.concatenate(views, axis=1)

    def _draw_view(self, across: int, up: int, size: int = 240) -> np.ndarray:
        image = np.full((size, size, 3), 245, dtype=np.uint8)
        grid = np.linspace(-PUSHER_LIMIT, PUSHER_LIMIT, size)
        for center, radius, color in (
            (self._goal, GOAL_RADIUS, (230, 190, 60)),
            (self._observation[BLOCK], CONTACT / 2, (70, 90, 120)),
            (self._observation[PUSHER], CONTACT / 2, (200, 80, 60)),
        ):
            inside = (grid[None] - center[across]) ** 2 + (grid[::-1, None] - center[up]) ** 2 <= radius**2
            image[inside] = color
        return image

    def _info(self) -> dict[str, Any]:
        return {"goal": self._goal.copy(), "success": bool(is_at_goal(self._observation, self._goal))}


def check_reach(reach: str) -> None:
    """Raises `ValueError` for a name that is not one of `REACHES`."""
    if reach not in REACHES:
        raise ValueError(f"reach: expected one of {', '.join(REACHES)}, got {reach!r}")

"""What an arm is told and what is seen of it: its joint angles, or the place of its cup."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from diffplan_envs.arm import FOREARM, NUM_JOINTS, SHOULDER_HEIGHT, TOOL, UPPER_ARM, find_cup, solve_joints

Space = Literal["joints", "cup"]
MAX_ANGLE = 7.0
"""Joint angles that an action may ask for are at most this far from 0, in rad."""
_LOW, _HIGH = np.array([-0.8, -0.8, 0.0]), np.array([0.8, 0.8, 0.85])
"""Places that an action may ask for, in m."""
_LEAST_RADIUS = 0.25
_REACH = 0.995 * (UPPER_ARM + FOREARM)
_SHOULDER = np.array([0.0, 0.0, SHOULDER_HEIGHT - TOOL])
"""The place of the cup from which the arm reaches equally far in all directions."""


@dataclass(frozen=True)
class StackingSpace:
    """The columns of observations and actions.

    * `joints`: an observation is 7 joint angles, and position, quaternion and held or not of each block; an action is 7
      joint angles and a number for each block.
    * `cup`: an observation is the position of the cup, and position and held or not of each block; an action is a
      position of the cup and a number for each block.

    Attributes:
        name: which of the two.
        num_blocks: number of blocks.
    """

    name: Space
    num_blocks: int

    @property
    def num_arm(self) -> int:
        """Columns of the arm."""
        return NUM_JOINTS if self.name == "joints" else 3

    @property
    def num_each(self) -> int:
        """Columns of each block in an observation."""
        return 8 if self.name == "joints" else 4

    @property
    def observation_size(self) -> int:
        """Columns of an observation."""
        return self.num_arm + self.num_each * self.num_blocks

    @property
    def block_columns(self) -> tuple[int, ...]:
        """Columns of the positions of the blocks in an observation, block by block."""
        starts = [self.num_arm + self.num_each * block for block in range(self.num_blocks)]
        return tuple(start + axis for start in starts for axis in range(3))

    @property
    def held_columns(self) -> tuple[int, ...]:
        """Columns of an observation that say which blocks are held."""
        return tuple(self.num_arm + self.num_each * (block + 1) - 1 for block in range(self.num_blocks))

    @property
    def action_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds of actions, float32[columns]."""
        angles = np.full(NUM_JOINTS, MAX_ANGLE)
        low, high = (-angles, angles) if self.name == "joints" else (_LOW, _HIGH)
        blocks = np.zeros(self.num_blocks), np.ones(self.num_blocks)
        return np.r_[low, blocks[0]].astype(np.float32), np.r_[high, blocks[1]].astype(np.float32)

    def read_arm(self, observations: np.ndarray) -> np.ndarray:
        """The columns of the arm, float[..., 7 or 3]."""
        return observations[..., : self.num_arm]

    def read_blocks(self, observations: np.ndarray) -> np.ndarray:
        """Positions of the blocks in m, float[..., blocks, 3]."""
        return self._apart(observations)[..., :3]

    def read_held(self, observations: np.ndarray) -> np.ndarray:
        """Which blocks are held, bool[..., blocks]."""
        return self._apart(observations)[..., -1] > 0.5

    def _apart(self, observations: np.ndarray) -> np.ndarray:
        blocks = observations[..., self.num_arm :]
        return blocks.reshape(*blocks.shape[:-1], self.num_blocks, self.num_each)

    def observe(self, joints: np.ndarray, poses: np.ndarray, held: np.ndarray) -> np.ndarray:
        """Observations of joint angles float[..., 7], poses float[..., blocks, 7] and held blocks bool[..., blocks]."""
        arm, seen = (joints, poses) if self.name == "joints" else (find_cup(joints), poses[..., :3])
        blocks = np.concatenate([seen, held[..., None]], axis=-1)
        return np.concatenate([arm, blocks.reshape(*joints.shape[:-1], -1)], axis=-1)

    def read_state(self, observation: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Joint angles, poses and held blocks of one observation; blocks whose orientation is not seen are upright.

        Raises:
            ValueError: a position of the cup out of reach.
        """
        arm, blocks = self.read_arm(observation), self._apart(observation)
        if self.name == "joints":
            return arm, blocks[:, :7], blocks[:, -1] > 0.5
        upright = np.tile([1.0, 0, 0, 0], (self.num_blocks, 1))
        return solve_joints(arm), np.concatenate([blocks[:, :3], upright], axis=1), blocks[:, -1] > 0.5

    def to_joints(self, actions: np.ndarray, present: np.ndarray, *, unwinds: bool) -> np.ndarray:
        """Actions as joint angles and numbers of the blocks, float64[actions, 7 + blocks].

        Args:
            actions: float[actions, columns]; what is out of bounds or of reach becomes the nearest that is not.
            present: joint angles that the arms were told last, float[actions, 7].
            unwinds: whether the first joint, where the cup is told a place, turns back rather than more than once;
                whole moves have time for it.
        """
        if self.name == "joints":
            arm = np.clip(actions[:, :NUM_JOINTS], -MAX_ANGLE, MAX_ANGLE)
        else:
            arm = solve_joints(bring_within_reach(actions[:, :3]))
            arm[:, 0] = wind(present[:, 0], arm[:, 0]) if unwinds else find_nearest(present[:, 0], arm[:, 0])
        return np.concatenate([arm, actions[:, self.num_arm :]], axis=1)


def wind(present: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Angles equal to some, that the first joint reaches on the shorter way unless it would turn more than once.

    Args:
        present: where it is, float[...].
        angles: float[...].
    """
    near = find_nearest(present, angles)
    return np.where(abs(near) > 2 * np.pi, near - 2 * np.pi * np.sign(near), near)


def find_nearest(present: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Angles equal to some, that are nearest to the present ones, float[...]."""
    return angles + 2 * np.pi * np.round((present - angles) / (2 * np.pi))


def bring_within_reach(places: np.ndarray) -> np.ndarray:
    """The nearest places that the arm reaches, float64[places, 3]."""
    places = np.clip(places, _LOW, _HIGH)
    radius = np.hypot(places[:, 0], places[:, 1])
    ahead = np.where(radius[:, None] > 1e-9, places[:, :2] / np.maximum(radius, 1e-9)[:, None], [1.0, 0.0])
    places[:, :2] = ahead * np.maximum(radius, _LEAST_RADIUS)[:, None]
    distance = np.linalg.norm(places - _SHOULDER, axis=1)
    return _SHOULDER + (places - _SHOULDER) * np.minimum(_REACH / distance, 1.0)[:, None]

"""The physics of block stacking: a batch of arms with blocks, without episodes."""

# mujoco ships no types for its compiled part:
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from diffplan_envs.arm import BLOCK_SIZE, CUP, NUM_JOINTS, TIMESTEP, make_arm_model, solve_joints

import mujoco  # isort: skip  (after the arm, which chooses what mujoco draws with)
from mujoco.batch import Batch  # isort: skip

CONTROL_SECONDS = 0.05
"""Seconds between two targets of the arm in a move."""
SUCTION_RADIUS = 0.05
"""The cup takes a block if the middle of its top is within this distance, in m."""
HOME = solve_joints(np.array([0.45, 0.0, 0.45]))
"""Joint angles at the start of an episode."""
FRAME_STEPS = 2
"""Control steps from one frame of a move to the next."""
LONGEST_MOVE = 40
"""Most control steps of a move."""
_SUBSTEPS = round(CONTROL_SECONDS / TIMESTEP)
_SHORTEST_MOVE, _SWITCH = 8, 4
_CONTROL_RADIANS = 0.16
"""A move has a control step for so much of its largest change of a joint angle."""
_FASTEST = 1.5 * _CONTROL_RADIANS
"""Largest change of a joint's target in a control step. Eased moves keep it; a jump would throw what the arm holds."""


def count_control_steps(before: np.ndarray, after: np.ndarray, switches: np.ndarray) -> np.ndarray:
    """Control steps of moves, int[moves].

    Args:
        before: joint angles that the arm is told at the start, float[moves, 7].
        after: those at the end.
        switches: whether the cup switches when the move begins, bool[moves].
    """
    largest = abs(after - before).max(axis=1)
    steps = np.clip(4 * np.ceil(largest / _CONTROL_RADIANS / 4).astype(int), _SHORTEST_MOVE, LONGEST_MOVE)
    return np.where(switches & (largest < _CONTROL_RADIANS), _SWITCH, steps)


def ease(num_steps: int) -> np.ndarray:
    """Shares of a move that are made after each of its control steps, float64[num_steps]: slow at both ends."""
    share = (np.arange(num_steps) + 1) / num_steps
    return share**2 * (3 - 2 * share)


class StackingScene:
    """A batch of arms, each with its blocks.

    Args:
        num_scenes: size of the batch.
        num_blocks: blocks of each.
        num_threads: threads that step the batch.

    Attributes:
        model: the arm and the blocks.
        watch: called every `FRAME_STEPS` control steps of a move, to draw it; None for never.
    """

    def __init__(self, num_scenes: int, num_blocks: int, num_threads: int = 1) -> None:
        self.num_blocks = num_blocks
        self.model = make_arm_model(num_blocks)
        self.watch: Callable[[], None] | None = None
        self._batch = Batch(self.model, nsim=num_scenes, nthread=num_threads)
        self._qpos, self._ctrl, self._held = (self._batch.bind(name) for name in ("qpos", "ctrl", "eq_active"))
        self._welds = self._batch.expand("eq_data")
        self._cup = int(self.model.site(CUP).id)

    @property
    def blocks(self) -> np.ndarray:
        """Positions of the blocks in m, float64[scenes, blocks, 3]."""
        return self.poses[:, :, :3]

    @property
    def held(self) -> np.ndarray:
        """Which blocks the cups hold, bool[scenes, blocks]."""
        return self._held[:] > 0.5

    @property
    def poses(self) -> np.ndarray:
        """Positions and quaternions of the blocks, float64[scenes, blocks, 7]."""
        return self._qpos[:, NUM_JOINTS:].reshape(-1, self.num_blocks, 7)

    @property
    def joints(self) -> np.ndarray:
        """Joint angles in rad, float64[scenes, 7]."""
        return self._qpos[:, :NUM_JOINTS]

    @property
    def targets(self) -> np.ndarray:
        """Joint angles that the arms were told last, float64[scenes, 7]."""
        return self._ctrl[:]

    def place(self, scene: int, joints: np.ndarray, poses: np.ndarray, held: np.ndarray | None = None) -> None:
        """Put one scene into a state, at rest.

        Args:
            scene: its number.
            joints: float[7].
            poses: positions and quaternions of the blocks, float[blocks, 7].
            held: which blocks the cup holds, if it is near enough, bool[blocks]; None for none.
        """
        self._batch.reset(ids=np.array([scene]), stage=0)  # also clears the solver's warm start
        self._held[scene] = 0
        self._qpos[scene] = np.r_[joints, poses.ravel()]
        self._ctrl[scene] = joints
        if held is not None:
            for block in np.flatnonzero(held).tolist():
                self._attach(scene, block)

    def move(self, scenes: np.ndarray, actions: np.ndarray, num_steps: int | None = None) -> None:
        """Switch the cups, and then go to joint angles.

        Args:
            scenes: int[moves].
            actions: joint angles and, for each block, a number above 0.5 to hold it, float[moves, 7 + blocks].
            num_steps: control steps for which the angles are the target, or as near to them as the arm's speed allows;
                None for a whole, eased move.
        """
        if not len(scenes):
            return
        wanted = actions[:, NUM_JOINTS:] > 0.5
        switches = (wanted != self.held[scenes]).any(axis=1)
        for scene, row in zip(scenes.tolist(), wanted, strict=True):
            self._held[scene, ~row] = 0
            for block in np.flatnonzero(row & ~self.held[scene]).tolist():
                self._attach(scene, block)
        before, after = self._ctrl[scenes], actions[:, :NUM_JOINTS]
        lengths = np.full(len(scenes), num_steps or 0)
        if num_steps is not None:
            after = before + np.clip(after - before, -_FASTEST * num_steps, _FASTEST * num_steps)
        else:
            lengths = count_control_steps(before, after, switches)
        for length in np.unique(lengths).tolist():
            rows = lengths == length
            shares = ease(length) if num_steps is None else (np.arange(length) + 1) / length
            targets = before[rows, None] + (after - before)[rows, None] * shares[None, :, None]
            controls = np.ascontiguousarray(targets.repeat(_SUBSTEPS, axis=1))
            self._follow(scenes[rows], controls)
            self._ctrl[scenes[rows]] = after[rows]

    def _follow(self, scenes: np.ndarray, controls: np.ndarray) -> None:
        """Step with controls float64[scenes, steps, 7]."""
        size = controls.shape[1] if self.watch is None else FRAME_STEPS * _SUBSTEPS
        spec = int(mujoco.mjtState.mjSTATE_CTRL)
        for start in range(0, controls.shape[1], size):
            part = np.ascontiguousarray(controls[:, start : start + size])
            self._batch.rollout(part.shape[1], control=part, control_spec=spec, record=[], ids=scenes)
            if self.watch is not None:
                self.watch()

    def _attach(self, scene: int, block: int) -> None:
        """Hold a block as it is, if the cup is near the middle of its top and holds no other."""
        data = self.get_data(scene)
        body, cup = data.body(f"block{block}"), data.site_xpos[self._cup]
        rotation, tool = body.xmat.reshape(3, 3), data.site_xmat[self._cup].reshape(3, 3)
        top = body.xpos + rotation @ np.array([0, 0, BLOCK_SIZE / 2])
        if self._held[scene].any() or np.linalg.norm(top - cup) > SUCTION_RADIUS:
            return
        quaternion = np.empty(4)
        mujoco.mju_mat2Quat(quaternion, (tool.T @ rotation).ravel())
        # The pose of the block in the frame of the tool.
        self._welds[scene, block, 3:6] = tool.T @ (body.xpos - cup) + self.model.site_pos[self._cup]
        self._welds[scene, block, 6:10] = quaternion
        self._held[scene, block] = 1

    def get_data(self, scene: int) -> Any:
        """A copy of one scene as MuJoCo's data, with the places of all bodies."""
        data = self._batch.get_data(scene)
        mujoco.mj_kinematics(self.model, data)
        return data

"""D4RL's Maze2D as a Gymnasium environment.

Source: D4RL `pointmaze/maze_model.py` (`maze2d-*-v1`).
"""

# mujoco ships no types for its compiled part:
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

from diffplan_envs.maze import Maze
from diffplan_envs.maze_limits import limit_returns
from diffplan_envs.maze_paths import make_maze_paths
from diffplan_envs.physics import MAX_SPEED, STEP_SECONDS, make_model
from diffplan_envs.simulator import Maze2DSimulator
from diffplan_envs.task import GOAL_RADIUS, Maze2DTask, RewardType

import mujoco  # isort: skip  (after our physics, which chooses what mujoco draws with)

OBSERVATION_SPACE = spaces.Box(-np.inf, np.inf, (4,), np.float64)
ACTION_SPACE = spaces.Box(-1.0, 1.0, (2,), np.float32)


class Maze2DEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """A ball is pushed through a maze to a goal; every step near the goal is paid, and reaching it ends nothing.

    Observation: position (2) and velocity (2), float64, in units and units per second; see `diffplan_envs.maze` for
    the coordinates. Action: force on each axis in [-1, 1]. Reward: 1 within 0.5 of the goal (`sparse`) or
    exp(-distance) (`dense`). `info` has `goal` float64[2] and `success` (within 0.5 of the goal now). Episodes are
    never terminated.

    `reset(options={"observation": [x, y, vx, vy], "goal": [x, y]})` sets an exact start state and goal.

    Args:
        maze: a name of `MAZE_TASKS`, or a layout such as `"#####/#GOO#/###O#/#OOO#/#####"`.
        reward_type: `sparse` or `dense`.
        redraw_goal: draw a goal at each reset (Multi2D) in place of the maze's fixed one (Maze2D).
        render_mode: `rgb_array` or None.
    """

    metadata: ClassVar[dict[str, Any]] = {  # pyright: ignore[reportIncompatibleVariableOverride]
        "render_modes": ["rgb_array"],
        "render_fps": round(1 / STEP_SECONDS),
    }

    def __init__(
        self,
        maze: str | Maze,
        reward_type: RewardType = "sparse",
        redraw_goal: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.task = Maze2DTask.make(maze, reward_type, redraw_goal)
        self.model = make_model(self.task.maze)
        self.data = mujoco.MjData(self.model)
        self.observation_space = OBSERVATION_SPACE
        self.action_space = ACTION_SPACE
        self.render_mode = render_mode
        self.goal = self.task.maze.goal_cell.astype(np.float64)
        self._renderer: mujoco.Renderer | None = None

    @property
    def maze(self) -> Maze:
        """The maze."""
        return self.task.maze

    @property
    def reference_returns(self) -> tuple[float, float] | None:
        """Returns of a random policy and of an expert that scores are normalised with; None for an own layout."""
        return self.task.reference_returns

    @property
    def reward_type(self) -> RewardType:
        """`sparse` or `dense`."""
        return self.task.reward_type

    @property
    def maze_name(self) -> str | None:
        """The name of D4RL's maze with this layout; None for an own layout."""
        return self.task.maze_name

    def make_simulator(self, num_envs: int) -> Maze2DSimulator:
        """A batch of this environment's physics and rewards whose states may be set, for planners that try actions."""
        return Maze2DSimulator(self.task, num_envs)

    def shortest_path_lengths(self, starts: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """Shortest way from observations float[num, 4] to within 0.5 of goals float[num, 2], float64[num], in units."""
        return make_maze_paths(self.maze).shortest_lengths(np.asarray(starts)[:, :2], goals, GOAL_RADIUS)

    def touches_wall(self, observations: np.ndarray) -> np.ndarray:
        """Whether the ball touches a wall in observations float[..., 4], bool[...]."""
        return make_maze_paths(self.maze).touches_wall(np.asarray(observations)[..., :2])

    @property
    def limit_returns(self) -> Callable[[np.ndarray, np.ndarray, int], np.ndarray] | None:
        """The largest returns, see `diffplan_envs.maze_limits.limit_returns`; None for the dense reward."""
        return partial(limit_returns, self.maze) if self.task.reward_type == "sparse" else None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; see the class for `options`."""
        super().reset(seed=seed)
        observation, self.goal = self.task.draw_start(self.np_random, options)
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:], self.data.qvel[:] = observation[:2], observation[2:]
        _, success = self.task.compute_reward(observation[:2], self.goal)
        return observation, {"goal": self.goal.copy(), "success": bool(success)}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Push the ball for one step of 0.01 s; actions beyond [-1, 1] are clipped."""
        self.data.ctrl[:] = np.clip(action, -1.0, 1.0)
        np.clip(self.data.qvel, -MAX_SPEED, MAX_SPEED, out=self.data.qvel)
        mujoco.mj_step(self.model, self.data)
        observation = np.concatenate([self.data.qpos, self.data.qvel])
        reward, success = self.task.compute_reward(observation[:2], self.goal)
        return observation, float(reward), False, False, {"goal": self.goal.copy(), "success": bool(success)}

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """The maze from above, uint8[480, 480, 3], rows down and columns to the right; None without a render mode."""
        if self.render_mode is None:
            return None
        if self._renderer is None:
            self._renderer = mujoco.Renderer(self.model, height=480, width=480)
        self.model.site("goal").pos[:2] = self.goal + 1.2  # the ball's joints are zero at (1.2, 1.2)
        mujoco.mj_forward(self.model, self.data)
        self._renderer.update_scene(self.data, camera="top")
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._renderer.scene.flags[flag] = 0  # ten times the frames per second
        return self._renderer.render()

    def close(self) -> None:
        """Free the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

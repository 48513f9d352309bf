"""Maze2D without episodes: states are set, actions are tried, what the environment would pay is told."""

from __future__ import annotations

import numpy as np

from diffplan_envs.maze import Maze
from diffplan_envs.physics import MAX_SPEED, make_model
from diffplan_envs.task import Maze2DTask

from mujoco.batch import Batch  # isort: skip  (after our physics, which chooses what mujoco draws with)


class Maze2DSimulator:
    """A batch of balls that are put where one likes; after that, `Maze2DEnv.step` bit for bit.

    The balls start as after `Maze2DEnv.reset`: what MuJoCo's solver remembers of the last step of an episode is not
    part of an observation, so a state from the middle of an episode is left as the episode leaves it wherever the ball
    touches no wall, and within the solver's tolerance where it does.

    Args:
        task: the maze and its reward.
        num_envs: size of the batch.
    """

    def __init__(self, task: Maze2DTask, num_envs: int) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs: expected at least 1, got {num_envs}")
        self.num_envs = num_envs
        self._task, self._dense_task = task, Maze2DTask(task.maze, "dense")
        self._batch = Batch(make_model(task.maze), nsim=num_envs, nthread=1)
        self._positions, self._velocities = self._batch.bind("qpos"), self._batch.bind("qvel")
        self._controls = self._batch.bind("ctrl")
        self._goals = np.zeros((num_envs, 2))

    @property
    def maze(self) -> Maze:
        """The maze."""
        return self._task.maze

    def set_states(self, observations: np.ndarray, goals: np.ndarray) -> None:
        """Put the balls at observations float[num_envs, 4], with goals float[num_envs, 2]."""
        self._batch.reset(stage=0)
        self._positions[:], self._velocities[:] = observations[:, :2], observations[:, 2:4]
        self._goals[:] = goals

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Push every ball for one step of 0.01 s; actions beyond [-1, 1] are clipped.

        Returns:
            Observations float64[num_envs, 4], rewards of the task float64[num_envs], and D4RL's dense rewards
            exp(-distance to the goal) float64[num_envs].
        """
        self._controls[:] = np.clip(actions, -1.0, 1.0)
        np.clip(self._velocities, -MAX_SPEED, MAX_SPEED, out=self._velocities)
        self._batch.step()
        rewards, _ = self._task.compute_reward(self._positions, self._goals)
        dense_rewards, _ = self._dense_task.compute_reward(self._positions, self._goals)
        return np.concatenate([self._positions, self._velocities], axis=1), rewards, dense_rewards

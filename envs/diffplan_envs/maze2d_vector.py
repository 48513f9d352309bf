"""A batch of Maze2D environments stepped together in C, bit for bit equal to as many single ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from diffplan_envs.batch_arguments import check_batch, list_seeds, require_no_autoreset, take_mask
from diffplan_envs.maze import Maze
from diffplan_envs.maze2d import ACTION_SPACE, OBSERVATION_SPACE, Maze2DEnv
from diffplan_envs.physics import MAX_SPEED, make_model
from diffplan_envs.task import Maze2DTask, RewardType

from mujoco.batch import Batch  # isort: skip  (after our physics, which chooses what mujoco draws with)


class Maze2DVectorEnv(gymnasium.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """`num_envs` environments of `Maze2DEnv` behind Gymnasium's vector interface.

    `gymnasium.make_vec("diffplan/Maze2D-Large-v1", num_envs=256)` makes one. Observations, rewards and `infos["goal"]`
    (float64[num_envs, 2]), `infos["success"]` (bool[num_envs]) are those of `num_envs` single environments with the
    same seeds, to the last bit. `reset(options=...)` takes `observation` float[num_envs, 4] and `goal` float[num_envs,
    2] (either may be one row for all), and `reset_mask` bool[num_envs] to reset some only.

    Args:
        num_envs: number of environments.
        maze: a name of `MAZE_TASKS` or a layout.
        reward_type: `sparse` or `dense`.
        redraw_goal: draw a goal at each reset (Multi2D).
        max_episode_steps: steps after which an episode is truncated; None for never.
        autoreset_mode: `NEXT_STEP` (Gymnasium's default) or `DISABLED`.
        num_threads: threads that step the batch.
        render_mode: only None; render a single environment.
    """

    def __init__(
        self,
        num_envs: int,
        maze: str | Maze,
        reward_type: RewardType = "sparse",
        redraw_goal: bool = False,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        num_threads: int = 1,
        render_mode: str | None = None,
    ) -> None:
        autoreset_mode = check_batch(num_envs, render_mode, autoreset_mode)
        self.num_envs = num_envs
        self.task = Maze2DTask.make(maze, reward_type, redraw_goal)
        self.max_episode_steps = max_episode_steps
        self.metadata = {**Maze2DEnv.metadata, "autoreset_mode": autoreset_mode}
        self.render_mode = None
        self.single_observation_space, self.single_action_space = OBSERVATION_SPACE, ACTION_SPACE
        self.observation_space = batch_space(OBSERVATION_SPACE, num_envs)
        self.action_space = batch_space(ACTION_SPACE, num_envs)
        self.goals = np.tile(self.task.maze.goal_cell.astype(np.float64), (num_envs, 1))
        self._batch = Batch(make_model(self.task.maze), nsim=num_envs, nthread=num_threads)
        self._positions, self._velocities = self._batch.bind("qpos"), self._batch.bind("qvel")
        self._controls = self._batch.bind("ctrl")
        self._generators: list[np.random.Generator] = []
        self._episode_steps = np.zeros(num_envs, dtype=np.int64)
        self._ended = np.zeros(num_envs, dtype=bool)

    @property
    def maze(self) -> Maze:
        """The maze."""
        return self.task.maze

    @property
    def reference_returns(self) -> tuple[float, float] | None:
        """Returns of a random policy and of an expert that scores are normalised with; None for an own layout."""
        return self.task.reference_returns

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start episodes; an int seeds environment i with `seed + i`, as Gymnasium's vector environments do."""
        seeds = list_seeds(seed, self.num_envs)
        for i, one in enumerate(seeds):
            if len(self._generators) <= i:
                self._generators.append(seeding.np_random(one)[0])
            elif one is not None:
                self._generators[i] = seeding.np_random(one)[0]
        options = dict(options or {})
        mask = take_mask(options, self.num_envs)
        for name in ("observation", "goal"):
            if options.get(name) is not None:
                rows = np.asarray(options[name], dtype=np.float64)
                if rows.ndim not in (1, 2) or (rows.ndim == 2 and len(rows) not in (1, self.num_envs)):
                    raise ValueError(
                        f"reset option {name!r}: expected 1 row or {self.num_envs}, got shape {list(rows.shape)}"
                    )
                options[name] = np.broadcast_to(rows, (self.num_envs, rows.shape[-1]))
        self._start(np.flatnonzero(mask), options)
        return self._observations(), self._infos()

    def _start(self, indices: np.ndarray, options: dict[str, Any]) -> None:
        """Reset the named environments; nothing changes if an option is invalid."""

        def options_of(i: int) -> dict[str, Any]:
            return {k: v[i] if isinstance(v, np.ndarray) else v for k, v in options.items()}

        starts = [self.task.draw_start(self._generators[i], options_of(i)) for i in indices]
        if not starts:
            return
        # Also clears the solver's warm start, without which a reset environment would differ from a new one.
        self._batch.reset(ids=indices, stage=0)
        for i, (observation, goal) in zip(indices, starts, strict=True):
            self._positions[i], self._velocities[i] = observation[:2], observation[2:]
            self.goals[i] = goal
        self._episode_steps[indices] = 0
        self._ended[indices] = False

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Push every ball for one step; with `NEXT_STEP`, environments whose episode ended are reset instead."""
        restarting = (
            np.flatnonzero(self._ended) if self.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP else np.array([])
        )
        self._push(None, actions)
        if restarting.size:
            self._start(restarting, {})
        rewards, success = self.task.compute_reward(self._positions, self.goals)
        rewards[restarting.astype(int)] = 0.0
        truncations = self._truncations(slice(None))
        self._ended = truncations.copy()
        infos = {"goal": self.goals.copy(), "success": success}
        return self._observations(), rewards, np.zeros(self.num_envs, dtype=bool), truncations, infos

    def step_some(
        self, indices: np.ndarray, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Push some of the balls for one step, and leave the others as they are.

        Args:
            indices: which, int[num], ascending.
            actions: float[num, 2].

        Returns:
            What `step` returns, with rows for these environments only.

        Raises:
            ValueError: environments that reset themselves.
        """
        require_no_autoreset(self.metadata["autoreset_mode"])
        everywhere = len(indices) == self.num_envs and bool((np.diff(indices) == 1).all())
        rows = slice(None) if everywhere else indices
        self._push(None if everywhere else indices, actions)
        positions, goals = self._positions[rows], self.goals[rows]
        rewards, success = self.task.compute_reward(positions, goals)
        observations = np.concatenate([positions, self._velocities[rows]], axis=1)
        infos = {"goal": goals.copy(), "success": success}
        return observations, rewards, np.zeros(len(indices), dtype=bool), self._truncations(rows), infos

    def _push(self, indices: np.ndarray | None, actions: np.ndarray) -> None:
        """Step the physics of some environments, or of all."""
        rows = slice(None) if indices is None else indices
        self._controls[rows] = np.clip(actions, -1.0, 1.0)
        self._velocities[rows] = np.clip(self._velocities[rows], -MAX_SPEED, MAX_SPEED)
        self._batch.step(indices)
        self._episode_steps[rows] += 1

    def _truncations(self, rows: slice | np.ndarray) -> np.ndarray:
        """Which episodes have come to their limit, bool[rows]."""
        limit = np.inf if self.max_episode_steps is None else self.max_episode_steps
        return self._episode_steps[rows] >= limit

    def _observations(self) -> np.ndarray:
        return np.concatenate([self._positions, self._velocities], axis=1)

    def _infos(self) -> dict[str, Any]:
        _, success = self.task.compute_reward(self._positions, self.goals)
        return {"goal": self.goals.copy(), "success": success}

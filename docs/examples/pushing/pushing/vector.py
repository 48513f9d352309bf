"""Many environments stepped at once: optional, but a batch of 64 is some thirty times as fast as 64 single ones.

Without it Gymnasium steps single environments one after the other, and everything works all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from pushing.environment import (
    ACTION_SPACE,
    OBSERVATION_SPACE,
    PushingEnv,
    Reach,
    check_reach,
    draw_start,
    is_at_goal,
    move,
)


class PushingVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """A batch of `PushingEnv`, equal to as many single ones with the same seeds to the last bit.

    Args:
        num_envs: size of the batch.
        reach: as that of `PushingEnv`.
        max_episode_steps: steps after which an episode is truncated; None for never.
        autoreset_mode: only `DISABLED`, which is what the platform asks for: whoever steps the batch resets it.
        render_mode: only None; render a single environment.
    """

    def __init__(
        self,
        num_envs: int,
        reach: Reach = "any",
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.DISABLED,
        render_mode: str | None = None,
    ) -> None:
        check_reach(reach)
        if AutoresetMode(autoreset_mode) is not AutoresetMode.DISABLED:
            raise ValueError(f"autoreset_mode: expected DISABLED, got {autoreset_mode}")
        self.num_envs, self.render_mode = num_envs, render_mode
        self.reach: Reach = reach
        self.metadata = {**PushingEnv.metadata, "autoreset_mode": AutoresetMode.DISABLED}
        self.single_observation_space, self.single_action_space = OBSERVATION_SPACE, ACTION_SPACE
        self.observation_space = batch_space(OBSERVATION_SPACE, num_envs)
        self.action_space = batch_space(ACTION_SPACE, num_envs)
        self._limit = np.inf if max_episode_steps is None else max_episode_steps
        self._generators = [seeding.np_random(None)[0] for _ in range(num_envs)]
        self._observations, self._goals = np.zeros((num_envs, 12)), np.zeros((num_envs, 3))
        self._steps = np.zeros(num_envs, dtype=int)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start episodes, in all environments or in those of `options["reset_mask"]`, bool[num_envs]."""
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        for i, own in enumerate(seeds or ()):
            if own is not None:
                self._generators[i] = seeding.np_random(own)[0]
        options = options or {}
        goal = options.get("goal")
        goals = [None] * self.num_envs if goal is None else np.broadcast_to(goal, (self.num_envs, 3))
        for i in np.flatnonzero(options.get("reset_mask", np.ones(self.num_envs, dtype=bool))):
            self._observations[i], self._goals[i] = draw_start(self._generators[i], self.reach, goals[i])
            self._steps[i] = 0
        return self._observations.copy(), self._infos(np.arange(self.num_envs))

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Move all for one step."""
        return self.step_some(np.arange(self.num_envs), actions)

    def step_some(
        self, indices: np.ndarray, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Move some of them, int[num], and leave the others as they are: those that wait for a plan, for example."""
        self._observations[indices] = move(self._observations[indices], np.asarray(actions, dtype=np.float64))
        self._steps[indices] += 1
        infos = self._infos(indices)
        terminations, truncations = np.zeros(len(indices), dtype=bool), self._steps[indices] >= self._limit
        return self._observations[indices], infos["success"].astype(np.float64), terminations, truncations, infos

    def _infos(self, indices: np.ndarray) -> dict[str, Any]:
        goals = self._goals[indices]
        return {"goal": goals, "success": is_at_goal(self._observations[indices], goals)}

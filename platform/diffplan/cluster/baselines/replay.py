"""What a policy that learns in its environment has seen: episodes side by side, and the buffer of all steps."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from gymnasium.vector import VectorEnv

from diffplan.seeding import Stream, make_seed
from diffplan.types import Episode


@dataclass(frozen=True)
class Steps:
    """Steps of environments.

    Attributes:
        observations: float32[steps, observation_dim] before each step.
        actions: float32[steps, action_dim] in environment units.
        rewards: float32[steps].
        next_observations: float32[steps, observation_dim] after each step.
        terminates: bool[steps], whether the episode terminates there.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    terminates: np.ndarray

    def take(self, rows: np.ndarray | slice) -> Steps:
        """Some of the steps."""
        return Steps(*(getattr(self, field.name)[rows] for field in fields(self)))


class Buffer:
    """All steps of a training. Those of a round come in the order of time, and are then put in that of the dataset."""

    def __init__(self, observation_dim: int, action_dim: int) -> None:
        self._length = 0
        dims = (observation_dim, action_dim, None, observation_dim, None)
        types = (np.float32, np.float32, np.float32, np.float32, bool)
        shapes = [(1024,) if dim is None else (1024, dim) for dim in dims]
        self._arrays = [np.zeros(shape, dtype) for shape, dtype in zip(shapes, types, strict=True)]

    def __len__(self) -> int:
        return self._length

    def add(self, steps: Steps) -> None:
        """Add steps at the end."""
        end = self._length + len(steps.rewards)
        for i, field in enumerate(fields(steps)):
            array = self._arrays[i]
            if end > len(array):
                grown = np.zeros((max(end, 2 * len(array)), *array.shape[1:]), array.dtype)
                grown[: self._length] = array[: self._length]
                self._arrays[i] = array = grown
            array[self._length : end] = getattr(steps, field.name)
        self._length = end

    def draw(self, num_steps: int, generator: np.random.Generator) -> Steps:
        """Draw steps uniformly, with replacement."""
        rows = generator.integers(self._length, size=num_steps)
        return Steps(*(array[rows] for array in self._arrays))

    def reorder(self, order: np.ndarray) -> None:
        """Put the last steps into another order, int[steps]: the first of them is then the one of number order[0]."""
        for array in self._arrays:
            last = array[self._length - len(order) : self._length]
            last[:] = last[order]


class RunningEpisodes:
    """The episodes of a round, side by side.

    Args:
        batch: the environments.
        seed: of the training.
        number: of the round.
        behavior: name of the behavior in the dataset.

    Attributes:
        observations: of the environments, float[num_envs, observation_dim].
        ended: episodes that have ended.
    """

    def __init__(self, batch: VectorEnv, seed: int, number: int, behavior: str) -> None:
        self._batch, self._seed, self._number, self._behavior = batch, seed, number, behavior
        self._num_started = 0
        self._seeds = self._draw_seeds(np.ones(batch.num_envs, bool))
        self.observations = np.asarray(batch.reset(seed=self._seeds)[0])  # pyright: ignore[reportArgumentType]
        self._steps: list[Steps] = []
        self._begun_at = [0] * batch.num_envs
        self._order: list[np.ndarray] = []
        self.ended: list[Episode] = []

    def step(self, actions: np.ndarray) -> Steps:
        """Step all environments; where an episode ends, another one begins."""
        following, rewards, terminations, truncations, _ = self._batch.step(actions)
        following = np.array(following)
        before, acted, paid, after = (
            np.array(values, np.float32) for values in (self.observations, actions, rewards, following)
        )
        self._steps.append(Steps(before, acted, paid, after, np.array(terminations)))
        ends = terminations | truncations
        for i in np.flatnonzero(ends).tolist():
            self.ended.append(self._cut(i, bool(terminations[i]), bool(truncations[i])))
        if ends.any():
            seeds = self._draw_seeds(ends)
            self._seeds = [new if ended else old for new, old, ended in zip(seeds, self._seeds, ends, strict=True)]
            options = {"reset_mask": ends}
            following = np.array(self._batch.reset(seed=seeds, options=options)[0])  # pyright: ignore[reportArgumentType]
        self.observations = following
        return self._steps[-1]

    def finish(self) -> tuple[list[Episode], np.ndarray]:
        """All episodes, those that still run cut; and the order of their steps among those of the round."""
        num_envs = self._batch.num_envs
        cut = [self._cut(i, False, True) for i in range(num_envs) if self._begun_at[i] < len(self._steps)]
        return [*self.ended, *cut], np.concatenate(self._order)

    def _draw_seeds(self, which: np.ndarray) -> list[int]:
        """New seeds for some of the environments."""
        numbers = self._num_started + np.cumsum(which) - 1
        self._num_started += int(which.sum())
        return [make_seed(self._seed, Stream.COLLECTION, self._number, 1, max(int(i), 0)) for i in numbers]

    def _cut(self, env: int, terminated: bool, truncated: bool) -> Episode:
        """The episode of an environment up to now; its next one begins here."""
        steps = range(self._begun_at[env], len(self._steps))
        self._begun_at[env] = len(self._steps)
        self._order.append(np.array(steps) * self._batch.num_envs + env)
        observations, actions, rewards = (
            np.stack([getattr(self._steps[t], name)[env] for t in steps])
            for name in ("observations", "actions", "rewards")
        )
        return Episode(
            episode_index=0,
            seed=self._seeds[env],
            behavior=self._behavior,
            observations=np.concatenate([observations, self._steps[steps[-1]].next_observations[env][None]]),
            actions=actions,
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
        )

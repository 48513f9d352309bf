"""Transitions for reinforcement learning: with the rewards in the data (`RecordedRewards`), or relabelled for a goal.

For a goal, the reward of a step is 1 if it ends within a radius of the goal, else 0, and episodes do not terminate: the
rule of sparse goal-reaching tasks, independent of the goals in the data. The last step of an episode is followed by its
final observation, so every step of the data is a transition.

The goal is either the same for all transitions (`FixedGoal`), or one is drawn for each (`HindsightGoals`):

* the position at the end of the step itself, so that its reward is 1;
* a later position of the same episode: k >= 1 steps after that end, k geometric with the discount, never past the
  final observation;
* a position drawn uniformly from all data, which is usually far away.

Source: hindsight relabelling of Andrychowicz et al. 2017; the mixture is that of OGBench (Park et al. 2025) for its
value functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from diffplan.data.format.dataset import TrajectoryDataset
from diffplan.errors import DataError


@dataclass(frozen=True)
class Transitions:
    """All steps of a dataset in memory, in the order of episodes.

    Attributes:
        observations: float32[steps, observation_dim] before each step.
        actions: float32[steps, action_dim], scaled to [-1, 1].
        next_observations: float32[steps, observation_dim] after each step.
        last_steps: int64[steps], the last step of the episode of each step.
    """

    observations: np.ndarray
    actions: np.ndarray
    next_observations: np.ndarray
    last_steps: np.ndarray


@dataclass(frozen=True)
class TransitionBatch:
    """Transitions with a goal and its rewards.

    Attributes:
        observations: float32[batch, observation_dim], with the goal appended if each transition has its own.
        actions: float32[batch, action_dim] in [-1, 1].
        rewards: float32[batch].
        next_observations: float32[batch, observation_dim], with the same goal appended.
        terminates: bool[batch], whether the episode terminates there, so that nothing follows.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    terminates: np.ndarray


class TransitionSampler(Protocol):
    """Draws transitions with rewards."""

    def sample(self, num_transitions: int, generator: np.random.Generator) -> TransitionBatch:
        """Draw transitions uniformly, with replacement."""
        ...


def load_transitions(dataset: TrajectoryDataset) -> Transitions:
    """All transitions of a dataset.

    Raises:
        DataError: a shard is damaged, observations or actions are not float vectors, or actions have no bounds.
    """
    manifest = dataset.manifest
    for column in manifest.columns[:2]:
        if len(column.shape) != 1 or column.numpy_dtype.kind != "f":
            raise DataError(f"{dataset.uri}: expected a vector of floats as {column.name}, got {column.shape} numbers")
    bounds = [manifest.action_low, manifest.action_high]
    if any(value is None for values in bounds for value in values) or not all(len(v) for v in bounds):
        raise DataError(f"{dataset.uri}: expected bounds of all actions to scale them by, got none")
    low, high = np.array(bounds, np.float64)
    observations = np.asarray(dataset.read_column("observation"), np.float32)
    actions = np.asarray(dataset.read_column("action"), np.float64)
    ends = np.cumsum(dataset.episodes.length, dtype=np.int64) - 1
    following = np.roll(observations, -1, axis=0)
    following[ends] = dataset.episodes.final_observations
    return Transitions(
        observations,
        ((actions - low) / (high - low) * 2 - 1).astype(np.float32),
        following,
        np.repeat(ends, dataset.episodes.length),
    )


def compute_sparse_rewards(positions: np.ndarray, goals: np.ndarray, radius: float) -> np.ndarray:
    """Reward of steps that end at positions: 1 within a radius of the goal, else 0.

    Args:
        positions: float[..., goal_dim].
        goals: float[..., goal_dim], broadcast against the positions.
        radius: radius in units of the positions.

    Returns:
        float32[...].
    """
    distances = np.sqrt(((positions.astype(np.float64) - goals) ** 2).sum(axis=-1))
    return (distances <= radius).astype(np.float32)


class _KnownRewards:
    """Transitions whose rewards are the same in every draw."""

    def __init__(self, transitions: Transitions, rewards: np.ndarray, terminates: np.ndarray) -> None:
        self._transitions, self.rewards, self.terminates = transitions, rewards, terminates

    def sample(self, num_transitions: int, generator: np.random.Generator) -> TransitionBatch:
        """Draw transitions uniformly, with replacement."""
        data = self._transitions
        rows = generator.integers(len(data.actions), size=num_transitions)
        return TransitionBatch(
            data.observations[rows],
            data.actions[rows],
            self.rewards[rows],
            data.next_observations[rows],
            self.terminates[rows],
        )


class RecordedRewards(_KnownRewards):
    """Transitions with the rewards and the terminations in the data.

    Args:
        transitions: the data.
        dataset: the dataset that they are of.
        normalize: divide rewards by the range of the returns of episodes, times 1000 (Kostrikov et al. 2021).

    Raises:
        DataError: all rewards are equal, so there is nothing to learn from.
    """

    def __init__(self, transitions: Transitions, dataset: TrajectoryDataset, *, normalize: bool) -> None:
        rewards = np.asarray(dataset.read_column("reward"), np.float64)
        if rewards.min() == rewards.max():
            raise DataError(f"{dataset.uri}: expected rewards to learn from, got {rewards.min():g} at every step")
        if normalize:
            totals = dataset.episodes.column("undiscounted_return")
            if totals.min() == totals.max():
                raise DataError(f"{dataset.uri}: expected episodes of different returns to scale rewards by, got one")
            rewards *= 1000 / (totals.max() - totals.min())
        terminates = np.zeros(len(rewards), bool)
        terminates[np.unique(transitions.last_steps)] = dataset.episodes.column("terminated")
        super().__init__(transitions, rewards.astype(np.float32), terminates)


class FixedGoal(_KnownRewards):
    """Transitions with the rewards of one goal, which is not part of the observations.

    Args:
        transitions: the data.
        goal: float[goal_dim].
        columns: observation columns of the goal.
        radius: distance from the goal within which the reward is 1.

    Raises:
        DataError: no step has reward 1, so there is nothing to learn from.
    """

    def __init__(self, transitions: Transitions, goal: Sequence[float], columns: Sequence[int], radius: float) -> None:
        positions = transitions.next_observations[:, list(columns)]
        rewards = compute_sparse_rewards(positions, np.asarray(goal, np.float64), radius)
        if not rewards.any():
            raise DataError(
                f"goal {list(goal)}: expected steps of the data that end within {radius:g} of it, got none; "
                "give a goal that the data reach"
            )
        super().__init__(transitions, rewards, np.zeros(len(rewards), bool))


class HindsightGoals:
    """Transitions with a goal drawn for each and appended to its observations; see the module's description.

    Args:
        transitions: the data.
        columns: observation columns of a goal.
        radius: distance from the goal within which the reward is 1.
        discount: parameter of the geometric distribution of later positions.
        current_share: share of the goals that are the end position of the step.
        future_share: share of the goals that are later positions of the episode.
    """

    def __init__(
        self,
        transitions: Transitions,
        columns: Sequence[int],
        radius: float,
        *,
        discount: float,
        current_share: float,
        future_share: float,
    ) -> None:
        self._transitions = transitions
        self._columns, self._radius, self._discount = list(columns), radius, discount
        self._shares = current_share, current_share + future_share

    def sample(self, num_transitions: int, generator: np.random.Generator) -> TransitionBatch:
        """Draw transitions uniformly, with replacement, and a goal for each."""
        data = self._transitions
        rows = generator.integers(len(data.actions), size=num_transitions)
        goals = data.next_observations[self.draw_goal_steps(rows, generator)][:, self._columns]
        positions = data.next_observations[rows][:, self._columns]
        return TransitionBatch(
            np.concatenate([data.observations[rows], goals], axis=1),
            data.actions[rows],
            compute_sparse_rewards(positions, goals, self._radius),
            np.concatenate([data.next_observations[rows], goals], axis=1),
            np.zeros(num_transitions, bool),
        )

    def draw_goal_steps(self, rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """For each row, the step whose end position is its goal, int64[steps]."""
        last = self._transitions.last_steps
        kind = generator.random(len(rows))
        future = np.minimum(rows + generator.geometric(1 - self._discount, size=len(rows)), last[rows])
        anywhere = generator.integers(len(last), size=len(rows))
        current_share, known_share = self._shares
        return np.where(kind < current_share, rows, np.where(kind < known_share, future, anywhere))

"""Train CQL and IQL with RLlib on the data of the planners.

Losses, target networks, optimizers and the policy's module are RLlib's. Two things are not:

* Batches. They are drawn from memory, relabelled with goals and rewards, and given to RLlib's `Learner` one at a time.
  `Algorithm.train` over Ray Data is slower, updates the target networks once for all minibatches of an iteration and
  not after each, and keeps CQL in its cloning phase for ever: `bc_iters` is compared with a count that restarts in
  every iteration. Measurements are in docs/baselines.md.
* The Q networks. The catalog of soft actor-critic joins encoders of observation and action by three further layers;
  here both go into one network of two hidden layers, as in the papers, through the catalog's `build_qf_encoder`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffplan.behaviors.offline_policy import (
    OfflinePolicy,
    PolicyDescription,
    check_new_directory,
    save_offline_policy,
)
from diffplan.cluster.baselines.learner import MODULE, build_learner, copy_policy, update_learner
from diffplan.config import EnvConfig, config_to_dict
from diffplan.config.offline_rl import SETTINGS, Algorithm, CQLSettings, IQLSettings, OfflineRLSettings
from diffplan.data.format.dataset import TrajectoryDataset, open_dataset
from diffplan.data.windows.relabeling import (
    FixedGoal,
    HindsightGoals,
    RecordedRewards,
    Transitions,
    TransitionSampler,
    load_transitions,
)
from diffplan.errors import ConfigError
from diffplan.evaluation.protocol import apply_protocol, choose_protocol
from diffplan.evaluation.rollout import evaluate_episodes
from diffplan.runs.progress import Progress
from diffplan.seeding import Stream, make_generator, make_seed
from diffplan.tasks.registry import complete_env

NUM_UPDATES: dict[Algorithm, int] = {"cql": 20_000, "iql": 100_000}
"""Updates if none are asked for, for one goal or the rewards in the data."""
NUM_UPDATES_ANY_GOAL: dict[Algorithm, int] = {"cql": 20_000, "iql": 12_000}
"""Updates of a goal-conditioned policy if none are asked for; see docs/baselines.md for what more or fewer bring."""
NUM_SELECTIONS = 10
"""Times that policies are scored in a training, if they are."""
PROGRESS_UPDATES = 20
"""Updates between two reports of progress."""


def train_offline_rl(
    dataset: TrajectoryDataset | str | Path,
    out: str | Path,
    *,
    algorithm: Algorithm,
    goal: Sequence[float] | None = None,
    num_updates: int | None = None,
    settings: OfflineRLSettings | None = None,
    seed: int = 0,
    num_selection_episodes: int = 0,
    protocol: str | None = None,
) -> Path:
    """Train a policy on a dataset and write it, as `diffplan.behaviors.offline_policy` reads it.

    Args:
        dataset: the data, or their path or URL.
        out: directory to make.
        algorithm: `cql` or `iql`.
        goal: the goal of the policy, in environment units; None for a goal-conditioned policy, or, in an environment
            without goals, for one that learns from the rewards in the data.
        num_updates: gradient updates; those of `NUM_UPDATES` or `NUM_UPDATES_ANY_GOAL` if None.
        settings: `CQLSettings` or `IQLSettings`; the defaults if None.
        seed: of the weights, the batches and the actions that are drawn.
        num_selection_episodes: tuning episodes that policies are scored on, `NUM_SELECTIONS` times during training. The
            best policy is written, because some get worse later. 0 writes the last one.
        protocol: of these episodes; needed where the task has several.

    Returns:
        The directory.

    Raises:
        ConfigError: an argument is out of range.
        DataError: the dataset is missing or damaged, or never near the goal.
        CheckpointError: `out` exists or cannot be written.
    """
    if num_updates is not None and num_updates < 1:
        raise ConfigError(f"num_updates: expected at least 1, got {num_updates}")
    check_new_directory(out)
    if not isinstance(dataset, TrajectoryDataset):
        dataset = open_dataset(dataset)
    env = dataset.env
    if num_selection_episodes:
        env = apply_protocol(choose_protocol(protocol, env), env)
    with torch.random.fork_rng(devices=[]):
        trainer = OfflineTrainer(dataset, algorithm=algorithm, goal=goal, settings=settings, seed=seed)
        if num_updates is None:
            num_updates = (NUM_UPDATES_ANY_GOAL if trainer.is_goal_conditioned else NUM_UPDATES)[algorithm]
        selection = _Selection(env, goal, num_selection_episodes, seed)
        with Progress(algorithm, num_updates, "updates") as progress:
            for end in [round(num_updates * (i + 1) / NUM_SELECTIONS) for i in range(NUM_SELECTIONS)]:
                while trainer.num_updates < end:
                    count = min(PROGRESS_UPDATES, end - trainer.num_updates)
                    progress.advance(count, **trainer.update(count))
                selection.consider(trainer.make_policy())
        return save_offline_policy(out, selection.choose())


class _Selection:
    """The best of the policies of a training by their scores on tuning episodes, or the last one if there are none."""

    def __init__(self, env: EnvConfig, goal: Sequence[float] | None, num_episodes: int, seed: int) -> None:
        self._env = env
        self._goal, self._num_episodes, self._seed = goal, num_episodes, seed
        self._scores: list[tuple[int, float]] = []
        self._best: OfflinePolicy | None = None

    def consider(self, policy: OfflinePolicy) -> None:
        """Score a policy, and keep it if none was better."""
        score = 0.0
        if self._num_episodes:
            results, _ = evaluate_episodes(
                lambda context: policy,
                self._env,
                range(self._num_episodes),
                seed=self._seed,
                stream=Stream.TUNING,
                goal=self._goal,
            )
            score = float(np.mean([result.score for result in results]))
        if self._best is None or score >= max(score for _, score in self._scores):
            self._best = policy
        self._scores.append((policy.description.training["num_updates"], score))

    def choose(self) -> OfflinePolicy:
        """The best policy; its record tells the scores of all of them."""
        assert self._best is not None
        if not self._num_episodes:
            return self._best
        selection = {"num_episodes": self._num_episodes, "num_updates_and_scores": self._scores}
        description = self._best.description
        description = replace(description, training={**description.training, "selection": selection})
        return OfflinePolicy(self._best.tensors, description)


class OfflineTrainer:
    """An algorithm of RLlib on the relabelled transitions of a dataset; draws from torch's global generator.

    Args:
        dataset: the data.
        algorithm: `cql` or `iql`.
        goal: the goal of the policy; None as for `train_offline_rl`.
        settings: of the algorithm; the defaults if None.
        seed: of everything random.

    Attributes:
        num_updates: gradient updates so far.
        is_goal_conditioned: whether the policy is told a goal.
        module: RLlib's module of all networks.

    Raises:
        ConfigError: an argument does not fit the others.
        DataError: the dataset is damaged, cannot be trained on, or is never near the goal.
    """

    def __init__(
        self,
        dataset: TrajectoryDataset,
        *,
        algorithm: Algorithm,
        goal: Sequence[float] | None = None,
        settings: OfflineRLSettings | None = None,
        seed: int = 0,
    ) -> None:
        settings = SETTINGS[algorithm]() if settings is None else settings
        if not isinstance(settings, SETTINGS[algorithm]):
            raise ConfigError(f"settings: expected {SETTINGS[algorithm].__name__}, got {type(settings).__name__}")
        # Older datasets do not record the goal columns; the task may know them.
        known = complete_env(dataset.env).goal_columns
        columns = list(known if settings.goal_columns is None else settings.goal_columns)
        observation_dim = dataset.manifest.columns[0].size
        if not columns and goal is not None:
            raise ConfigError(
                "goal_columns: expected the columns that the goal is made of, got none; give --goal_columns"
            )
        if columns and settings.normalize_rewards:
            raise ConfigError("normalize_rewards: expected false where rewards are relabelled for goals, got true")
        if not all(0 <= column < observation_dim for column in columns):
            raise ConfigError(f"goal_columns: expected columns below {observation_dim}, got {columns}")
        if goal is not None and (len(goal) != len(columns) or not np.isfinite(goal).all()):
            raise ConfigError(f"goal: expected {len(columns)} finite numbers, got {list(goal)}")
        self.num_updates, self._seconds = 0, 0.0
        self._dataset, self._algorithm, self._goal, self._seed = dataset, algorithm, goal, seed
        self._settings = settings = replace(settings, goal_columns=tuple(columns) or None)
        data = load_transitions(dataset)
        self._sampler = _make_sampler(dataset, data, goal, settings)
        entries = list(range(observation_dim)) + ([] if goal is not None else columns)
        deviation = data.observations.std(axis=0, dtype=np.float64)
        self._center = data.observations.mean(axis=0, dtype=np.float64)[entries]
        self._scale = np.where(deviation > 0, deviation, 1.0)[entries]
        self._generator = make_generator(seed, Stream.TRAINING)
        torch.manual_seed(make_seed(seed, Stream.TRAINING, 1))
        self.is_goal_conditioned = goal is None and len(columns) > 0
        self._learner = _build_learner(settings, len(entries), data.actions.shape[1])
        self.module = self._learner.module[MODULE]

    def update(self, num_updates: int) -> dict[str, float]:
        """Make gradient updates, each on a batch of its own, and return the losses of the last one."""
        began = time.monotonic()
        losses = {}
        for _ in range(num_updates):
            results = update_learner(self._learner, self._make_batch())
            losses = {name: float(results[f"{name}_loss"]) for name in ("policy", "qf")}
        self.num_updates += num_updates
        self._seconds += time.monotonic() - began
        return losses

    def make_policy(self) -> OfflinePolicy:
        """The policy as it is now, a copy."""
        tensors = {
            **copy_policy(self.module),
            "observation_center": torch.from_numpy(self._center),
            "observation_scale": torch.from_numpy(self._scale),
        }
        return OfflinePolicy(tensors, self._describe())

    def _make_batch(self) -> dict[str, torch.Tensor]:
        drawn = self._sampler.sample(self._settings.batch_size, self._generator)
        values = {
            "obs": (drawn.observations - self._center) / self._scale,
            "new_obs": (drawn.next_observations - self._center) / self._scale,
            "actions": drawn.actions * (1 - self._settings.action_margin),
            "rewards": drawn.rewards,
            "terminateds": drawn.terminates,
        }
        return {
            name: torch.from_numpy(array if array.dtype == bool else array.astype(np.float32))
            for name, array in values.items()
        }

    def _describe_goal(self) -> str | list[float]:
        if self._goal is not None:
            return [float(value) for value in self._goal]
        return "goal-conditioned" if self._settings.goal_columns else "none"

    def _describe(self) -> PolicyDescription:
        manifest, settings = self._dataset.manifest, self._settings
        training: dict[str, Any] = {
            "settings": config_to_dict(settings),
            "num_updates": self.num_updates,
            "seconds": round(self._seconds, 3),
            "seed": self._seed,
            "goal": self._describe_goal(),
            "dataset": {
                "uri": self._dataset.uri,
                "dataset_uuid": manifest.dataset_uuid,
                "snapshot": self._dataset.snapshot,
                "num_steps": self._dataset.num_steps,
            },
        }
        return PolicyDescription(
            algorithm=self._algorithm,
            env=self._dataset.env,
            goal=None if self._goal is None else tuple(float(value) for value in self._goal),
            goal_dim=len(settings.goal_columns or ()),
            action_low=tuple(float(value) for value in manifest.action_low if value is not None),
            action_high=tuple(float(value) for value in manifest.action_high if value is not None),
            action_margin=settings.action_margin,
            deterministic=settings.deterministic,
            training=training,
        )


def _make_sampler(
    dataset: TrajectoryDataset, data: Transitions, goal: Sequence[float] | None, settings: OfflineRLSettings
) -> TransitionSampler:
    columns = list(settings.goal_columns or ())
    if not columns:
        return RecordedRewards(data, dataset, normalize=settings.normalize_rewards)
    if goal is not None:
        return FixedGoal(data, goal, columns, settings.goal_radius)
    return HindsightGoals(
        data,
        columns,
        settings.goal_radius,
        discount=settings.discount,
        current_share=settings.current_goal_share,
        future_share=settings.future_goal_share,
    )


def _build_learner(settings: OfflineRLSettings, observation_dim: int, action_dim: int) -> Any:
    """RLlib's learner of an algorithm, in this process."""
    from ray.rllib.algorithms.cql import CQLConfig
    from ray.rllib.algorithms.iql import IQLConfig

    shared = {
        "lr": None,
        "actor_lr": settings.actor_learning_rate,
        "critic_lr": settings.critic_learning_rate,
        "gamma": settings.discount,
        "tau": settings.target_rate,
        "target_network_update_freq": 0,  # after every update
        "train_batch_size_per_learner": settings.batch_size,
    }
    if isinstance(settings, CQLSettings):
        config = CQLConfig().training(
            **shared,
            alpha_lr=settings.temperature_learning_rate,
            min_q_weight=settings.conservative_weight,
            num_actions=settings.num_sampled_actions,
            bc_iters=0,
        )
    elif isinstance(settings, IQLSettings):
        config = IQLConfig().training(
            **shared,
            value_lr=settings.critic_learning_rate,
            expectile=settings.expectile,
            beta=settings.inverse_temperature,
        )
        config.experimental(_validate_config=False)  # its check of beta is MARWIL's, which allows no more than 1
    else:
        raise TypeError(type(settings).__name__)
    return build_learner(config, observation_dim, action_dim, settings.hidden_dim)

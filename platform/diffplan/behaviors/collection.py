"""Collect one unit of a dataset: a pure function of the environment, the collection config and the unit's index."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from diffplan.behaviors.registry import hash_policy_files, list_columns, make_behavior
from diffplan.config import CollectionConfig, EnvConfig, config_to_dict
from diffplan.data.format.manifest import Column, Manifest, make_columns, new_dataset_uuid
from diffplan.environments import find_episode_limit, get_box_bounds, get_episode_limit, make_vector_env, restart_ended
from diffplan.errors import ConfigError
from diffplan.seeding import Stream, make_generator, make_seed
from diffplan.tasks.contracts import BehaviorContext
from diffplan.tasks.registry import complete_env, task_of
from diffplan.types import Episode


def complete_collection(env: EnvConfig, collection: CollectionConfig) -> tuple[EnvConfig, CollectionConfig]:
    """Environment and collection with what their task and the environment itself tell: roles, steps of an episode.

    Raises:
        ConfigError: the environment cannot be made or planned in, or knows no limit and none is given.
    """
    env = complete_env(env)
    if collection.episode_steps is None:
        collection = replace(collection, episode_steps=get_episode_limit(env))
    elif find_episode_limit(env) is None:  # evaluations must end too
        env = replace(env, env_kwargs={**env.env_kwargs, "max_episode_steps": collection.episode_steps})
    return env, collection


def make_manifest(env: EnvConfig, collection: CollectionConfig) -> Manifest:
    """The manifest of a new dataset; raises `ConfigError` if environment or behavior cannot be made, or do not fit."""
    env, collection = complete_collection(env, collection)
    further = list_columns(collection.behavior, task_of(env))
    columns = tuple(Column(name, (size,) if size else ()) for name, size in further.items())
    source = describe_source(env, collection)
    manifest = start_manifest(env, columns, collection=config_to_dict(collection), source=source)
    UnitCollector(env, collection).rehearse()
    return manifest


def start_manifest(
    env: EnvConfig,
    columns: tuple[Column, ...],
    *,
    collection: dict[str, Any] | None = None,
    source: dict[str, Any],
) -> Manifest:
    """The manifest of a new dataset of an environment.

    Args:
        env: the environment, completed.
        columns: those beside observation, action and reward.
        collection: as in `Manifest`.
        source: as in `Manifest`.

    Raises:
        ConfigError: the environment cannot be made, or its observations are not vectors.
    """
    vector_env = make_vector_env(env, 1)
    space = vector_env.single_observation_space
    if space.shape is None or len(space.shape) != 1:
        raise ConfigError(f"env.env_id {env.env_id!r}: expected observations in a 1-d Box, got {space}")
    low, high = get_box_bounds(vector_env)
    vector_env.close()
    return Manifest(
        dataset_uuid=new_dataset_uuid(),
        env=config_to_dict(env),
        collection=collection,
        columns=make_columns(space.shape[0], len(low), columns),
        action_low=low,
        action_high=high,
        source=source,
    )


def describe_source(env: EnvConfig, collection: CollectionConfig) -> dict[str, Any]:
    """What a collection depends on beside its settings: the content of policy files; raises `ConfigError` without."""
    hashes = hash_policy_files(collection.behavior, task_of(env))
    return {"policy_files": hashes} if hashes else {}


class UnitCollector:
    """Collects units; keeps its environments between them.

    Args:
        env: the environment.
        collection: what to collect.
    """

    def __init__(self, env: EnvConfig, collection: CollectionConfig) -> None:
        env, collection = complete_collection(env, collection)
        self._env = env
        self._collection = collection
        self._vector_env: VectorEnv | None = None
        low, high = get_box_bounds(self._batch(1))
        self._behavior = make_behavior(
            collection.behavior,
            BehaviorContext(
                env=env,
                action_low=np.array([-np.inf if v is None else v for v in low]),
                action_high=np.array([np.inf if v is None else v for v in high]),
                action_noise=collection.action_noise,
                max_goal_steps=collection.max_episode_steps,
                switch_steps=collection.switch_steps,
            ),
        )

    def rehearse(self) -> None:
        """Let the behavior act once in one environment; raises `ConfigError` for what would fail in every worker."""
        observations, _ = self._batch(1).reset(seed=[0])  # pyright: ignore[reportArgumentType]  # a seed each
        self._behavior.reset(observations, [make_generator(0, Stream.COLLECTION)])
        self._behavior.act(observations)
        self._behavior.columns()

    def collect(self, unit: int) -> list[Episode]:
        """The episodes of a unit."""
        indices = self._collection.episodes_of_unit(unit)
        vector_env = self._batch(len(indices))
        seeds = [make_seed(self._collection.seed, Stream.COLLECTION, index, 0) for index in indices]
        generators = [make_generator(self._collection.seed, Stream.COLLECTION, index, 1) for index in indices]
        observations, _ = vector_env.reset(seed=seeds)  # pyright: ignore[reportArgumentType]  # a seed each
        self._behavior.reset(observations, generators)
        recorder = _Recorder(self._collection.max_episode_steps)
        running = np.ones(len(indices), dtype=bool)
        while running.any():
            actions = self._behavior.act(observations)
            columns = self._behavior.columns()
            if hasattr(vector_env, "step_some") and not running.all():  # episodes that have ended are not stepped
                stepped = np.flatnonzero(running)
                next_observations, rewards = observations.copy(), np.zeros(len(indices))
                terminations, truncations = np.zeros((2, len(indices)), dtype=bool)
                found = vector_env.step_some(stepped, actions[stepped])  # pyright: ignore[reportAttributeAccessIssue]
                for values, some in zip((next_observations, rewards, terminations, truncations), found, strict=False):
                    values[stepped] = some
            else:
                next_observations, rewards, terminations, truncations, _ = vector_env.step(actions)
            recorder.record(observations, actions, rewards, terminations, truncations, columns, next_observations)
            ended = terminations | truncations
            running &= ~ended
            observations = next_observations
            if running.any() and not hasattr(vector_env, "step_some"):
                observations = restart_ended(vector_env, observations, ended)
        return recorder.episodes(indices, seeds, self._collection.behavior)

    def _batch(self, num_envs: int) -> VectorEnv:
        if self._vector_env is None or self._vector_env.num_envs != num_envs:
            if self._vector_env is not None:
                self._vector_env.close()
            self._vector_env = make_vector_env(
                self._env, num_envs, max_episode_steps=self._collection.max_episode_steps
            )
        return self._vector_env


class _Recorder:
    """Keeps the steps of a batch; what comes after the first episode of an environment is cut off."""

    def __init__(self, max_steps: int) -> None:
        self._max_steps = max_steps
        self._arrays: dict[str, np.ndarray] = {}
        self._final_observations: dict[int, np.ndarray] = {}
        self._num_steps = 0

    def record(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        terminations: np.ndarray,
        truncations: np.ndarray,
        columns: dict[str, np.ndarray],
        next_observations: np.ndarray,
    ) -> None:
        step = {
            "observations": observations,
            "actions": actions,
            "rewards": rewards,
            "terminations": terminations,
            "truncations": truncations,
            **{f"columns.{name}": values for name, values in columns.items()},
        }
        for name, values in step.items():
            if name not in self._arrays:
                dtype = bool if values.dtype == bool else np.float32
                self._arrays[name] = np.zeros((self._max_steps, *values.shape), dtype=dtype)
            self._arrays[name][self._num_steps] = values
        self._num_steps += 1
        for i in np.flatnonzero(terminations | truncations).tolist():
            self._final_observations.setdefault(i, next_observations[i].astype(np.float32))

    def episodes(self, indices: range, seeds: list[int], behavior: str) -> list[Episode]:
        arrays = {name: values[: self._num_steps] for name, values in self._arrays.items()}
        ends = arrays["terminations"] | arrays["truncations"]
        lengths = ends.argmax(axis=0) + 1
        episodes = []
        for i, (index, length) in enumerate(zip(indices, lengths.tolist(), strict=True)):
            episodes.append(
                Episode(
                    episode_index=index,
                    seed=seeds[i],
                    behavior=behavior,
                    observations=np.concatenate(
                        [arrays["observations"][:length, i], self._final_observations[i][None]]
                    ),
                    actions=arrays["actions"][:length, i],
                    rewards=arrays["rewards"][:length, i],
                    terminated=bool(arrays["terminations"][length - 1, i]),
                    truncated=bool(arrays["truncations"][length - 1, i]),
                    columns={
                        name.removeprefix("columns."): values[:length, i]
                        for name, values in arrays.items()
                        if name.startswith("columns.")
                    },
                )
            )
        return episodes

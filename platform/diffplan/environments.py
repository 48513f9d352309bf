"""Make environments, one or a batch, and query their optional features.

diffplan uses environments through Gymnasium's interface. Ids may be `module:Id`. Dict observations of goal-conditioned
environments (`observation`, `achieved_goal`, `desired_goal`) become vectors, with the goal in `infos["goal"]`; see
`GoalInInfos`. Optional features of an environment:

* `make_simulator(num_envs)` — a `Simulator`, the environment's own physics and rewards with states that may be set:
  planners that are given the true simulator (MPPI) use it;
* `step_some(indices, actions)` of a batch — steps some of its environments and leaves the others as they are: an
  evaluation plans for many of them at once by letting them wait for each other;
* `infos["goal"]`, `infos["success"]` — the goal of the episode and whether it is reached now.

Everything else about environments is in their task (`diffplan.tasks`).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
from importlib.metadata import entry_points
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv

import diffplan_envs  # noqa: F401  (registers our environments where the package is not installed but on the path)
from diffplan.config import EnvConfig
from diffplan.errors import ConfigError
from diffplan.importing import look_in_working_directory

GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")
NUM_PROBED_STEPS = 20
"""Random steps in which columns that equal the achieved goal are searched."""


class GoalInInfos(gymnasium.Wrapper):
    """A goal-conditioned environment whose Dict observations become vectors, and whose goal goes into the infos.

    The vector is `observation`, with `achieved_goal` appended unless it is contained already. `infos["goal"]` is
    `desired_goal`.

    Args:
        env: an environment with observations in a Dict of 1-d Boxes by the names of `GOAL_KEYS`.

    Attributes:
        goal_columns: columns of the vector that equal the achieved goal.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        space = env.observation_space
        assert isinstance(space, gymnasium.spaces.Dict)
        found = _find_goal_columns(env)
        self._appends = found is None
        own: Any = space["observation"]
        achieved: Any = space["achieved_goal"]
        size, goal_dim = own.shape[0], achieved.shape[0]
        self.goal_columns = tuple(range(size, size + goal_dim)) if found is None else found
        low, high = ([own.low, achieved.low], [own.high, achieved.high]) if self._appends else ([own.low], [own.high])
        self.observation_space = gymnasium.spaces.Box(
            np.concatenate(low).astype(np.float64), np.concatenate(high).astype(np.float64), dtype=np.float64
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._flatten(observation), {**info, "goal": np.asarray(observation["desired_goal"], np.float64)}

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict]:
        """Step the environment."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if "success" not in info and "is_success" in info:
            info = {**info, "success": bool(info["is_success"])}
        return self._flatten(observation), reward, terminated, truncated, info

    def _flatten(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        parts = [observation["observation"], *([observation["achieved_goal"]] if self._appends else [])]
        return np.concatenate(parts).astype(np.float64)


_GOAL_COLUMNS: dict[str, tuple[int, ...] | None] = {}
"""Goal columns by id and arguments of the environment, so that they are searched once for a batch."""


def _find_goal_columns(env: gymnasium.Env) -> tuple[int, ...] | None:
    """Columns of `observation` that equal `achieved_goal` in all of a few random steps; None if there are none."""
    key = None if env.spec is None else f"{env.spec.id} {env.spec.kwargs!r}"
    if key is not None and key in _GOAL_COLUMNS:
        return _GOAL_COLUMNS[key]
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    seen = [observation]
    for _ in range(NUM_PROBED_STEPS):
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        seen.append(observation)
        if terminated or truncated:
            seen.append(env.reset()[0])
    own = np.stack([np.asarray(o["observation"], np.float64) for o in seen])
    achieved = np.stack([np.asarray(o["achieved_goal"], np.float64) for o in seen])
    columns = []
    for values in achieved.T:
        equal = [c for c in range(own.shape[1]) if c not in columns and np.array_equal(own[:, c], values)]
        columns += equal[:1]
    found = tuple(columns) if len(columns) == achieved.shape[1] else None
    if key is not None:
        _GOAL_COLUMNS[key] = found
    return found


def _is_goal_conditioned(space: gymnasium.Space) -> bool:
    return (
        isinstance(space, gymnasium.spaces.Dict)
        and set(GOAL_KEYS) == set(space.spaces)
        and all(isinstance(part, gymnasium.spaces.Box) and len(part.shape) == 1 for part in space.spaces.values())
    )


class Simulator(Protocol):
    """A batch of an environment's own dynamics and rewards, without episodes: set states, then simulate actions."""

    num_envs: int
    """Size of the batch."""

    def set_states(self, observations: np.ndarray, goals: np.ndarray) -> None:
        """Put the batch in the states of observations float[num_envs, observation_dim].

        What follows equals environments that were reset to these observations and goals, float[num_envs, goal_dim].
        """
        ...

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Step every member of the batch once with actions float[num_envs, action_dim].

        Returns:
            Observations float[num_envs, observation_dim], the task's rewards float[num_envs], and dense rewards
            float[num_envs]: those of the task's dense variant, which also depend on the distance where the task's
            reward is 0 (the rewards again if there is no such variant).
        """
        ...


def make_env(config: EnvConfig, **kwargs: Any) -> gymnasium.Env:
    """One environment; raises `ConfigError` for an unknown id or bad arguments."""
    spec = find_spec(config)
    try:
        env = gymnasium.make(spec, **{**config.env_kwargs, **kwargs})
    except Exception as error:  # whatever an environment's own code raises
        raise ConfigError(f"env.env_id {config.env_id!r}: {_first_line(error)}") from error
    return GoalInInfos(env) if _is_goal_conditioned(env.observation_space) else env


def find_spec(config: EnvConfig) -> EnvSpec:
    """Gymnasium's specification of an environment, a copy.

    Raises:
        ConfigError: an unknown id, or a module that cannot be imported.
    """
    if not config.env_id:
        raise ConfigError("env.env_id: expected the id of a Gymnasium environment, got none; give --env.env_id ID")
    module, colon, name = config.env_id.rpartition(":")
    try:
        if colon:
            look_in_working_directory()
            importlib.import_module(module)
        else:
            _import_plugins()
        return copy.deepcopy(gymnasium.spec(name))
    except (gymnasium.error.NameNotFound, gymnasium.error.NamespaceNotFound) as error:
        hint = "" if colon else "; one that a package registers when it is imported is named my_package:Id"
        raise ConfigError(f"env.env_id {config.env_id!r}: {_first_line(error)}{hint}") from error
    except Exception as error:  # also whatever importing a module raises
        raise ConfigError(f"env.env_id {config.env_id!r}: {_first_line(error)}") from error


@functools.cache
def _import_plugins() -> None:
    """Let installed packages register their environments, by entry points of the group `gymnasium.envs`.

    Gymnasium itself no longer loads them. For packages without one, use `module:Id`.
    """
    for point in entry_points(group="gymnasium.envs"):
        with contextlib.suppress(Exception):  # a broken package is no reason not to find the others
            loaded = point.load()
            if callable(loaded):
                loaded()


def make_vector_env(config: EnvConfig, num_envs: int, *, max_episode_steps: int | None = None) -> VectorEnv:
    """A batch of environments that stay as they are when their episodes end (no autoreset).

    Args:
        config: the environment.
        num_envs: size of the batch.
        max_episode_steps: episode limit in place of the registered one.

    Raises:
        ConfigError: unknown id or bad arguments.
    """
    kwargs = dict(config.env_kwargs)
    spec = find_spec(config)
    if max_episode_steps is not None:
        kwargs.pop("max_episode_steps", None)
    try:
        if spec.vector_entry_point is not None:
            limit = {} if max_episode_steps is None else {"max_episode_steps": max_episode_steps}
            batch = _make_own_batch(spec, num_envs, {**kwargs, **limit})
            if batch is not None and not _is_goal_conditioned(batch.single_observation_space):
                return batch
            if batch is not None:
                batch.close()
        if max_episode_steps is not None:
            spec.max_episode_steps = max_episode_steps
        return gymnasium.make_vec(
            spec,
            num_envs,
            "sync",
            vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED},
            wrappers=(_wrap_goal,),  # pyright: ignore[reportArgumentType]  # which may return the environment itself
            **kwargs,
        )
    except Exception as error:  # whatever an environment's own code raises
        raise ConfigError(f"env.env_id {config.env_id!r}: {_first_line(error)}") from error


def _make_own_batch(spec: EnvSpec, num_envs: int, kwargs: dict[str, Any]) -> VectorEnv | None:
    """The batch that an environment brings itself; None for one that cannot do without autoreset."""
    try:
        return gymnasium.make_vec(spec, num_envs, autoreset_mode=AutoresetMode.DISABLED, **kwargs)
    except TypeError as error:
        if "autoreset_mode" in str(error):
            return None
        raise


def _wrap_goal(env: gymnasium.Env) -> gymnasium.Env:
    return GoalInInfos(env) if _is_goal_conditioned(env.observation_space) else env


def restart_ended(env: VectorEnv, observations: np.ndarray, ended: np.ndarray) -> np.ndarray:
    """Start another episode wherever one has ended: Gymnasium refuses to step an environment whose episode is over.

    Args:
        env: a batch of `make_vector_env`.
        observations: float[num_envs, observation_dim] after the last step.
        ended: bool[num_envs], whose episodes the last step ended.

    Returns:
        The observations to act on next, float[num_envs, observation_dim].
    """
    return env.reset(options={"reset_mask": ended})[0] if ended.any() else observations


def make_simulator(config: EnvConfig, num_envs: int) -> Simulator:
    """A batch of an environment's dynamics and rewards whose states may be set.

    Raises:
        ConfigError: the environment cannot be made, or offers no simulator.
    """
    env = make_env(config)
    try:
        make = env.get_wrapper_attr("make_simulator")
    except AttributeError:
        raise ConfigError(f"env.env_id {config.env_id!r}: expected one with a simulator to plan in, got none") from None
    finally:
        env.close()
    return make(num_envs)


def find_episode_limit(config: EnvConfig) -> int | None:
    """Steps after which an episode is truncated; None where that is not known."""
    return config.env_kwargs.get("max_episode_steps", find_spec(config).max_episode_steps)


def get_episode_limit(config: EnvConfig) -> int:
    """Steps after which an episode is truncated; raises `ConfigError` where that is not known."""
    limit = find_episode_limit(config)
    if limit is None:
        raise ConfigError(
            f"env.env_id {config.env_id!r}: expected a registered max_episode_steps, got none; give "
            "--collection.episode_steps to collect, or env.env_kwargs with max_episode_steps"
        )
    return limit


def get_box_bounds(env: VectorEnv) -> tuple[list[float | None], list[float | None]]:
    """Bounds of each action entry, None where unbounded; raises `ConfigError` for actions that are not a vector."""
    space = env.single_action_space
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
        raise ConfigError(f"env.env_id: expected actions in a 1-d Box, got {space}")

    def bounds(values: np.ndarray) -> list[float | None]:
        return [float(v) if np.isfinite(v) else None for v in values]

    return bounds(space.low), bounds(space.high)


def get_env_attribute(config: EnvConfig, name: str) -> Any | None:
    """An optional attribute of an environment, or None where it has none."""
    env = make_env(config)
    try:
        return env.get_wrapper_attr(name)
    except AttributeError:
        return None
    finally:
        env.close()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

"""Make environments, one or a batch, and ask what they can do.

Everything else in diffplan knows environments through Gymnasium's interface and the optional attributes listed here, so
a new family needs no change outside its own package:

* `maze` — an object with `rows` (characters), `walls`, `free_cells`, `is_free(position)`, `distances`: waypoint
  behaviors and pictures use it;
* `reference_returns` — returns of a random and of an expert policy, for normalised scores;
* `make_simulator(num_envs)` — a `Simulator`, the environment's own physics and rewards with states that may be set:
  planners that are given the true simulator (MPPI) use it;
* `shortest_path_lengths(starts, goals)`, `touches_wall(observations)`, `limit_returns(observations, goals, num_steps)`
  — what an evaluation compares episodes with; see the getters below;
* `step_some(indices, actions)` of a batch (see `Maze2DVectorEnv.step_some`) — steps some of its environments and leaves
  the others as they are: an evaluation plans for many of them at once by letting them wait for each other;
* `infos["goal"]`, `infos["success"]` — the goal of the episode and whether it is reached now.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

import diffplan_envs  # noqa: F401  (registers our environments where the package is not installed but on the path)
from diffplan.config import EnvConfig
from diffplan.errors import ConfigError


class Simulator(Protocol):
    """A batch of an environment's own dynamics and rewards, without episodes: set the states, then try actions."""

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
            float[num_envs]: those of the task's dense variant, which tell near from far where the task pays nothing
            (the rewards again where there is no such variant).
        """
        ...


def make_env(config: EnvConfig, **kwargs: Any) -> gymnasium.Env:
    """One environment; raises `ConfigError` for an unknown id or bad arguments."""
    try:
        return gymnasium.make(config.env_id, **{**config.env_kwargs, **kwargs})
    except (gymnasium.error.Error, TypeError, ValueError) as error:
        raise ConfigError(f"env.env_id {config.env_id!r}: {_first_line(error)}") from None


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
    try:
        spec = gymnasium.spec(config.env_id)
        if spec.vector_entry_point is not None:
            if max_episode_steps is not None:
                kwargs["max_episode_steps"] = max_episode_steps
            return gymnasium.make_vec(config.env_id, num_envs, autoreset_mode=AutoresetMode.DISABLED, **kwargs)
        if max_episode_steps is not None:
            spec.max_episode_steps = max_episode_steps
        return gymnasium.make_vec(
            spec, num_envs, "sync", vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED}, **kwargs
        )
    except (gymnasium.error.Error, TypeError, ValueError) as error:
        raise ConfigError(f"env.env_id {config.env_id!r}: {_first_line(error)}") from None


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


def get_maze(config: EnvConfig) -> Any | None:
    """The maze of an environment, or None where it has none."""
    return _get_attribute(config, "maze")


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


def get_reference_returns(config: EnvConfig) -> tuple[float, float] | None:
    """Returns of a random and of an expert policy, or None where none are known."""
    return _get_attribute(config, "reference_returns")


def get_shortest_path_lengths(config: EnvConfig) -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
    """How far it is to a goal at least, or None where an environment does not know.

    Returns:
        A function of start observations float[num, observation_dim] and goals float[num, goal_dim]: the length of the
        shortest possible way until the goal counts as reached, float[num], in environment units; 0 where it is reached
        at once, infinity where no way leads there. An episode's path efficiency is this divided by the length
        travelled until `infos["success"]` is first true.
    """
    return _get_attribute(config, "shortest_path_lengths")


def get_touches_wall(config: EnvConfig) -> Callable[[np.ndarray], np.ndarray] | None:
    """Which observations float[..., observation_dim] touch a wall, bool[...]; None where there are no walls."""
    return _get_attribute(config, "touches_wall")


def get_limit_returns(config: EnvConfig) -> Callable[[np.ndarray, np.ndarray, int], np.ndarray] | None:
    """The largest return that physics allows, or None where an environment does not know.

    Returns:
        A function of start observations float[num, observation_dim], goals float[num, goal_dim] and the number of
        steps of an episode: the largest undiscounted return, float[num], as exactly as the environment says. It may
        take seconds; one call for all episodes is cheapest, and what was computed is remembered in the process.
    """
    return _get_attribute(config, "limit_returns")


def get_episode_limit(config: EnvConfig) -> int:
    """Steps after which an episode of the registered environment is truncated; raises `ConfigError` if never."""
    env = make_env(config)
    limit = env.spec.max_episode_steps if env.spec else None
    env.close()
    if limit is None:
        raise ConfigError(f"env.env_id {config.env_id!r}: expected a registered max_episode_steps, got none")
    return limit


def get_box_bounds(env: VectorEnv) -> tuple[list[float | None], list[float | None]]:
    """Bounds of each action entry, None where unbounded; raises `ConfigError` for actions that are not a vector."""
    space = env.single_action_space
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
        raise ConfigError(f"env.env_id: expected actions in a 1-d Box, got {space}")

    def bounds(values: np.ndarray) -> list[float | None]:
        return [float(v) if np.isfinite(v) else None for v in values]

    return bounds(space.low), bounds(space.high)


def _get_attribute(config: EnvConfig, name: str) -> Any | None:
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

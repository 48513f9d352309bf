"""Make environments, one or a batch, and ask what they can do.

Everything else in diffplan knows environments through Gymnasium's interface and the optional attributes listed here, so
a new family needs no change outside its own package:

* `maze` — an object with `rows` (characters), `walls`, `free_cells`, `is_free(position)`, `distances`: waypoint
  behaviors and pictures use it;
* `reference_returns` — returns of a random and of an expert policy, for normalised scores;
* `infos["goal"]`, `infos["success"]` — the goal of the episode and whether it is reached now.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

import diffplan_envs  # noqa: F401  (registers our environments where the package is not installed but on the path)
from diffplan.config import EnvConfig
from diffplan.errors import ConfigError


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
    env = make_env(config)
    try:
        return env.get_wrapper_attr("maze")
    except AttributeError:
        return None
    finally:
        env.close()


def get_reference_returns(config: EnvConfig) -> tuple[float, float] | None:
    """Returns of a random and of an expert policy, or None where none are known."""
    env = make_env(config)
    try:
        return env.get_wrapper_attr("reference_returns")
    except AttributeError:
        return None
    finally:
        env.close()


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


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

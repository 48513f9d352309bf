"""The meaning of the columns of this family, and what its environments report about themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from diffplan.config import EnvConfig
from diffplan.environments import find_episode_limit, get_env_attribute
from diffplan.errors import ConfigError
from diffplan_envs.maze import MAZE_TASKS

ROLES = EnvConfig(
    env_id="diffplan/Maze2D-v1",
    position_columns=(0, 1),
    velocity_columns=(2, 3),
    goal_columns=(0, 1),
    step_seconds=0.01,
)
"""Observations are x, y, vx, vy; a goal is a position."""


def complete_env(env: EnvConfig) -> EnvConfig:
    """An environment of this family with the roles of its columns; roles that are set already are kept."""
    return replace(
        env,
        position_columns=env.position_columns or ROLES.position_columns,
        velocity_columns=env.velocity_columns or (() if env.position_columns else ROLES.velocity_columns),
        goal_columns=env.goal_columns or ROLES.goal_columns,
        step_seconds=env.step_seconds or ROLES.step_seconds,
    )


def get_maze(env: EnvConfig) -> Any | None:
    """The maze of an environment (`diffplan_envs.maze.Maze`), or None if it has none."""
    return get_env_attribute(env, "maze")


def require_maze(env: EnvConfig, what: str) -> Any:
    """The maze of an environment.

    Raises:
        ConfigError: it has none; the message names what needs one.
    """
    maze = get_maze(env)
    if maze is None:
        raise ConfigError(f"{what}: expected an environment with a maze, got {env.env_id}")
    return maze


def require_ways(env: EnvConfig, what: str) -> Any:
    """The maze of an environment in which a way leads from every free cell to every other one.

    Raises:
        ConfigError: there is no maze, or some free cells cannot be reached; the message names what needs a way.
    """
    maze = require_maze(env, what)
    first, *_ = cells = maze.free_cells
    apart = maze.distances[cells[:, 0], cells[:, 1], first[0], first[1]] < 0
    if apart.any():
        raise ConfigError(
            f"{what}: expected a maze with a way between all free cells, got none between "
            f"{tuple(first.tolist())} and {tuple(cells[apart][0].tolist())}; open a door, or take another"
        )
    return maze


def refuse_way(env: EnvConfig, positions: np.ndarray) -> str | None:
    """Why a ball cannot pass positions float[positions, 2] one after the other; None if it can."""
    maze = get_maze(env)
    if maze is None:
        return None
    cells = maze.cell_at(positions)
    named = [f"{p} in cell {tuple(cell)}" for p, cell in zip(positions.tolist(), cells.tolist(), strict=True)]
    free = maze.is_free(positions)
    if not free.all():
        return f"expected positions in free cells, got {named[int(free.argmin())]}, which is a wall or the outside"
    for i in range(1, len(cells)):
        if maze.distances[*cells[i - 1], *cells[i]] < 0:
            return f"expected positions with a way between them, got none from {named[i - 1]} to {named[i]}"
    return None


def find_benchmark_maze(env: EnvConfig) -> str | None:
    """The name of D4RL's maze that an environment equals, in its layout and its episode limit; None if there is none.

    D4RL's references, and scores from the literature, hold for no other limit.
    """
    name = get_env_attribute(env, "maze_name")
    return name if name is not None and find_episode_limit(env) == MAZE_TASKS[name].max_episode_steps else None


def get_reference_returns(env: EnvConfig) -> tuple[float, float] | None:
    """D4RL's returns of a random policy and of the expert; None for another layout or episode limit than D4RL's."""
    return None if find_benchmark_maze(env) is None else get_env_attribute(env, "reference_returns")


def get_limit_returns(env: EnvConfig) -> Callable[[np.ndarray, np.ndarray, int], np.ndarray] | None:
    """The largest physically possible return, or None if the environment does not compute it.

    Returns:
        A function of start observations float[num, observation_dim], goals float[num, goal_dim] and the number of
        steps of an episode, which returns the largest undiscounted return, float[num]. It may take seconds; one call
        for all episodes is cheapest, and results are cached in the process.
    """
    return get_env_attribute(env, "limit_returns")


def get_shortest_path_lengths(env: EnvConfig) -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
    """Lengths of the shortest paths to goals, or None if the environment does not compute them.

    Returns:
        A function of start observations float[num, observation_dim] and goals float[num, goal_dim], which returns the
        length of the shortest path until the goal counts as reached, float[num], in environment units; 0 if it is
        reached at the start, infinity if there is no path.
    """
    return get_env_attribute(env, "shortest_path_lengths")


def get_touches_wall(env: EnvConfig) -> Callable[[np.ndarray], np.ndarray] | None:
    """Which observations float[..., observation_dim] touch a wall, bool[...]; None if there are no walls."""
    return get_env_attribute(env, "touches_wall")

"""Changes of coordinates on import, so that a planner trained on the data can act in environments of diffplan.

The frame `maze2d`: PointMaze of Gymnasium-Robotics has its origin in the middle of the maze, x along columns and y
against rows; `diffplan/Maze2D-*` has D4RL's coordinates, rows first (see `diffplan_envs.maze`). The physics are the
same. With a maze of H rows and W columns, and (p0, p1) the position, (v0, v1) the velocity and (a0, a1) the action of
Maze2D:

    x = p1 - W/2 + 0.7    vx = v1    ax = a1
    y = H/2 - 0.7 - p0    vy = -v0   ay = -a0
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diffplan.config import EnvConfig
from diffplan.data.format.manifest import Manifest
from diffplan.errors import DataError
from diffplan.files import parse_json
from diffplan.tasks.maze2d.environment import complete_env
from diffplan.types import Episode

OFFSET = 0.7
"""Half a cell, and the offset of 0.2 of D4RL's ball from its walls."""
POSITION_COLUMNS = ("observation.achieved_goal", "observation.desired_goal", "infos.goal", "infos.qpos")
VELOCITY_COLUMNS = ("infos.qvel",)


@dataclass(frozen=True)
class Maze2DFrame:
    """Maps PointMaze's centred coordinates to those of `diffplan/Maze2D-*`.

    Attributes:
        num_rows: rows of the maze.
        num_columns: columns of the maze.
        env: the environment of diffplan that has this maze.
    """

    num_rows: int
    num_columns: int
    env: EnvConfig

    def map_positions(self, positions: np.ndarray) -> np.ndarray:
        """Positions (x, y) as (p0, p1), float[..., 2]."""
        x, y = positions[..., 0], positions[..., 1]
        return np.stack([self.num_rows / 2 - OFFSET - y, x + self.num_columns / 2 - OFFSET], axis=-1)

    def map_vectors(self, vectors: np.ndarray) -> np.ndarray:
        """Velocities or actions along (x, y) as those along (p0, p1), float[..., 2]."""
        return np.stack([-vectors[..., 1], vectors[..., 0]], axis=-1)

    def map_episode(self, episode: Episode) -> Episode:
        """An episode in the new coordinates."""
        columns = dict(episode.columns)
        for name in POSITION_COLUMNS:
            if name in columns:
                columns[name] = self.map_positions(columns[name])
        for name in VELOCITY_COLUMNS:
            if name in columns:
                columns[name] = self.map_vectors(columns[name])
        observations = episode.observations
        return replace(
            episode,
            observations=np.concatenate(
                [self.map_positions(observations[:, :2]), self.map_vectors(observations[:, 2:])], axis=1
            ),
            actions=self.map_vectors(episode.actions),
            columns=columns,
        )

    def map_manifest(self, manifest: Manifest) -> Manifest:
        """The manifest of the data in the new coordinates; raises `DataError` if they do not have PointMaze's form."""
        sizes = {"observation": 4, "action": 2}
        for column in manifest.columns:
            size = 2 if column.name in (*POSITION_COLUMNS, *VELOCITY_COLUMNS) else sizes.get(column.name)
            if size is not None and (column.shape != (size,) or not column.dtype.startswith("float")):
                raise DataError(
                    f"frame maze2d: column {column.name!r}: expected {size} floats per step, as in PointMaze, got "
                    f"{column.dtype}{list(column.shape)}; import without a frame"
                )

        def negative(bound: float | None) -> float | None:
            return None if bound is None else -bound

        low, high = manifest.action_low, manifest.action_high
        mapped = [c.name for c in manifest.columns if c.name in (*sizes, *POSITION_COLUMNS, *VELOCITY_COLUMNS)]
        return replace(
            manifest,
            action_low=[negative(high[1]), low[0]],
            action_high=[negative(low[1]), high[0]],
            # Layout, spaces and spec describe the source environment, and no longer fit the data.
            source={
                **{name: value for name, value in manifest.source.items() if name != "leaves"},
                "frame": {"name": "maze2d", "columns": mapped},
                "env_spec": manifest.env_spec,
            },
            spaces={},
            env_spec=None,
        )


def make_frame(env_spec: str | None) -> Maze2DFrame:
    """The frame for data of an environment.

    Args:
        env_spec: Gymnasium's spec of the environment that the data came from, as JSON; its `maze_map` is needed.

    Raises:
        DataError: the frame does not fit this environment.
    """
    kwargs = parse_json(env_spec).get("kwargs", {}) if env_spec else {}
    maze_map = kwargs.get("maze_map")
    rows = maze_map if isinstance(maze_map, list) and all(isinstance(row, list) for row in maze_map) else []
    if not rows or {len(row) for row in rows} != {len(rows[0])}:
        raise DataError("frame maze2d: expected a maze_map in the environment's spec, got none; import without a frame")
    if kwargs.get("maze_size_scaling", 1) != 1:
        raise DataError(f"frame maze2d: expected cells of size 1, got {kwargs['maze_size_scaling']}")
    return Maze2DFrame(len(rows), len(rows[0]), _make_env(rows, kwargs))


def _make_env(rows: list[list[Any]], kwargs: dict[str, Any]) -> EnvConfig:
    from diffplan_envs.maze import FREE, GOAL, MAZE_TASKS, WALL, Maze

    goals = sum(cell == "g" for row in rows for cell in row)

    def character(cell: Any) -> str:
        if cell == 1:
            return WALL
        return GOAL if cell == "g" and goals == 1 else FREE

    dense = kwargs.get("reward_type") == "dense"
    try:
        maze = Maze("/".join("".join(map(character, row)) for row in rows))
    except ValueError as error:
        raise DataError(f"frame maze2d: {error}") from None
    for name, task in MAZE_TASKS.items():
        if np.array_equal(Maze(task.layout).walls, maze.walls) and goals == 0:
            title = "-".join("UMaze" if word == "umaze" else word.capitalize() for word in name.split("-"))
            return complete_env(EnvConfig(env_id=f"diffplan/Maze2D-{title}{'-Dense' if dense else ''}-v1"))
    reward_type = {"reward_type": "dense"} if dense else {}
    return complete_env(EnvConfig(env_id="diffplan/Maze2D-v1", env_kwargs={"maze": maze.layout, **reward_type}))

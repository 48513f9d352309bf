"""Datasets of made-up episodes, for the tests of this directory."""

from pathlib import Path

import numpy as np

from diffplan.data.format import Manifest, VectorColumn, new_dataset_uuid
from diffplan.data.writer import create_dataset, write_unit
from diffplan.types import Episode

OBSERVATION_DIM, ACTION_DIM, GOAL_DIM = 3, 2, 2


def make_manifest() -> Manifest:
    return Manifest(
        dataset_uuid=new_dataset_uuid(),
        env={"env_id": "diffplan/Maze2D-UMaze-v1"},
        collection={"seed": 0},
        observation_dim=OBSERVATION_DIM,
        action_dim=ACTION_DIM,
        action_low=[-1.0, None],
        action_high=[1.0, None],
        extra_columns=(VectorColumn("goal", GOAL_DIM), VectorColumn("cost", 0)),
    )


def make_episode(index: int, length: int, *, terminated: bool = False, truncated: bool = True) -> Episode:
    generator = np.random.default_rng([length, index])

    def values(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32)

    return Episode(
        episode_index=index,
        seed=2**62 + index,
        behavior="waypoint",
        observations=values(length + 1, OBSERVATION_DIM),
        actions=values(length, ACTION_DIM),
        rewards=values(length),
        terminated=terminated,
        truncated=truncated,
        columns={"goal": values(length, GOAL_DIM), "cost": values(length)},
    )


def write_dataset(root: Path, lengths_of_units: list[list[int]]) -> list[Episode]:
    """Write one unit for each list of episode lengths; episodes are numbered in order."""
    manifest = create_dataset(root, make_manifest())
    episodes: list[Episode] = []
    for unit, lengths in enumerate(lengths_of_units):
        added = [make_episode(len(episodes) + i, length) for i, length in enumerate(lengths)]
        write_unit(root, manifest, unit, added)
        episodes += added
    return episodes

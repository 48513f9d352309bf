"""Datasets of made-up episodes, for the tests of this directory."""

from pathlib import Path

import numpy as np

from diffplan.data.format.manifest import Column, Manifest, make_columns, new_dataset_uuid
from diffplan.data.format.record import decode_record, encode_record
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.data.maintenance.verification import find_damage
from diffplan.storage.opening import open_store
from diffplan.types import Episode

OBSERVATION_DIM, ACTION_DIM, GOAL_DIM = 3, 2, 2


def make_manifest() -> Manifest:
    return Manifest(
        dataset_uuid=new_dataset_uuid(),
        env={"env_id": "diffplan/Maze2D-UMaze-v1"},
        collection={"seed": 0},
        columns=make_columns(OBSERVATION_DIM, ACTION_DIM, (Column("goal", (GOAL_DIM,)), Column("cost"))),
        action_low=[-1.0, None],
        action_high=[1.0, None],
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


def shard_of(root: Path, unit: int) -> Path:
    (shard,) = (root / "shards").glob(f"{unit:08d}-*.arrow")
    return shard


def commit_of(root: Path, unit: int) -> Path:
    return root / "commits" / f"{unit:08d}.json"


def overwrite(path: Path, content: bytes) -> None:
    """Change a file that nobody should change."""
    path.chmod(0o644)
    path.write_bytes(content)


def edit_record(path: Path, **changes: object) -> None:
    """Change a record and its checksum with it, as a faulty writer would rather than a faulty disk."""
    path.write_bytes(encode_record({**decode_record(path.read_bytes()), **changes}))


def edit_shard_record(root: Path, unit: int, **changes: object) -> None:
    """Change what a commit says of its shard."""
    commit = commit_of(root, unit)
    edit_record(commit, shard={**decode_record(commit.read_bytes())["shard"], **changes})


def require_undamaged(root: Path) -> int:
    """Check every byte of a dataset; raises the first damage, or returns the number of objects."""
    found = list(find_damage(open_store(root)))
    for damage in found:
        if damage is not None:
            raise damage.error
    return len(found)

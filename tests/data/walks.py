"""Datasets of walks whose windows say where they are from, for the tests of readers and of maintenance.

The first entry of an observation is the number of its episode and the second its row, so that with `IDENTITY` a window
can be looked up in the episodes that were written.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from diffplan.data.format.dataset import TrajectoryDataset
from diffplan.data.format.manifest import Column, Manifest, Task, make_columns, new_dataset_uuid
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.data.windows.normalization import Normalizer
from diffplan.types import Episode

NAMES = ("action", "observation")
OBSERVATION_DIM, ACTION_DIM = 3, 2
IDENTITY = Normalizer(np.zeros(5, np.float32), np.ones(5, np.float32))
ENV = {"env_id": "diffplan/Maze2D-UMaze-v1"}


def make_manifest(*, dtype: str = "float32", tasks: tuple[Task, ...] = (), **changes: object) -> Manifest:
    columns = make_columns(
        OBSERVATION_DIM,
        ACTION_DIM,
        (Column("cost", (), "float64"), Column("goal", (2,), has_final=True)),
        observation_dtype=dtype,
        action_dtype=dtype,
        reward_dtype=dtype,
    )
    values = {"collection": {"seed": 0}, "action_low": [-1.0, None], "action_high": [1.0, None], "tasks": tasks}
    return Manifest(**{"dataset_uuid": new_dataset_uuid(), "env": ENV, "columns": columns, **values, **changes})


def make_walk(index: int, length: int, *, dtype: str = "float32", task: int = 0) -> Episode:
    """A walk that terminated if its number is odd."""
    generator = np.random.default_rng([index, length])
    observations = generator.standard_normal((length + 1, OBSERVATION_DIM))
    observations[:, 0], observations[:, 1] = index, np.arange(length + 1)
    return Episode(
        episode_index=index,
        seed=1000 + index,
        behavior="walk",
        observations=observations.astype(dtype),
        actions=generator.uniform(-1, 1, (length, ACTION_DIM)).astype(dtype),
        rewards=generator.standard_normal(length).astype(dtype),
        terminated=index % 2 == 1,
        truncated=index % 2 == 0,
        columns={
            "cost": generator.standard_normal(length),
            "goal": generator.standard_normal((length + 1, 2)).astype(np.float32),
        },
        task=task,
    )


def make_units(lengths_of_units: Sequence[Sequence[int]], **kwargs: object) -> list[list[Episode]]:
    """The walks of each unit, numbered in the order of units."""
    firsts = np.concatenate([[0], np.cumsum([len(lengths) for lengths in lengths_of_units])])
    return [
        [make_walk(int(first) + i, length, **kwargs) for i, length in enumerate(lengths)]
        for first, lengths in zip(firsts, lengths_of_units, strict=False)
    ]


def write_walks(
    root: Path,
    lengths_of_units: Sequence[Sequence[int]],
    *,
    manifest: Manifest | None = None,
    only: Iterable[int] | None = None,
    dtype: str = "float32",
) -> list[Episode]:
    """Write units, all or the ones named in their order, and return all walks."""
    manifest = create_dataset(root, manifest or make_manifest(dtype=dtype))
    units = make_units(lengths_of_units, dtype=dtype)
    for unit in range(len(units)) if only is None else only:
        write_unit(root, manifest, unit, units[unit])
    return [episode for unit in units for episode in unit]


def find_window(x: np.ndarray, names: Sequence[str] = NAMES) -> tuple[int, int]:
    """Number of the episode and first row of a window in environment units."""
    at = 0 if names[0] == "observation" else ACTION_DIM
    return round(float(x[0, at])), round(float(x[0, at + 1]))


def make_window(
    episode: Episode, first: int, horizon: int, stride: int, names: Sequence[str] = NAMES
) -> tuple[np.ndarray, np.ndarray]:
    """A window by slicing, with rows past the end repeated, and which of its steps are real."""
    rows = first + np.arange(horizon) * stride
    columns = {"observation": episode.observations[:-1], "action": episode.actions}
    inside = np.minimum(rows, len(episode) - 1)
    return np.concatenate([columns[name][inside] for name in names], axis=1), rows < len(episode)


def list_starts(episodes: Sequence[Episode], horizon: int, stride: int, padding: str) -> set[tuple[int, int]]:
    """Episode and first row of every window."""
    span = (horizon - 1) * stride + 1
    starts = set()
    for e in episodes:
        num = len(e) if padding == "end" else max(len(e) - span + 1, int(padding == "short"))
        starts |= {(e.episode_index, row) for row in range(num)}
    return starts


def flip_bit(dataset: TrajectoryDataset, shard: int, name: str, row: int) -> Path:
    """Damage the lowest exponent bit of the first number of a row of a shard."""
    record, column = dataset.shards[shard], dataset.manifest.column(name)
    path = Path(dataset.store.locate(record.name))
    content = bytearray(path.read_bytes())
    content[record.offsets[name] + row * column.size * column.numpy_dtype.itemsize + 2] ^= 0x80
    path.chmod(0o644)
    path.write_bytes(content)
    return path

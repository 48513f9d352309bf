"""Readers: batches of windows in model space, from memory, mapped shards or blocks.

* `MappedReader`: directly from the mapped shards; opens at once, best if the data fit into the page cache.
* `MemoryReader`: one normalised copy in RAM or GPU memory, with the columns of a row contiguous; the fastest.
* `BlockReader` (`diffplan.data.windows.blocks`): for data larger than memory, or on a remote store.

The first two draw every window of the dataset with equal probability; their `read` is a pure function of its arguments.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from diffplan.data.format.dataset import TrajectoryDataset
from diffplan.data.format.shard_reader import ShardReader
from diffplan.data.windows.conditions import Conditions, WindowBatch
from diffplan.data.windows.flat_windows import gather_rows, gather_windows, put_final_observations
from diffplan.data.windows.mapped_windows import Windows
from diffplan.data.windows.normalization import Normalizer
from diffplan.data.windows.returns import compute_returns_to_go
from diffplan.data.windows.window_index import WindowIndex

Storage = Literal["auto", "mapped", "memory", "blocks"]
MEMORY_SHARE = 0.25
"""Share of the free memory for the copies of all workers of a machine together."""


LOAD_ROWS = 2**16
"""Rows that are read and normalised at once; they fit into the processor's cache."""


class WindowReader(Protocol):
    """Reads batches of windows."""

    def count(self, horizon: int) -> int:
        """Number of windows of a horizon; raises `DataError` if there is none."""
        ...

    def read(
        self, step: int, num_windows: int, horizon: int, generator: np.random.Generator, rows: slice = slice(None)
    ) -> WindowBatch:
        """Draw a batch and return the chosen rows of it.

        Args:
            step: number of the training step.
            num_windows: windows of the whole batch.
            horizon: steps of a window.
            generator: source of randomness; draws do not depend on `rows`.
            rows: windows of the batch to return, so that workers share a batch.
        """
        ...


class IndexedReader:
    """The common part of readers with random access to all rows of the dataset.

    Args:
        dataset: the dataset.
        names: columns of a transition, side by side.
        index: its windows.
        normalizer: normaliser of these columns.
        conditions: conditions to return with the windows.
        device: device of the batches.
    """

    def __init__(
        self,
        dataset: TrajectoryDataset,
        names: tuple[str, ...],
        index: WindowIndex,
        normalizer: Normalizer,
        conditions: Conditions,
        device: torch.device,
    ) -> None:
        self.dataset = dataset
        self.names = names
        self.index = index
        self.normalizer = normalizer
        self.conditions = conditions
        self.device = device
        sizes = [dataset.describe_column(name).size for name in names]
        self.size = sum(sizes)
        at = names.index("observation")
        self._observation = slice(sum(sizes[:at]), sum(sizes[: at + 1]))
        self._episode_starts = np.concatenate([[0], np.cumsum(dataset.episodes.length, dtype=np.int64)])

    def count(self, horizon: int) -> int:
        """Number of windows of a horizon; raises `DataError` if there is none."""
        return self.index.count(horizon)

    def read(
        self, step: int, num_windows: int, horizon: int, generator: np.random.Generator, rows: slice = slice(None)
    ) -> WindowBatch:
        """See `WindowReader.read`; the step is not used."""
        numbers = self.index.draw(num_windows, horizon, generator)
        uniform = generator.random(num_windows) if self.conditions.goal == "future" else None
        episodes, first_rows = self.index.locate(numbers[rows], horizon)
        x = self.gather(episodes, first_rows, horizon)
        mask, goes_on = (
            self._to_device(m(episodes, first_rows, horizon)) for m in (self.index.mask, self.index.goes_on)
        )
        if (is_final := self._to_device(self.index.is_final(episodes, first_rows, horizon))) is not None:
            final = self._final_observations[torch.from_numpy(episodes).to(self.device)]
            x = put_final_observations(x, is_final, final, self._observation)
        goal = self._goals(x, episodes, first_rows, None if uniform is None else uniform[rows])
        return WindowBatch(
            x=x,
            mask=mask,
            goal=goal,
            returns_to_go=self._returns_of(episodes, first_rows),
            task=self._tasks_of(episodes),
            goes_on=goes_on,
        )

    def _to_device(self, values: np.ndarray | None) -> Tensor | None:
        return None if values is None else torch.from_numpy(values).to(self.device)

    def gather(self, episodes: np.ndarray, first_rows: np.ndarray, horizon: int) -> Tensor:
        """Normalised windows that begin at rows of episodes."""
        raise NotImplementedError

    def gather_observations(self, episodes: np.ndarray, rows: np.ndarray) -> Tensor:
        """Normalised observations at rows of episodes."""
        raise NotImplementedError

    def _goals(
        self, x: Tensor, episodes: np.ndarray, first_rows: np.ndarray, uniform: np.ndarray | None
    ) -> Tensor | None:
        if self.conditions.goal == "none":
            return None
        if self.conditions.goal == "window_end":
            return x[:, -1, self._observation]
        final = self._final_observations[torch.from_numpy(episodes).to(self.device)]
        if uniform is None:
            return final
        lengths = self.index.lengths[episodes]
        goal_rows = first_rows + 1 + (uniform * (lengths - first_rows)).astype(np.int64)  # length: the final one
        observations = self.gather_observations(episodes, np.minimum(goal_rows, lengths - 1))
        is_final = torch.from_numpy(goal_rows == lengths).to(self.device)
        return torch.where(is_final[:, None], final, observations)

    @functools.cached_property
    def _final_observations(self) -> Tensor:
        """Observation after the last action of each episode, in model space."""
        final = self.dataset.episodes.final_observations.astype(np.float32)
        padded = np.zeros((len(final), self.size), np.float32)
        padded[:, self._observation] = final
        normalized = np.asarray(self.normalizer.normalize(padded), dtype=np.float32)
        return torch.from_numpy(normalized[:, self._observation].copy()).to(self.device)

    def _returns_of(self, episodes: np.ndarray, first_rows: np.ndarray) -> Tensor | None:
        if not self.conditions.returns_to_go:
            return None
        return self._returns_to_go[torch.from_numpy(self._episode_starts[episodes] + first_rows).to(self.device)]

    @functools.cached_property
    def _returns_to_go(self) -> Tensor:
        """Return-to-go of every step of the dataset, in the order of `dataset.episodes`."""
        returns = compute_returns_to_go(
            self.dataset.read_column("reward"),
            self.index.lengths,
            self.conditions.discount,
            self.dataset.episodes.column("terminated"),
            self.conditions.termination_penalty,
        )
        return torch.from_numpy(returns).to(self.device)

    def _tasks_of(self, episodes: np.ndarray) -> Tensor | None:
        if not self.dataset.manifest.tasks:
            return None
        return torch.from_numpy(self.dataset.episodes.task[episodes].astype(np.int64)).to(self.device)


class MappedReader(IndexedReader):
    """Reads from the mapped shards and normalises each batch."""

    def __init__(
        self,
        dataset: TrajectoryDataset,
        names: tuple[str, ...],
        index: WindowIndex,
        normalizer: Normalizer,
        conditions: Conditions,
        device: torch.device,
    ) -> None:
        super().__init__(dataset, names, index, normalizer, conditions, device)
        self._windows = Windows(dataset, names, index=index)

    def gather(self, episodes: np.ndarray, first_rows: np.ndarray, horizon: int) -> Tensor:
        """Normalised windows that begin at rows of episodes."""
        x = torch.from_numpy(self._windows.gather_at(episodes, first_rows, horizon)).to(self.device)
        return self.normalizer.normalize(x)

    def gather_observations(self, episodes: np.ndarray, rows: np.ndarray) -> Tensor:
        """Normalised observations at rows of episodes."""
        return self.gather(episodes, rows, 1)[:, 0, self._observation]


class MemoryReader(IndexedReader):
    """Reads from a normalised copy of the dataset, with contiguous rows.

    Args:
        dataset: the dataset.
        names: columns of a transition, side by side.
        index: its windows.
        normalizer: normaliser of these columns.
        conditions: conditions to return with the windows.
        device: device of the copy and the batches.
        verify: verify the checksums of all bytes that are read.
    """

    def __init__(
        self,
        dataset: TrajectoryDataset,
        names: tuple[str, ...],
        index: WindowIndex,
        normalizer: Normalizer,
        conditions: Conditions,
        device: torch.device,
        *,
        verify: bool = False,
    ) -> None:
        super().__init__(dataset, names, index, normalizer, conditions, device)
        self._flat = torch.empty(dataset.num_steps * self.size, device=device)
        reader = ShardReader(dataset.store, dataset.manifest, verify=verify)
        at = 0
        for shard, run_row, run_rows in dataset.iterate_runs():
            for row in range(run_row, run_row + run_rows, LOAD_ROWS):
                num_rows = min(LOAD_ROWS, run_row + run_rows - row)
                joined = torch.from_numpy(reader.read_joined(shard, names, row, num_rows)).to(device)
                self._flat[at : at + joined.numel()] = self.normalizer.normalize(joined).view(-1)
                at += joined.numel()

    def gather(self, episodes: np.ndarray, first_rows: np.ndarray, horizon: int) -> Tensor:
        """Normalised windows that begin at rows of episodes."""
        if not self.index.is_even:
            rows = self._episode_starts[episodes][:, None] + self.index.rows(episodes, first_rows, horizon)
            return gather_rows(self._flat, torch.from_numpy(rows * self.size).to(self.device), self.size)
        starts = torch.from_numpy((self._episode_starts[episodes] + first_rows) * self.size).to(self.device)
        return gather_windows(self._flat, starts, horizon, self.size, self.index.stride)

    def gather_observations(self, episodes: np.ndarray, rows: np.ndarray) -> Tensor:
        """Normalised observations at rows of episodes."""
        starts = torch.from_numpy((self._episode_starts[episodes] + rows) * self.size).to(self.device)
        return gather_rows(self._flat, starts, self.size)[:, self._observation]


def make_window_reader(
    dataset: TrajectoryDataset,
    names: tuple[str, ...],
    index: WindowIndex,
    normalizer: Normalizer,
    *,
    storage: Storage = "auto",
    conditions: Conditions | None = None,
    device: torch.device | str = "cpu",
    verify: bool = False,
    max_horizon: int,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> WindowReader:
    """The best reader for a dataset, or the requested one.

    Args:
        dataset: the dataset.
        names: columns of a transition, side by side; one of them `observation`.
        index: its windows.
        normalizer: normaliser of these columns.
        storage: `auto` copies the data into memory if a quarter of the free memory suffices, maps shards on a local
            disk if they fit into the page cache, and reads blocks otherwise.
        conditions: conditions to return with the windows.
        device: device of the batches, and of a copy in memory.
        verify: verify the checksums of all data before they are used.
        max_horizon: the longest horizon of all reads.
        seed: seed of the order of blocks.
        rank: number of this worker.
        world_size: number of workers.

    Raises:
        DataError: a shard is damaged, or the reader does not support the conditions.
    """
    conditions = conditions or Conditions()
    device = torch.device(device)
    num_bytes = dataset.num_steps * 4 * sum(dataset.describe_column(name).size for name in names)
    if storage == "auto":
        storage = choose_storage(num_bytes, dataset, device, world_size)
    if storage == "memory":
        return MemoryReader(dataset, names, index, normalizer, conditions, device, verify=verify)
    if storage == "mapped":
        if verify:
            dataset.verify_shards()
        return MappedReader(dataset, names, index, normalizer, conditions, device)
    from diffplan.data.windows.blocks import BlockReader

    return BlockReader(
        dataset,
        names,
        index,
        normalizer,
        conditions,
        device,
        max_horizon=max_horizon,
        seed=seed,
        rank=rank,
        world_size=world_size,
        verify=verify,
    )


def choose_storage(num_bytes: int, dataset: TrajectoryDataset, device: torch.device, world_size: int) -> Storage:
    """The best storage to read data of this size from."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if num_bytes <= MEMORY_SHARE * free:
            return "memory"
    available = _available_memory_bytes()
    if device.type == "cpu" and num_bytes * world_size <= MEMORY_SHARE * available:
        return "memory"
    if dataset.store.is_local and dataset.num_bytes <= 0.5 * available:
        return "mapped"
    return "blocks"


def _available_memory_bytes() -> int:
    """Memory that is available without swapping, in bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0

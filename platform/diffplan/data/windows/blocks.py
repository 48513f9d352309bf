"""A shuffled pool of blocks: random windows of data that are larger than memory, or on a remote store.

Reading single windows from a cold disk or an object store fetches thousands of bytes around each one. A block is a few
megabytes of contiguous rows, read by ranges; a pool has some tens of blocks in random order, and batches are drawn from
the pool. At a fixed interval of batches the next block replaces the oldest one:

```
order of blocks (a new permutation for each pass over the data)
  7 2 9 4 0 5 │ 3 8 1 6 …         step 0: pool {7 2 9 4}; after one interval {2 9 4 0}, then {9 4 0 5} …
  └─ pool ─┘
```

Which blocks are in the pool is a pure function of (seed, step), so a run resumes from the step number alone. Windows
belong to the block that they begin in; it is read beyond its end, for the longest of them. With several workers each
has every `world_size`-th block of the order, so here, unlike in the other readers, the windows of a step depend on the
number of workers.
"""

from __future__ import annotations

import functools
import itertools
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from diffplan.data.format.commit_record import ShardRecord
from diffplan.data.format.dataset import TrajectoryDataset
from diffplan.data.format.shard_reader import ShardReader
from diffplan.data.windows.conditions import Conditions, WindowBatch
from diffplan.data.windows.flat_windows import gather_rows, gather_windows, put_final_observations
from diffplan.data.windows.normalization import Normalizer
from diffplan.data.windows.returns import compute_returns_to_go
from diffplan.data.windows.window_index import WindowIndex
from diffplan.errors import DataError

BLOCK_BYTES = 4 * 2**20
NUM_POOL_BLOCKS = 32
DRAWS_PER_ROW = 0.25
"""Windows drawn per row of a block while it is in the pool; a greater value reads less and repeats more."""


@dataclass(frozen=True)
class _Block:
    """Rows of a shard in which windows begin: `episodes` are those with rows there."""

    shard: ShardRecord
    first_row: int
    num_rows: int
    episodes: np.ndarray


@dataclass(frozen=True)
class _Pieces:
    """The pieces of episodes in a block, or in all blocks of the pool.

    Attributes:
        episodes: number of the episode of each piece.
        offsets: row at which the episode of each piece begins or would begin; negative if it begins before the rows.
        first_starts: first possible first row of windows in each piece, counted in its episode.
        end_starts: the row after the last one.
    """

    episodes: np.ndarray
    offsets: np.ndarray
    first_starts: np.ndarray
    end_starts: np.ndarray


@dataclass(frozen=True)
class _Filled:
    """A block in memory: normalised rows, float32[rows * size], their returns if requested, its pieces."""

    flat: torch.Tensor
    returns_to_go: np.ndarray | None
    pieces: _Pieces


class BlockReader:
    """Reads windows from a pool of blocks; see the module. Close it to end its thread.

    Args:
        dataset: the dataset.
        names: columns of a transition, side by side.
        index: its windows; has padding, stride and the weights of tasks.
        normalizer: normaliser of these columns.
        conditions: conditions to return with the windows; `future` goals are not supported (other blocks).
        device: device of the batches.
        max_horizon: the longest horizon of all reads.
        seed: seed of the order of blocks.
        rank: number of this worker.
        world_size: number of workers.
        verify: verify the checksums of all bytes that are read.
        block_bytes: approximate size of a block.
        num_pool_blocks: number of blocks in memory.

    Raises:
        DataError: the conditions are not supported.
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
        max_horizon: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        verify: bool = False,
        block_bytes: int = BLOCK_BYTES,
        num_pool_blocks: int = NUM_POOL_BLOCKS,
    ) -> None:
        if conditions.goal == "future":
            raise DataError("goals from the future of an episode need the storage memory or mapped, got blocks")
        self.dataset = dataset
        self.index = index
        self.conditions = conditions
        self._names = names
        self._normalizer = normalizer
        self._device = device
        sizes = [dataset.describe_column(name).size for name in names]
        self._size = sum(sizes)
        at = names.index("observation")
        self._observation = slice(sum(sizes[:at]), sum(sizes[: at + 1]))
        self._max_horizon = max_horizon
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self._reader = ShardReader(dataset.store, dataset.manifest, verify=verify)
        self._rows_per_block = max(block_bytes // (4 * self._size), index.span(max_horizon))
        self._slot_rows = self._rows_per_block + index.span(max_horizon)
        self._blocks = self._cut_blocks()
        self._num_pool = min(num_pool_blocks, max(len(self._blocks) // world_size, 1))
        self._pool: dict[int, _Pieces] = {}
        self._coming: dict[int, Future[_Filled]] = {}
        self._flat = torch.zeros(self._num_pool * self._slot_rows * self._size)
        self._returns = np.zeros(self._num_pool * self._slot_rows if conditions.returns_to_go else 0, np.float32)
        self._pieces: dict[str, np.ndarray] = {}
        self._cumulative: dict[int, np.ndarray] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="blocks")

    def close(self) -> None:
        """End the read-ahead thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def count(self, horizon: int) -> int:
        """Number of windows of a horizon in the whole dataset; raises `DataError` if there is none."""
        return self.index.count(horizon)

    def read(
        self, step: int, num_windows: int, horizon: int, generator: np.random.Generator, rows: slice = slice(None)
    ) -> WindowBatch:
        """See `WindowReader.read`; workers draw their windows from different blocks.

        Raises:
            DataError: a shard is missing or damaged, or the pool has no window of this horizon.
        """
        if horizon > self._max_horizon:
            raise ValueError(f"expected a horizon of at most {self._max_horizon}, got {horizon}")
        count = len(range(num_windows)[rows])
        self._move_to(step, count)
        piece, first_rows = self._draw(num_windows, horizon, generator)
        piece, first_rows = piece[rows], first_rows[rows]
        episodes, offsets = self._pieces["episodes"][piece], self._pieces["offsets"][piece]
        if not self.index.is_even:
            flat_rows = offsets[:, None] + self.index.rows(episodes, first_rows, horizon)
            x = gather_rows(self._flat, torch.from_numpy(flat_rows * self._size), self._size)
        else:
            starts = torch.from_numpy((offsets + first_rows) * self._size)
            x = gather_windows(self._flat, starts, horizon, self._size, self.index.stride)
        x = x.to(self._device)
        if (is_final := self._to_device(self.index.is_final(episodes, first_rows, horizon))) is not None:
            x = put_final_observations(x, is_final, self._get_final(episodes), self._observation)
        mask = self.index.mask(episodes, first_rows, horizon)
        returns = self._returns[offsets + first_rows] if self.conditions.returns_to_go else None
        tasks = self.dataset.episodes.task[episodes].astype(np.int64) if self.dataset.manifest.tasks else None
        return WindowBatch(
            x=x,
            mask=self._to_device(mask),
            goal=self._goals(x, episodes),
            returns_to_go=self._to_device(returns),
            task=self._to_device(tasks),
            goes_on=self._to_device(self.index.goes_on(episodes, first_rows, horizon)),
        )

    def _to_device(self, values: np.ndarray | None) -> torch.Tensor | None:
        return None if values is None else torch.from_numpy(values).to(self._device)

    def _goals(self, x: torch.Tensor, episodes: np.ndarray) -> torch.Tensor | None:
        if self.conditions.goal == "none":
            return None
        if self.conditions.goal == "window_end":
            return x[:, -1, self._observation]
        return self._get_final(episodes)

    def _get_final(self, episodes: np.ndarray) -> torch.Tensor:
        """Observations after the last action of episodes, in model space."""
        padded = np.zeros((len(episodes), self._size), np.float32)
        padded[:, self._observation] = self._final_observations[episodes]
        normalized = np.asarray(self._normalizer.normalize(padded), np.float32)[:, self._observation].copy()
        return torch.from_numpy(normalized).to(self._device)

    @functools.cached_property
    def _final_observations(self) -> np.ndarray:
        return self.dataset.episodes.final_observations

    def _cut_blocks(self) -> list[_Block]:
        """All blocks, in the order of the dataset."""
        episodes = self.dataset.episodes
        blocks = []
        by_shard = np.lexsort([episodes.first_row, episodes.shard])
        edges = np.searchsorted(episodes.shard[by_shard], np.arange(len(self.dataset.shards) + 1))
        for number, shard in enumerate(self.dataset.shards):
            of_shard = by_shard[edges[number] : edges[number + 1]]
            firsts = episodes.first_row[of_shard].astype(np.int64)
            ends = firsts + episodes.length[of_shard]
            rows = [*range(0, shard.num_rows, self._rows_per_block), shard.num_rows]
            if len(rows) > 2 and rows[-1] - rows[-2] < self._slot_rows - self._rows_per_block:
                del rows[-2]  # so few rows alone might have no window; they fit into the slot of the previous block
            for first_row, end in itertools.pairwise(rows):
                inside = of_shard[np.searchsorted(ends, first_row, side="right") : np.searchsorted(firsts, end)]
                if len(inside):
                    blocks.append(_Block(shard, first_row, end - first_row, inside))
        return blocks

    def _block_at(self, position: int) -> _Block:
        """The block at a position of this worker's order."""
        place = position * self._world_size + self._rank
        lap, within = divmod(place, len(self._blocks))
        order = np.random.default_rng([self._seed, lap]).permutation(len(self._blocks))
        return self._blocks[order[within]]

    def _move_to(self, step: int, num_windows: int) -> None:
        """Update the pool to its content at a step."""
        interval = max(int(self._rows_per_block * DRAWS_PER_ROW) // max(num_windows, 1), 1)
        first = step // interval
        wanted = range(first, first + self._num_pool)
        if list(self._pool) == list(wanted):
            return
        for position in [*wanted, wanted.stop]:  # one block is read ahead
            if position not in self._pool and position not in self._coming:
                self._coming[position] = self._thread.submit(self._fill, self._block_at(position))
        kept, self._pool = self._pool, {}  # empty until done: slots are overwritten, and a block may be damaged
        pool = {}
        for position in wanted:
            pool[position] = kept.get(position) or self._place(position, self._coming.pop(position).result())
        self._coming = {p: future for p, future in self._coming.items() if p == wanted.stop}
        self._pool = pool
        names = ("episodes", "offsets", "first_starts", "end_starts")
        self._pieces = {name: np.concatenate([getattr(p, name) for p in pool.values()]) for name in names}
        self._cumulative.clear()

    def _place(self, position: int, filled: _Filled) -> _Pieces:
        """Copy a block into the slot of the oldest one."""
        first_row = position % self._num_pool * self._slot_rows
        start = first_row * self._size
        self._flat[start : start + len(filled.flat)] = filled.flat
        if filled.returns_to_go is not None:
            self._returns[first_row : first_row + len(filled.returns_to_go)] = filled.returns_to_go
        return replace(filled.pieces, offsets=filled.pieces.offsets + first_row)

    def _draw(self, num_windows: int, horizon: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Pieces and first rows, counted in their episodes, of windows drawn from the pool."""
        pieces = self._pieces
        if horizon not in self._cumulative:
            last = self.index.starts_of(pieces["episodes"], horizon)
            first, end = (self.index.number_from(pieces[name]) for name in ("first_starts", "end_starts"))
            counts = np.maximum(np.minimum(end, last) - first, 0)
            self._cumulative[horizon] = np.cumsum(counts * self._piece_weights(counts))
        cumulative = self._cumulative[horizon]
        if cumulative[-1] <= 0:
            raise DataError(
                f"{self.dataset.uri}: no window of horizon {horizon} begins in the {self._num_pool} blocks in memory; "
                "take the storage memory or mapped, or a shorter horizon"
            )
        below_total = np.nextafter(cumulative[-1], 0)  # or rounding might choose a last piece without windows
        drawn = np.minimum(generator.random(num_windows) * cumulative[-1], below_total)
        piece = np.searchsorted(cumulative, drawn, side="right")
        first, end = (self.index.number_from(pieces[name][piece]) for name in ("first_starts", "end_starts"))
        end = np.minimum(end, self.index.starts_of(pieces["episodes"][piece], horizon))
        numbers = first + (generator.random(num_windows) * (end - first)).astype(np.int64)
        return piece, numbers * self.index.every

    def _piece_weights(self, counts: np.ndarray) -> np.ndarray:
        """Weight of a window of each piece, so that tasks have their shares of the drawn windows."""
        shares = self.index.task_shares
        if shares is None:
            return np.ones(len(counts))
        task = self.dataset.episodes.task[self._pieces["episodes"]]
        totals = np.bincount(task, weights=counts, minlength=len(shares))
        return (shares / np.maximum(totals, 1))[task]

    def _fill(self, block: _Block) -> _Filled:
        """Read a block, and beyond its end for its longest windows."""
        table = self.dataset.episodes
        firsts = table.first_row[block.episodes].astype(np.int64)
        lengths = table.length[block.episodes].astype(np.int64)
        end = block.first_row + block.num_rows
        reach = min(end + self.index.span(self._max_horizon) - 1, int(firsts[-1] + lengths[-1]))
        values = self._reader.read_joined(block.shard, self._names, block.first_row, reach - block.first_row)
        flat = self._normalizer.normalize(torch.from_numpy(values)).reshape(-1)
        returns = None
        if self.conditions.returns_to_go:
            returns = self._returns_of(block, firsts, lengths)[: len(values)]
        pieces = _Pieces(
            episodes=block.episodes,
            offsets=firsts - block.first_row,
            first_starts=np.maximum(block.first_row - firsts, 0),
            end_starts=np.minimum(end - firsts, lengths),
        )
        return _Filled(flat, returns, pieces)

    def _returns_of(self, block: _Block, firsts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Returns-to-go of the rows of a block; reads the rewards up to the end of its last episode."""
        end = int(firsts[-1] + lengths[-1])
        rewards = self._reader.read_rows(block.shard, "reward", block.first_row, end - block.first_row)[:, 0]
        inside = firsts + lengths - np.maximum(firsts, block.first_row)
        terminated = self.dataset.episodes.column("terminated")[block.episodes]
        gaps = len(rewards) - inside.sum()
        if gaps:  # rows of episodes outside the dataset: an older snapshot of a compacted shard
            keep = np.concatenate(
                [np.arange(max(f, block.first_row), f + n) for f, n in zip(firsts, lengths, strict=True)]
            )
            returns = np.zeros(len(rewards), np.float32)
            kept = rewards[keep - block.first_row]
            returns[keep - block.first_row] = self._compute_returns(kept, inside, terminated)
            return returns
        return self._compute_returns(rewards, inside, terminated)

    def _compute_returns(self, rewards: np.ndarray, lengths: np.ndarray, terminated: np.ndarray) -> np.ndarray:
        conditions = self.conditions
        return compute_returns_to_go(rewards, lengths, conditions.discount, terminated, conditions.termination_penalty)

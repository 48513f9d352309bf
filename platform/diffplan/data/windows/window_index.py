"""The windows of a dataset: counts per episode, and the lookup from a number to an episode and a row."""

from __future__ import annotations

from typing import Literal

import numpy as np

from diffplan.data.format.dataset import TrajectoryDataset
from diffplan.errors import DataError

MAX_TABLE_BYTES = 32 * 2**20
"""Memory for cached cumulative counts of more than one horizon, in bytes; dropped ones are computed again."""
Padding = Literal["skip", "error", "short", "end", "terminal"]


class WindowIndex:
    """The windows of a dataset, numbered from 0 for each horizon.

    Args:
        dataset: the dataset.
        stride: environment steps between two steps of a window.
        padding: treatment of episodes that are shorter than a window. `skip`: they have no windows. `error`: they raise
            an error. `short`: they have one window, from their first row. `end`: every step of every episode begins a
            window, as with `use_padding` of Janner et al. Rows past the end repeat the last row and are masked.
            `terminal`: every step of a terminated episode begins a window, and rows from its length on stand for the
            observation after its last action; windows of other episodes end there at the latest.
        task_weights: share of each task in the drawn windows; None for those of the manifest, or in proportion to the
            windows if it has no tasks.
        among: mask of the episodes with windows, bool[episodes]; None for all.
        offsets: environment steps from the first row of a window to each of the others, ascending, in place of the
            stride; windows then have one row more than there are offsets.
        every: windows begin at the first row of an episode and at every so many rows after it.

    Raises:
        DataError: weights do not fit the tasks.
    """

    def __init__(
        self,
        dataset: TrajectoryDataset,
        stride: int,
        padding: Padding = "skip",
        task_weights: tuple[float, ...] | None = None,
        *,
        among: np.ndarray | None = None,
        offsets: tuple[int, ...] | None = None,
        every: int = 1,
    ) -> None:
        self.dataset = dataset
        self.stride = stride
        self.offsets = None if offsets is None else np.array([0, *offsets])
        self.padding, self.every = padding, every
        self._terminated = dataset.episodes.column("terminated").astype(bool) if padding == "terminal" else None
        self.lengths = dataset.episodes.length
        self.among = among
        self._cumulative: dict[int, np.ndarray] = {}
        tasks = dataset.manifest.tasks
        weights = tuple(task.weight for task in tasks) if task_weights is None else task_weights
        if len(weights) != len(tasks):
            names = ", ".join(task.name for task in tasks) or "none"
            raise DataError(f"task_weights: expected a weight for each task ({names}), got {len(weights)} weights")
        if weights and not (min(weights) >= 0 and 0 < sum(weights) < np.inf):  # false for NaN too
            raise DataError(f"task_weights: expected numbers >= 0 that are not all 0, got {weights}")
        self.task_shares = np.array(weights) / sum(weights) if weights else None

    def span(self, horizon: int) -> int:
        """Rows from the first to the last of a window."""
        return int(self.offsets_of(horizon)[-1]) + 1

    def offsets_of(self, horizon: int) -> np.ndarray:
        """Rows from the first of a window to each of its rows, int[horizon].

        Raises:
            ValueError: another horizon than that of the offsets.
        """
        if self.offsets is None:
            return np.arange(horizon) * self.stride
        if horizon == 1:  # a single row, whatever the offsets
            return self.offsets[:1]
        if horizon != len(self.offsets):
            raise ValueError(f"horizon: expected {len(self.offsets)}, that of the offsets, got {horizon}")
        return self.offsets

    @property
    def is_even(self) -> bool:
        """Whether all rows of a window are of its episode and evenly spaced."""
        return self.offsets is None and self.padding in ("skip", "error")

    def count(self, horizon: int) -> int:
        """Number of windows of a horizon.

        Raises:
            DataError: there are none, or an episode is too short and `padding` is `error`.
        """
        return int(self._counts(horizon)[-1])

    def _counts(self, horizon: int) -> np.ndarray:
        """Cumulative number of windows up to each episode, int64[episodes]."""
        if horizon not in self._cumulative:
            span = self.span(horizon)
            lengths = self.lengths if self.among is None else self.lengths[self.among]
            if self.padding == "error" and self.lengths.min() < span:
                index = int(self.lengths.argmin())
                raise DataError(
                    f"{self.dataset.uri}: episode {self.dataset.episodes[index].episode_index} has "
                    f"{self.lengths[index]} steps, expected at least {span} (horizon {horizon}, stride {self.stride}); "
                    "take a shorter horizon, or the padding skip, short or end"
                )
            cumulative = np.cumsum(self.starts_of(slice(None), horizon), dtype=np.int64)
            if cumulative[-1] == 0:
                raise DataError(
                    f"{self.dataset.uri}: a window of horizon {horizon} and {self.spacing} spans {span} steps, "
                    f"but the longest episode has {lengths.max(initial=0)}; take a shorter horizon or longer episodes, "
                    "or the padding short"
                )
            if len(self._cumulative) * self.lengths.size * 8 > MAX_TABLE_BYTES:
                self._cumulative.pop(next(iter(self._cumulative)))
            self._cumulative[horizon] = cumulative
        return self._cumulative[horizon]

    @property
    def spacing(self) -> str:
        """Its stride or offsets, for messages."""
        return f"stride {self.stride}" if self.offsets is None else f"offsets {self.offsets[1:].tolist()}"

    def num_starts(self, lengths: np.ndarray, horizon: int) -> np.ndarray:
        """Number of possible first rows of windows, in episodes of these lengths that did not terminate."""
        if self.padding == "end":
            return lengths
        if self.padding == "terminal":  # the observation after the last action is a row, but no first one
            return np.clip(lengths - self.span(horizon) + 2, 0, lengths)
        return np.maximum(lengths - self.span(horizon) + 1, 1 if self.padding == "short" else 0)

    def starts_of(self, episodes: np.ndarray | slice, horizon: int) -> np.ndarray:
        """Number of possible first rows of windows, in episodes by number; 0 in episodes that are left out."""
        lengths = self.lengths[episodes]
        starts = self.num_starts(lengths, horizon)
        if self._terminated is not None:
            starts = np.where(self._terminated[episodes], lengths, starts)
        starts = self.number_from(starts)
        return starts if self.among is None else np.where(self.among[episodes], starts, 0)

    def number_from(self, rows: np.ndarray) -> np.ndarray:
        """The number, in its episode, of the first window that begins at these rows or after them."""
        return rows if self.every == 1 else -(-rows // self.every)

    @property
    def num_bytes(self) -> int:
        """Memory of the cumulative counts, in bytes."""
        return sum(counts.nbytes for counts in self._cumulative.values())

    def num_skipped_episodes(self, horizon: int) -> int:
        """Number of episodes without a window of this horizon."""
        return int(np.sum(self.lengths < self.span(horizon))) if self.padding == "skip" else 0

    def draw(self, num_windows: int, horizon: int, generator: np.random.Generator) -> np.ndarray:
        """Numbers of windows, drawn with replacement: uniformly, or a task by weight and then uniformly within it."""
        if self.task_shares is None:
            return generator.integers(self.count(horizon), size=num_windows)
        cumulative = self._counts(horizon)
        edges = np.searchsorted(self.dataset.episodes.task, np.arange(len(self.task_shares) + 1))
        totals = np.concatenate([[0], cumulative])[edges]
        tasks = generator.choice(len(self.task_shares), size=num_windows, p=self.task_shares)
        sizes = totals[tasks + 1] - totals[tasks]
        if (sizes == 0).any():
            name = self.dataset.manifest.tasks[int(tasks[sizes == 0][0])].name
            raise DataError(
                f"{self.dataset.uri}: task {name!r} has a weight but no window of horizon {horizon}; give it the "
                "weight 0, or take a shorter horizon"
            )
        return totals[tasks] + generator.integers(sizes)

    def locate(self, windows: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        """Episode, and first row in the episode, of windows by number."""
        cumulative = self._counts(horizon)
        episodes = np.searchsorted(cumulative, windows, side="right")
        before = np.where(episodes > 0, cumulative[episodes - 1], 0)
        return episodes, (windows - before) * self.every

    def rows(self, episodes: np.ndarray, first_rows: np.ndarray, horizon: int) -> np.ndarray:
        """Rows of windows within their episodes, int64[windows, horizon]."""
        rows = first_rows[:, None] + self.offsets_of(horizon)
        if self.padding in ("short", "end", "terminal"):
            return np.minimum(rows, self.lengths[episodes][:, None] - 1)
        return rows

    def is_final(self, episodes: np.ndarray, first_rows: np.ndarray, horizon: int) -> np.ndarray | None:
        """Rows of windows that stand for the observation after the last action, bool[windows, horizon].

        None unless the padding is `terminal`.
        """
        if self._terminated is None:
            return None
        return first_rows[:, None] + self.offsets_of(horizon) >= self.lengths[episodes][:, None]

    def goes_on(self, episodes: np.ndarray, first_rows: np.ndarray, horizon: int) -> np.ndarray | None:
        """Rows of windows at which their episode has not terminated, bool[windows, horizon].

        None unless the padding is `terminal`.
        """
        final = self.is_final(episodes, first_rows, horizon)
        if final is None or self._terminated is None:
            return None
        return ~(final & self._terminated[episodes][:, None])

    def mask(self, episodes: np.ndarray, first_rows: np.ndarray, horizon: int) -> np.ndarray | None:
        """Mask of steps that are not padding, bool[windows, horizon]; None if there is no padding by construction."""
        if self.padding in ("skip", "error", "terminal"):
            return None
        return first_rows[:, None] + self.offsets_of(horizon) < self.lengths[episodes][:, None]

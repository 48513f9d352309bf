"""What is odd about a dataset, said before it costs a training."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from diffplan.config import WindowConfig
from diffplan.data.format.dataset import TrajectoryDataset
from diffplan.data.format.manifest import Column
from diffplan.data.format.shard_reader import ShardReader
from diffplan.data.format.statistics import ColumnStatistics
from diffplan.data.windows.normalization import find_coarse
from diffplan.data.windows.window_index import WindowIndex
from diffplan.terminal import shorten_number

OUTLIER_RATIO = 10.0
"""Distance of an extreme from the inner 99.2 % of values, in units of their range, from which it is an outlier."""
REPEATED_SHARE = 0.05
"""Share of rows that equal the row before, from which it is worth a line."""
WINDOWLESS_SHARE = 0.05
"""Share of steps in episodes without a window, from which it is worth a line."""
UNUSED_SHARE = 0.05
"""Share of the range between its bounds that an action has to use."""
MAX_ROWS = 200_000
"""Rows that are read to find repeated ones."""
PIECE_ROWS = 8192
"""Consecutive rows in each piece of a sample."""

MAX_NAMED = 4
"""Entries of a column that are named one by one."""


def find_oddities(dataset: TrajectoryDataset, windows: WindowConfig | None = None) -> Iterator[str]:
    """Warnings for training on a dataset, one line each.

    Args:
        dataset: the dataset.
        windows: the windows of the training, if they are known: episodes too short for one are counted.
    """
    columns = dataset.manifest.columns
    for column in columns if windows is None else columns[:2]:  # a training reads observations and actions
        yield from _check_values(column, dataset.statistics[column.name])
    yield from _check_bounds(dataset)
    yield from _check_copies(dataset)
    yield from _check_repeated_rows(dataset)
    if windows is not None:
        yield from _check_windows(dataset, windows)


def find_constant(statistics: ColumnStatistics) -> np.ndarray:
    """Entries with more than one value, all of them equal, bool[D]."""
    return (statistics.count > 1) & (statistics.minimum == statistics.maximum)


def _check_values(column: Column, statistics: ColumnStatistics) -> Iterator[str]:
    bad = np.flatnonzero(statistics.num_nonfinite)
    if bad.size:
        count = int(statistics.num_nonfinite.sum())
        yield f"{column.name}: {count:,} values in {_name_entries(column, bad)} are NaN or infinite"
    constant = np.flatnonzero(find_constant(statistics))
    if constant.size:
        value = f" ({shorten_number(float(statistics.minimum[constant[0]]))})" if constant.size == 1 else ""
        yield f"{column.name}: {_name_entries(column, constant)} never changes{value}"
    if column.name not in ("observation", "action"):
        return  # is not normalised
    low, high = statistics.quantiles[1], statistics.quantiles[-2]
    inner = high - low
    beyond = np.maximum(low - statistics.minimum, statistics.maximum - high)
    for d in np.flatnonzero((inner > 0) & (beyond > OUTLIER_RATIO * inner))[:MAX_NAMED]:
        least, most = statistics.minimum[d], statistics.maximum[d]
        numbers = [shorten_number(float(value)) for value in (low[d], high[d], least, most)]
        yield (
            f"{column.name}{f'[{d}]' if column.shape else ''}: outliers: 99 % of the values lie between {numbers[0]} "
            f"and {numbers[1]}, all between {numbers[2]} and {numbers[3]}; windows.normalization limits leaves "
            f"{inner[d] / (most - least):.2%} of the model's range to the 99 %: remove the outliers, or take quantile"
        )
    coarse = np.flatnonzero(find_coarse(statistics.minimum, statistics.maximum) & ~find_constant(statistics))
    if coarse.size:
        d = int(coarse[0])
        step = np.spacing(np.float32(min(max(abs(statistics.minimum[d]), abs(statistics.maximum[d])), 1e38)))
        yield (
            f"{column.name}: {_name_entries(column, coarse)} changes little, far from 0: from "
            f"{float(statistics.minimum[d])!r} to {float(statistics.maximum[d])!r}, where float32 has steps of "
            f"{step:.3g}; subtract a constant from it"
        )


def _check_bounds(dataset: TrajectoryDataset) -> Iterator[str]:
    manifest, statistics, column = dataset.manifest, dataset.statistics["action"], dataset.manifest.column("action")
    if not len(manifest.action_low) == len(manifest.action_high) == column.size:
        return
    for d, (low, high) in enumerate(zip(manifest.action_low, manifest.action_high, strict=True)):
        least, most = statistics.minimum[d], statistics.maximum[d]
        where = f"action: {_name_entries(column, np.array([d]))} goes from {shorten_number(least)} to "
        bounds = f"{_describe_bound(low)} to {_describe_bound(high)}"
        if (low is not None and least < low) or (high is not None and most > high):
            yield f"{where}{shorten_number(most)}, outside its bounds {bounds}"
        elif low is not None and high is not None and 0 < most - least < UNUSED_SHARE * (high - low):
            yield (
                f"{where}{shorten_number(most)}, {(most - least) / (high - low):.1%} of the range between its bounds "
                f"{bounds}; are they in the same units?"
            )


def _check_copies(dataset: TrajectoryDataset) -> Iterator[str]:
    first = dataset.episodes.find_copies()
    copies = np.flatnonzero(first != np.arange(len(first)))
    if copies.size:
        numbers = dataset.episodes.column("episode_index")
        yield (
            f"episodes: {copies.size:,} of {len(first):,} are copies of others (same length, return and last "
            f"observation), such as {numbers[copies[0]]} of {numbers[first[copies[0]]]}; copies are held out together"
        )


def _check_repeated_rows(dataset: TrajectoryDataset) -> Iterator[str]:
    runs = [
        (shard, start, min(PIECE_ROWS, first + count - start))
        for shard, first, count in dataset.iterate_runs()
        for start in range(first, first + count, PIECE_ROWS)
    ]
    every = max(-(-dataset.num_steps // MAX_ROWS), 1)
    reader = ShardReader(dataset.store, dataset.manifest)
    num_rows = num_equal = longest = 0
    for shard, start, count in runs[::every]:
        rows = reader.read_rows(shard, "observation", start, count)
        equal = (rows[1:] == rows[:-1]).all(axis=1)
        num_rows, num_equal = num_rows + len(equal), num_equal + int(equal.sum())
        edges = np.flatnonzero(np.diff(np.concatenate([[False], equal, [False]]).astype(np.int8)))
        longest = max(longest, int((edges[1::2] - edges[::2]).max(initial=0)) + 1)
    if num_rows and num_equal > REPEATED_SHARE * num_rows:
        sampled = " of a sample" if every > 1 else ""
        yield (
            f"observation: {num_equal / num_rows:.0%} of the rows{sampled} equal the row before, up to {longest:,} in "
            "a row: is a sensor stuck, or the end of episodes padded?"
        )


def _check_windows(dataset: TrajectoryDataset, windows: WindowConfig) -> Iterator[str]:
    index = WindowIndex(
        dataset,
        windows.stride,
        windows.padding,
        windows.task_weights,
        offsets=windows.offsets,
        every=windows.start_every,
    )
    horizon = windows.horizons[-1]
    lengths = dataset.episodes.length.astype(np.int64)
    without = index.starts_of(slice(None), horizon) == 0
    lost = int(lengths[without].sum())
    if lost > WINDOWLESS_SHARE * lengths.sum():
        yield (
            f"windows: {without.sum():,} of {len(without):,} episodes, with {lost / lengths.sum():.0%} of the steps, "
            f"are shorter than a window of horizon {horizon} and {index.spacing} ({index.span(horizon)} steps) "
            "and left out; take a shorter windows.max_horizon, or windows.padding end"
        )


def _name_entries(column: Column, entries: np.ndarray) -> str:
    if not column.shape:
        return "it"
    named = ", ".join(f"[{d}]" for d in entries[:MAX_NAMED])
    further = len(entries) - MAX_NAMED
    return f"{named} and {further:,} further entries" if further > 0 else named


def _describe_bound(bound: float | None) -> str:
    return "none" if bound is None else shorten_number(bound)

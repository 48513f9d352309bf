"""Columns and rows of a dataset as tables for a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np

from diffplan.data.format.commit_record import EpisodeRecord
from diffplan.data.format.dataset import TrajectoryDataset
from diffplan.data.format.shard_reader import ShardReader
from diffplan.data.format.statistics import NUM_QUANTILES, ColumnStatistics
from diffplan.data.maintenance.oddities import find_constant
from diffplan.errors import DataError
from diffplan.terminal import Characters, draw_table, shorten_number, shorten_text

PERCENTILES = (1, 25, 50, 75, 99)
MAX_ENTRIES = 32
"""Entries of a column that are listed by default."""
HORIZONS = (16, 32, 64, 128, 256, 512, 1024)
CELL = 7
"""Width of a number in the terminal, in characters."""


def describe_statistics(dataset: TrajectoryDataset, *, all_entries: bool = False) -> list[str]:
    """A block of lines for each column: its entries with moments, quantiles and warnings."""
    head = ["mean", "std", "min", *(f"{p}%" for p in PERCENTILES), "max"]
    lines = [f"{'':<8}" + "".join(f"{name:>{CELL + 1}}" for name in head)]
    for column in dataset.manifest.columns:
        statistics = dataset.statistics[column.name]
        shape = "x".join(map(str, column.shape)) or "1"
        lines.append(f"{column.name} ({column.dtype}, {shape} per step): {_describe_counts(statistics)}")
        shown = column.size if all_entries else min(column.size, MAX_ENTRIES)
        lines += [_describe_entry(statistics, d) for d in range(shown)]
        if shown < column.size:
            lines.append(_describe_whole(statistics))
            lines.append(f"  {shown} of {column.size:,} entries are listed; --all_entries lists all of them")
    if len(np.unique(dataset.episodes.unit)) > 1:
        lines.append("quantiles are approximate: they are merged from those of the units")
    return lines


def describe_horizons(dataset: TrajectoryDataset) -> list[str]:
    """A table of horizons: the episodes too short for each, their share of the steps, and the windows (stride 1)."""
    lengths = dataset.episodes.length.astype(np.int64)
    rows = []
    for horizon in HORIZONS:
        is_short = lengths < horizon
        lost = lengths[is_short].sum() / lengths.sum()
        windows = int(np.maximum(lengths - horizon + 1, 0).sum())
        rows.append([str(horizon), f"{is_short.sum():,}", f"{is_short.mean():.1%}", f"{lost:.1%}", f"{windows:,}"])
    return draw_table(["horizon", "shorter episodes", "share", "of the steps", "windows"], rows)


def find_episode(dataset: TrajectoryDataset, episode_index: int | None) -> int:
    """Index of an episode in `dataset.episodes`; the first one for None.

    Raises:
        DataError: there is no episode of this number.
    """
    if episode_index is None:
        return 0
    indices = dataset.episodes.column("episode_index")
    found = np.flatnonzero(indices == episode_index)
    if not found.size:
        raise DataError(
            f"{dataset.uri}: expected one of {len(indices):,} episodes from {indices.min()} to {indices.max()}, "
            f"got {episode_index}"
        )
    return int(found[0])


def describe_episode(dataset: TrajectoryDataset, number: int, width: int, characters: Characters) -> list[str]:
    """Lines of names and values from the commit of an episode, numbered as in `dataset.episodes`."""
    record = dataset.episodes[number]
    tasks = dataset.manifest.tasks
    ends = [name for name in ("terminated", "truncated") if getattr(record, name)]
    facts = [
        ("episode", f"{record.episode_index} of {record.length:,} steps, {' and '.join(ends) or 'cut off'}"),
        ("seed", "unknown" if record.seed is None else str(record.seed)),
        ("behaviour", record.behavior),
        ("return", f"{record.undiscounted_return:.4f}"),
        ("place", f"unit {dataset.episodes.unit[number]}, row {record.first_row} of "
                  f"{dataset.shards[dataset.episodes.shard[number]].name}"),
    ]  # fmt: skip
    if tasks:
        facts.append(("task", tasks[record.task].name))
    if record.options is not None:
        facts.append(("options", json.dumps(record.options)))
    facts.append(("final", ", ".join(f"{float(v):g}" for v in record.final_observation[: width // 2])))
    return [shorten_text(f"{name:<13}{value}", width, characters) for name, value in facts]


def draw_rows(dataset: TrajectoryDataset, number: int, num_rows: int, width: int, characters: Characters) -> list[str]:
    """The first rows of an episode, its last one, and the values after the last action, as a table.

    Columns that do not fit are named below the table.
    """
    record = dataset.episodes[number]
    first = min(num_rows, record.length)
    rows = [*range(first), *([record.length - 1] if first < record.length else [])]
    labels = [str(row) for row in rows] + [str(record.length)]
    ends = [""] * len(rows) + [""]
    ends[len(rows) - 1] = "+".join(n[:5] for n in ("terminated", "truncated") if getattr(record, n))
    blocks = [["", "t", *labels], *_draw_columns(dataset, number, record, rows)]
    blocks.insert(4, ["", "end", *ends])
    shown, hidden, used = [], [], 0
    for block in blocks:
        size = max(map(len, block)) + (2 if shown else 0)
        if used + size > width:
            hidden.append(block[0] or block[1])
            continue
        used += size
        shown.append([f"{cell:>{size}}" for cell in block])
    lines = ["".join(cells).rstrip() for cells in zip(*shown, strict=True)]
    if first < record.length - 1:
        lines.insert(2 + first, f"{characters.ellipsis:>{max(len(labels[-1]), 1)}}")
    if hidden:
        lines.append(f"not shown: {', '.join(hidden)}; a wider terminal shows more")
    return lines


def _draw_columns(
    dataset: TrajectoryDataset, number: int, record: EpisodeRecord, rows: list[int]
) -> Iterator[list[str]]:
    """A block per column of the dataset: its name, its entries, a line per row, and the value after the last action."""
    reader = ShardReader(dataset.store, dataset.manifest, verify=True)
    shard = dataset.shards[dataset.episodes.shard[number]]
    for column in dataset.manifest.columns:
        count = min(column.size, 16)
        pieces = [rows] if len(rows) < 2 or rows[-1] == rows[-2] + 1 else [rows[:-1], rows[-1:]]
        values = [
            reader.read_rows(shard, column.name, record.first_row + piece[0], len(piece))[:, :count]
            for piece in pieces
            if piece
        ]
        lines = [_join(row) for row in np.concatenate(values)]
        final = record.final_observation if column.name == "observation" else record.final_values.get(column.name)
        entries = [f"[{d}]" for d in range(count)] if column.shape else [""]
        more = f" of {column.size:,}" if count < column.size else ""
        lines.append("" if final is None else _join(np.array([float(v) for v in final[:count]])))
        header = "".join(f"{entry:>{CELL + 1}}" for entry in entries)[1:] if column.shape else ""
        yield [column.name, header + more, *(line + " " * len(more) for line in lines)]


def _join(values: np.ndarray) -> str:
    return " ".join(f"{shorten_number(value):>{CELL}}" for value in values)


def _describe_counts(statistics: ColumnStatistics) -> str:
    low, high = int(statistics.count.min()), int(statistics.count.max())
    return f"{high:,} finite values" if low == high else f"{low:,} to {high:,} finite values"


def _describe_entry(statistics: ColumnStatistics, d: int) -> str:
    table = statistics.quantiles[:, d]
    quantiles = [np.interp(p / 100, np.linspace(0, 1, NUM_QUANTILES), table) for p in PERCENTILES]
    values = [statistics.mean[d], statistics.std[d], statistics.minimum[d], *quantiles, statistics.maximum[d]]
    odd = []
    if statistics.num_nonfinite[d]:
        odd.append(f"{statistics.num_nonfinite[d]:,} not finite")
    if find_constant(statistics)[d]:
        odd.append("constant")
    numbers = "".join(f"{shorten_number(v):>{CELL + 1}}" for v in values) if statistics.count[d] else ""
    return f"  [{d}]".ljust(8) + numbers + (f"  {', '.join(odd)}" if odd else "")


def _describe_whole(statistics: ColumnStatistics) -> str:
    """All entries of a column together, without quantiles, which do not follow from those of single entries."""
    shares = statistics.count / max(int(statistics.count.sum()), 1)
    mean = float((shares * statistics.mean).sum())
    std = float(np.sqrt((shares * (statistics.std**2 + (statistics.mean - mean) ** 2)).sum()))
    values = [mean, std, statistics.minimum.min(), *[None] * len(PERCENTILES), statistics.maximum.max()]
    return "  all   " + "".join(f"{'' if v is None else shorten_number(v):>{CELL + 1}}" for v in values)

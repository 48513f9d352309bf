"""Summary of a dataset as text for a terminal: facts, tasks, histograms and maps of its positions."""

from __future__ import annotations

import json
import textwrap
from itertools import zip_longest
from typing import Any

import numpy as np

from diffplan.config import EnvConfig, config_from_dict
from diffplan.data.format.dataset import TrajectoryDataset, list_orphans, list_snapshots
from diffplan.data.format.shard_reader import ShardReader
from diffplan.data.format.statistics import LARGEST
from diffplan.data.windows.window_index import WindowIndex
from diffplan.tasks.registry import task_of
from diffplan.terminal import (
    Characters,
    describe_shades,
    draw_beside,
    draw_density,
    draw_histogram,
    draw_table,
    format_bytes,
    shorten_number,
)

MAX_MAP_ROWS = 1_000_000
"""Most rows for a map of positions."""
PIECE_ROWS = 8192
"""Consecutive rows in each piece of a sample."""
MAX_MAPS = 4
MAP_LINES = 24
HORIZONS = (32, 128)
"""Horizons for which the windows of tasks are counted."""


def describe_facts(dataset: TrajectoryDataset, width: int, *, with_hash: bool = False) -> list[str]:
    """Lines of names and values; with the hash of the content, the whole dataset is read."""
    episodes, collection, source = dataset.episodes, dataset.collection, dataset.manifest.source
    returns, lengths = episodes.column("undiscounted_return"), episodes.length
    arguments = f" {json.dumps(dataset.env.env_kwargs)}" if dataset.env.env_kwargs else ""
    orphans = list_orphans(dataset)
    ends = [f"{episodes.column(name).mean():.0%} {name}" for name in ("terminated", "truncated")]
    snapshots = ", ".join(map(str, _shorten_list(list_snapshots(dataset.store)))) or "none"
    facts = [
        ("environment", f"{dataset.env.env_id}{arguments}"),
        ("behaviour", collection.behavior if collection else _describe_source(source)),
        ("seed", str(collection.seed) if collection else "unknown"),
        ("uuid", dataset.manifest.dataset_uuid),
        ("columns", ", ".join(f"{c.name} {c.dtype}{list(c.shape) or ''}" for c in dataset.manifest.columns)),
        ("units", f"{len(np.unique(episodes.unit)):,}"),
        ("shards", f"{len(dataset.shards):,}"),
        ("steps", f"{dataset.num_steps:,}"),
        ("episodes", f"{len(episodes):,} of {_describe_range(lengths)} steps; {', '.join(ends)}"),
        ("return", f"mean {returns.mean():.2f}, from {returns.min():.2f} to {returns.max():.2f}"),
        ("size", format_bytes(dataset.num_bytes)),
        ("snapshots", snapshots + (f"; this is {dataset.snapshot}" if dataset.snapshot is not None else "")),
        (
            "orphans",
            f"{len(orphans):,} shards of killed writers or before compaction; see `diffplan data sweep`"
            if orphans
            else "none",
        ),
    ]
    if with_hash:
        facts.append(("content", dataset.content_hash()))
    lines = []
    for name, value in facts:
        pieces = textwrap.wrap(value, width - 13, break_long_words=False, break_on_hyphens=False)
        lines += [f"{title:<13}{piece}" for title, piece in zip_longest([name], pieces, fillvalue="")]
    return lines


def describe_tasks(dataset: TrajectoryDataset) -> list[str]:
    """A table of the tasks of a merged dataset; empty if it has none."""
    tasks, episodes = dataset.manifest.tasks, dataset.episodes
    if not tasks:
        return []
    index = WindowIndex(dataset, 1)
    starts = [index.num_starts(episodes.length, horizon).astype(np.int64) for horizon in HORIZONS]
    total = sum(task.weight for task in tasks)
    rows = []
    for number, task in enumerate(tasks):
        chosen = episodes.task == number
        counts = [task.num_units, chosen.sum(), episodes.length[chosen].sum(dtype=np.int64)]
        counts += [windows[chosen].sum() for windows in starts]
        rows.append([task.name, f"{task.weight:g}", f"{task.weight / total:.1%}", *(f"{count:,}" for count in counts)])
    header = ["task", "weight", "share", "units", "episodes", "steps", *(f"windows of {h}" for h in HORIZONS)]
    return draw_table(header, rows)


def draw_histograms(dataset: TrajectoryDataset, width: int, characters: Characters) -> list[str]:
    """Histograms of returns and of episode lengths, side by side."""
    half = width // 2
    returns = dataset.episodes.column("undiscounted_return")
    blocks = [
        [title, *draw_histogram(values[np.abs(values) < LARGEST], half - 3, 6, characters)]
        for title, values in (("returns", returns), ("episode lengths", dataset.episodes.length))
        if (np.abs(values) < LARGEST).any()
    ]
    return draw_beside(blocks, half)


def draw_coverage(dataset: TrajectoryDataset, width: int, characters: Characters) -> list[str]:
    """Maps of the positions, one for each environment; empty if observations are not vectors with positions."""
    tasks = dataset.manifest.tasks
    of_env: dict[str, list[int]] = {}
    for number, task in enumerate(tasks):
        of_env.setdefault(json.dumps(task.env, sort_keys=True), []).append(number)
    if len(of_env) < 2:
        return _draw_map(dataset, dataset.env, None, width, characters)
    lines = []
    for text, numbers in list(of_env.items())[:MAX_MAPS]:
        env = config_from_dict(EnvConfig, json.loads(text))
        title = f"{', '.join(tasks[number].name for number in numbers)} ({env.env_id})"
        lines += ["", title, *_draw_map(dataset, env, numbers, width, characters)]
    if len(of_env) > MAX_MAPS:
        lines += ["", f"{len(of_env) - MAX_MAPS} further environments are not drawn"]
    return lines[1:]


def sample_rows(
    dataset: TrajectoryDataset, name: str, max_rows: int, tasks: list[int] | None = None
) -> tuple[np.ndarray, int]:
    """Sample rows of a column, in pieces spread evenly over the shards.

    Args:
        dataset: the dataset.
        name: the column.
        max_rows: approximate number of rows to read.
        tasks: tasks to read; None for all.

    Returns:
        The rows, [rows, size], and how many there are in all.
    """
    if tasks is not None:
        dataset = _select(dataset, np.isin(dataset.episodes.task, tasks))
    pieces = [
        (shard, start, min(PIECE_ROWS, first + count - start))
        for shard, first, count in dataset.iterate_runs()
        for start in range(first, first + count, PIECE_ROWS)
    ]
    every = max(-(-dataset.num_steps // max_rows), 1)
    reader = ShardReader(dataset.store, dataset.manifest)
    rows = [reader.read_rows(shard, name, start, count) for shard, start, count in pieces[::every]]
    return np.concatenate(rows), dataset.num_steps


def _draw_map(
    dataset: TrajectoryDataset, env: EnvConfig, tasks: list[int] | None, width: int, characters: Characters
) -> list[str]:
    shape = dataset.manifest.column("observation").shape
    columns = list(env.position_columns[:2])
    if len(shape) != 1 or not columns or not all(0 <= c < shape[0] for c in columns):
        return []
    values, total = sample_rows(dataset, "observation", MAX_MAP_ROWS, tasks)
    names = "observation" + " and ".join(f"[{c}]" for c in columns)
    positions = values[:, columns].astype(np.float64)
    positions = positions[(np.abs(positions) < LARGEST).all(axis=1)]
    sampled = f", a sample of {len(values):,} of {total:,} steps" if len(values) < total else ""
    if not len(positions):
        return [f"coverage of {names}{sampled}: no finite numbers"]
    title = f"coverage of {names}{sampled}"
    if len(columns) == 1:
        return [title, *draw_histogram(positions[:, 0], width, 6, characters)]
    draw = task_of(env).text_map
    drawn = None if draw is None else draw(env, positions, width, characters)
    return [title, *drawn] if drawn is not None else _draw_plain(positions, columns, title, width, characters)


def _draw_plain(positions: np.ndarray, columns: list[int], title: str, width: int, characters: Characters) -> list[str]:
    """Positions in a frame with ranges: the first to the right, the second upwards."""
    across, lines = min(width - 2, 60), MAP_LINES - 4
    lows, highs = positions.min(axis=0), positions.max(axis=0)
    spans = np.maximum(highs - lows, 1e-9 * np.abs(highs))  # wide enough that the edges of bins differ
    spans[spans == 0] = 1.0
    (left, bottom), (right, top) = lows, lows + spans
    counts, *_ = np.histogram2d(
        positions[:, 1], positions[:, 0], bins=(lines, across), range=((bottom, top), (left, right))
    )
    ranges = [
        f"{way}: observation[{c}] from {shorten_number(low)} to {shorten_number(high)}"
        for way, c, low, high in zip(("to the right", "upwards"), columns, lows, highs, strict=True)
    ]
    return [title, *draw_density(counts[::-1], None, characters), *ranges, "   ".join(describe_shades(characters))]


def _select(dataset: TrajectoryDataset, chosen: np.ndarray) -> TrajectoryDataset:
    return TrajectoryDataset(
        dataset.store, dataset.manifest, dataset.shards, dataset.episodes.select(chosen), dataset.statistics
    )


def _describe_source(source: dict[str, Any]) -> str:
    if source.get("kind") == "merged":
        return "those of the tasks below"
    name = source.get("dataset_id") or source.get("file") or ""
    return f"imported from {source.get('kind', 'elsewhere')} {name}".rstrip()


def _describe_range(lengths: np.ndarray) -> str:
    low, high = int(lengths.min()), int(lengths.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _shorten_list(numbers: list[int]) -> list[int | str]:
    return [*numbers] if len(numbers) <= 8 else [*numbers[:3], "…", *numbers[-3:]]

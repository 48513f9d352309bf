"""`diffplan data …`: look at datasets, check them, and keep them in order."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterable
from typing import Annotated

from tyro.conf import Positional, arg

from diffplan.commands import parse, show
from diffplan.data_transfer import export_to, import_from
from diffplan.errors import ConfigError, DataError
from diffplan.progress import Progress, follow
from diffplan.suggestion import unknown_name
from diffplan.terminal import choose_characters, find_width, format_bytes


@dataclasses.dataclass(kw_only=True)
class InfoArguments:
    """Say what a dataset holds, with histograms and a map of its positions."""

    path: Annotated[Positional[str], arg(metavar="PATH")]
    """Directory or URL of the dataset."""
    snapshot: int | None = None
    """Number of a snapshot; everything committed so far if not given."""
    hash: bool = False
    """Show the hash of the content too, which reads everything."""


@dataclasses.dataclass(kw_only=True)
class StatsArguments:
    """Show statistics of every column, and what is odd about them."""

    path: Annotated[Positional[str], arg(metavar="PATH")]
    """Directory or URL of the dataset."""
    snapshot: int | None = None
    """Number of a snapshot; everything committed so far if not given."""
    all_entries: bool = False
    """List every entry of large columns, such as images."""


@dataclasses.dataclass(kw_only=True)
class HeadArguments:
    """Show an episode and its first rows."""

    path: Annotated[Positional[str], arg(metavar="PATH")]
    """Directory or URL of the dataset."""
    episode: int | None = None
    """Number of the episode (`episode_index`); the first one if not given."""
    rows: int = 10
    """Rows to show."""
    snapshot: int | None = None
    """Number of a snapshot; everything committed so far if not given."""


@dataclasses.dataclass(kw_only=True)
class VerifyArguments:
    """Check every byte of a dataset."""

    path: Annotated[Positional[str], arg(metavar="PATH")]
    """Directory or URL of the dataset."""
    drop_damaged: bool = False
    """Take damaged units out of the dataset, so that `collect --resume` or an import makes them again."""


@dataclasses.dataclass(kw_only=True)
class CompactArguments:
    """Join small shards into large ones; the content stays the same."""

    path: Annotated[Positional[str], arg(metavar="PATH")]
    """Directory or URL of the dataset."""
    target_mb: float = 128
    """Size that shards are filled up to, in MiB."""


@dataclasses.dataclass(kw_only=True)
class SweepArguments:
    """Delete what nothing names any more: left by killed writers, or replaced by compaction."""

    path: Annotated[Positional[str], arg(metavar="PATH")]
    """Directory or URL of the dataset."""
    older_than_hours: float = 24
    """Age of what is deleted; at least 1. A younger shard may be about to be committed."""
    dry_run: bool = False
    """Show what would be deleted, and delete nothing."""


@dataclasses.dataclass(kw_only=True)
class MergeArguments:
    """Merge datasets into one of several tasks."""

    out: Annotated[Positional[str], arg(metavar="OUT")]
    """Directory or URL of the merged dataset. A merge that was interrupted goes on when it is run again."""
    sources: Annotated[Positional[tuple[str, ...]], arg(metavar="NAME=PATH[@WEIGHT] ...")]
    """NAME=PATH or NAME=PATH@WEIGHT for each dataset, such as large=s3://bucket/large@2. The name ends at the first
    equals sign; a number behind the last @ is the weight of the task, 1 if there is none."""


def info(arguments: list[str]) -> None:
    """Say what a dataset holds, with histograms and a map."""
    parsed = parse(InfoArguments, arguments, "data info")
    from diffplan.data.dataset import open_dataset
    from diffplan.data_report import describe_facts, describe_tasks, draw_coverage, draw_histograms

    dataset = open_dataset(parsed.path, snapshot=parsed.snapshot)
    width, characters = find_width(), choose_characters(sys.stdout)
    _show_blocks(
        describe_facts(dataset, width, with_hash=parsed.hash),
        describe_tasks(dataset),
        draw_histograms(dataset, width, characters),
        draw_coverage(dataset, width, characters),
    )


def stats(arguments: list[str]) -> None:
    """Show statistics of every column, and what is odd about them."""
    parsed = parse(StatsArguments, arguments, "data stats")
    from diffplan.data.dataset import open_dataset
    from diffplan.data_tables import describe_horizons, describe_statistics, find_oddities

    dataset = open_dataset(parsed.path, snapshot=parsed.snapshot)
    _show_blocks(
        describe_statistics(dataset, all_entries=parsed.all_entries),
        describe_horizons(dataset),
        [f"warning: {line}" for line in find_oddities(dataset)],
    )


def head(arguments: list[str]) -> None:
    """Show an episode and its first rows."""
    parsed = parse(HeadArguments, arguments, "data head")
    if parsed.rows < 1:
        raise ConfigError(f"--rows: expected at least 1, got {parsed.rows}")
    from diffplan.data.dataset import open_dataset
    from diffplan.data_tables import describe_episode, draw_rows, find_episode

    dataset = open_dataset(parsed.path, snapshot=parsed.snapshot)
    number = find_episode(dataset, parsed.episode)
    width, characters = find_width(), choose_characters(sys.stdout)
    _show_blocks(
        describe_episode(dataset, number, width, characters),
        draw_rows(dataset, number, parsed.rows, width, characters),
    )


def verify(arguments: list[str]) -> None:
    """Check every byte of a dataset."""
    parsed = parse(VerifyArguments, arguments, "data verify")
    from diffplan.data.dataset import read_manifest
    from diffplan.data.opening import open_store
    from diffplan.data.verification import count_objects, drop_damage, find_damage

    store = open_store(parsed.path)
    read_manifest(store)  # so that no progress begins where there is no dataset
    damages = []
    num_objects = 0
    with Progress("verify", count_objects(store), "objects") as progress:
        for damage in find_damage(store):
            num_objects += 1
            progress.advance(1)
            if damage is not None:
                damages.append(damage)
    if not damages:
        show(f"{parsed.path}: {num_objects} shards, commits and snapshots, every checksum matches")
        return
    for damage in damages:
        show(f"damaged: {damage.error}")
    if not parsed.drop_damaged:
        raise DataError(
            f"{parsed.path}: {len(damages)} of {num_objects} objects are damaged; take them out with --drop_damaged"
        )
    units = drop_damage(store, damages)
    show(f"dropped {len(units)} units {list(units)}; make them again by `diffplan collect … --resume` or an import")


def compact(arguments: list[str]) -> None:
    """Join small shards into large ones; the content stays the same."""
    parsed = parse(CompactArguments, arguments, "data compact")
    if not 0 < parsed.target_mb < math.inf:
        raise ConfigError(f"--target_mb: expected a positive number, got {parsed.target_mb:g}")
    from diffplan.data.compaction import compact as compact_store
    from diffplan.data.opening import open_store

    store = open_store(parsed.path)
    with follow("compact", "shards") as report:
        before, after = compact_store(store, target_bytes=max(int(parsed.target_mb * 2**20), 1), on_progress=report)
    if before == after:
        show(f"{parsed.path}: nothing to join up to {parsed.target_mb:g} MiB; shards: {before:,}")
        return
    show(f"{parsed.path}: shards: {after:,} instead of {before:,}; `diffplan data sweep` deletes the old ones later")


def sweep(arguments: list[str]) -> None:
    """Delete what nothing names any more."""
    parsed = parse(SweepArguments, arguments, "data sweep")
    if not math.isfinite(parsed.older_than_hours):
        raise ConfigError(f"--older_than_hours: expected a number of hours, got {parsed.older_than_hours:g}")
    from diffplan.data.opening import open_store
    from diffplan.data.sweeping import find_sweepable
    from diffplan.data.sweeping import sweep as sweep_store

    store = open_store(parsed.path)
    seconds = parsed.older_than_hours * 3600
    found = find_sweepable(store, seconds) if parsed.dry_run else sweep_store(store, seconds)
    verb = "would delete" if parsed.dry_run else "deleted"
    for stored in found:
        show(f"{verb} {stored.name} ({format_bytes(stored.num_bytes)})")
    size = format_bytes(sum(stored.num_bytes for stored in found))
    show(f"{parsed.path}: {verb} {len(found):,} objects older than {parsed.older_than_hours:g} h, {size}")


def merge(arguments: list[str]) -> None:
    """Merge datasets into one of several tasks."""
    parsed = parse(MergeArguments, arguments, "data merge")
    from diffplan.data.dataset import open_dataset
    from diffplan.data.merging import Source
    from diffplan.data.merging import merge as merge_datasets

    named = [parse_source(text) for text in parsed.sources]
    sources = [Source(open_dataset(path), name, weight) for name, path, weight in named]
    with follow("merge", "units") as report:
        dataset = merge_datasets(sources, parsed.out, on_progress=report)
    show(
        f"{parsed.out}: {dataset.num_steps:,} steps in {len(dataset.episodes):,} episodes of {len(sources)} tasks, "
        f"{format_bytes(dataset.num_bytes)}"
    )


def parse_source(text: str) -> tuple[str, str, float]:
    """Name, path and weight of `NAME=PATH` or `NAME=PATH@WEIGHT`; raises `ConfigError` for anything else."""
    name, _, path = text.partition("=")
    if not path or not name or "/" in name:
        raise ConfigError(f"sources: expected NAME=PATH or NAME=PATH@WEIGHT, such as large=data/large@2, got {text!r}")
    start, at, number = path.rpartition("@")
    try:
        return (name, start, float(number)) if at and start else (name, path, 1.0)
    except ValueError:  # the @ is part of the path
        return name, path, 1.0


ACTIONS: dict[str, Callable[[list[str]], None]] = {
    "info": info,
    "stats": stats,
    "head": head,
    "verify": verify,
    "import": import_from,
    "export": export_to,
    "compact": compact,
    "sweep": sweep,
    "merge": merge,
}


def run(arguments: list[str]) -> None:
    """Run one action with its arguments; raises `ConfigError` for an unknown one, `DataError` for paths that fail."""
    if not arguments:
        raise ConfigError(f"data: expected one of the actions {', '.join(ACTIONS)}; got nothing")
    if arguments[0] in ("-h", "--help"):
        lines = [f"  {name:<9}{(action.__doc__ or '').strip()}" for name, action in ACTIONS.items()]
        show(
            "usage: diffplan data ACTION [arguments]\n\n" + "\n".join(lines) + "\n\n"
            "`diffplan data ACTION --help` lists the arguments of an action. Datasets are directories or URLs."
        )
        return
    if arguments[0] not in ACTIONS:
        raise ConfigError(unknown_name("data", arguments[0], ACTIONS))
    try:
        ACTIONS[arguments[0]](arguments[1:])
    except BrokenPipeError:
        raise
    except OSError as error:  # a path that cannot be read or written, whichever part of the work met it
        where = error.filename or arguments[0]
        raise DataError(
            f"{where}: {(error.strerror or str(error)).lower()}; check the path, its permissions and the disk"
        ) from None


def _show_blocks(*blocks: Iterable[str]) -> None:
    """Print blocks of lines with an empty line between them."""
    show("\n\n".join("\n".join(lines) for block in blocks if (lines := list(block))))

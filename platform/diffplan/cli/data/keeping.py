"""`diffplan data verify|compact|sweep|merge`: check and maintain datasets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from diffplan.cli.command import Arguments, Call, Command
from diffplan.cli.output import show
from diffplan.errors import ConfigError, DataError
from diffplan.runs.progress import Progress, follow
from diffplan.terminal import format_bytes


@dataclass(kw_only=True)
class VerifyArguments(Arguments):
    """Check every byte of a dataset."""

    path: Annotated[Positional[str], arg(metavar="PATH")]
    """Directory or URL of the dataset."""
    drop_damaged: bool = False
    """Remove damaged units from the dataset, so that `collect --resume` or an import makes them again."""


@dataclass(kw_only=True)
class CompactArguments(Arguments):
    """Join small shards into large ones; the content stays the same."""

    path: Annotated[Positional[str], arg(metavar="PATH")]
    """Directory or URL of the dataset."""
    target_mb: float = 128
    """Size of the joined shards, in MiB."""


@dataclass(kw_only=True)
class SweepArguments(Arguments):
    """Delete unreferenced files: those left by killed writers, or replaced by compaction."""

    path: Annotated[Positional[str], arg(metavar="PATH")]
    """Directory or URL of the dataset."""
    older_than_hours: float = 24
    """Least age of deleted files; at least 1, because a young shard may be about to be committed."""
    dry_run: bool = False
    """Show what would be deleted, and delete nothing."""


@dataclass(kw_only=True)
class MergeArguments(Arguments):
    """Merge datasets into one of several tasks."""

    out: Annotated[Positional[str], arg(metavar="OUT")]
    """Directory or URL of the merged dataset. If repeated, an interrupted merge continues."""
    sources: Annotated[Positional[tuple[str, ...]], arg(metavar="NAME=PATH[@WEIGHT] ...")]
    """NAME=PATH or NAME=PATH@WEIGHT for each dataset, such as large=s3://bucket/large@2. The name ends at the first
    equals sign; a number after the last @ is the weight of the task, 1 by default."""


def verify(call: Call[VerifyArguments]) -> None:
    """Check every byte of a dataset."""
    arguments = call.arguments
    from diffplan.data.format.dataset import read_manifest
    from diffplan.data.maintenance.verification import count_objects, drop_damage, find_damage
    from diffplan.storage.opening import open_store

    store = open_store(arguments.path)
    read_manifest(store)  # raises before a progress line is shown, if there is no dataset
    damages = []
    num_objects = 0
    with Progress("verify", count_objects(store), "objects") as progress:
        for damage in find_damage(store):
            num_objects += 1
            progress.advance(1)
            if damage is not None:
                damages.append(damage)
    if not damages:
        show(f"{arguments.path}: {num_objects} shards, commits and snapshots, every checksum matches")
        return
    for damage in damages:
        show(f"damaged: {damage.error}")
    if not arguments.drop_damaged:
        raise DataError(
            f"{arguments.path}: {len(damages)} of {num_objects} objects are damaged; take them out with --drop_damaged"
        )
    units = drop_damage(store, damages)
    show(f"dropped {len(units)} units {list(units)}; make them again by `diffplan collect … --resume` or an import")


def compact(call: Call[CompactArguments]) -> None:
    """Join small shards into large ones; the content stays the same."""
    arguments = call.arguments
    if not 0 < arguments.target_mb < math.inf:
        raise ConfigError(f"--target_mb: expected a positive number, got {arguments.target_mb:g}")
    from diffplan.data.maintenance.compaction import compact as compact_store
    from diffplan.storage.opening import open_store

    store = open_store(arguments.path)
    with follow("compact", "shards") as report:
        before, after = compact_store(store, target_bytes=max(int(arguments.target_mb * 2**20), 1), on_progress=report)
    if before == after:
        show(f"{arguments.path}: nothing to join up to {arguments.target_mb:g} MiB; shards: {before:,}")
        return
    show(f"{arguments.path}: shards: {after:,} instead of {before:,}; `diffplan data sweep` deletes the old ones later")


def sweep(call: Call[SweepArguments]) -> None:
    """Delete unreferenced files."""
    arguments = call.arguments
    if not math.isfinite(arguments.older_than_hours):
        raise ConfigError(f"--older_than_hours: expected a number of hours, got {arguments.older_than_hours:g}")
    from diffplan.data.maintenance.sweeping import find_sweepable
    from diffplan.data.maintenance.sweeping import sweep as sweep_store
    from diffplan.storage.opening import open_store

    store = open_store(arguments.path)
    seconds = arguments.older_than_hours * 3600
    found = find_sweepable(store, seconds) if arguments.dry_run else sweep_store(store, seconds)
    verb = "would delete" if arguments.dry_run else "deleted"
    for stored in found:
        show(f"{verb} {stored.name} ({format_bytes(stored.num_bytes)})")
    size = format_bytes(sum(stored.num_bytes for stored in found))
    show(f"{arguments.path}: {verb} {len(found):,} objects older than {arguments.older_than_hours:g} h, {size}")


def merge(call: Call[MergeArguments]) -> None:
    """Merge datasets into one of several tasks."""
    arguments = call.arguments
    from diffplan.data.format.dataset import open_dataset
    from diffplan.data.maintenance.merging import Source
    from diffplan.data.maintenance.merging import merge as merge_datasets

    named = [parse_source(text) for text in arguments.sources]
    sources = [Source(open_dataset(path), name, weight) for name, path, weight in named]
    with follow("merge", "units") as report:
        dataset = merge_datasets(sources, arguments.out, on_progress=report)
    show(
        f"{arguments.out}: {dataset.num_steps:,} steps in {len(dataset.episodes):,} episodes of {len(sources)} tasks, "
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


VERIFY = Command(arguments=VerifyArguments, run=verify)
COMPACT = Command(arguments=CompactArguments, run=compact)
SWEEP = Command(arguments=SweepArguments, run=sweep)
MERGE = Command(arguments=MergeArguments, run=merge)

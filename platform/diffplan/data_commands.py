"""`diffplan data …`: look at datasets, check them, and move them in and out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from tyro.conf import Positional

from diffplan.commands import format_bytes, parse, show
from diffplan.errors import ConfigError, DataError
from diffplan.suggestion import unknown_name


@dataclasses.dataclass(kw_only=True)
class InfoArguments:
    """Say what a dataset holds."""

    path: Positional[str]
    """Directory or URL of the dataset."""
    snapshot: int | None = None
    """Number of a snapshot; everything committed so far if not given."""


@dataclasses.dataclass(kw_only=True)
class VerifyArguments:
    """Check every byte of a dataset."""

    path: Positional[str]
    """Directory or URL of the dataset."""
    drop_damaged: bool = False
    """Take damaged units out of the dataset, so that `collect --resume` or an import makes them again."""


def info(arguments: list[str]) -> None:
    """`diffplan data info`."""
    parsed = parse(InfoArguments, arguments, "data info")
    from diffplan.data.dataset import list_orphans, list_snapshots, open_dataset

    dataset = open_dataset(parsed.path, snapshot=parsed.snapshot)
    returns = dataset.episodes.column("undiscounted_return")
    lengths = dataset.episodes.length
    collection = dataset.collection
    rows: list[tuple[str, Any]] = [
        ("environment", dataset.env.env_id),
        ("behavior", collection.behavior if collection else f"not collected here ({dataset.manifest.source['kind']})"),
        ("seed", collection.seed if collection else "unknown"),
        ("uuid", dataset.manifest.dataset_uuid),
        ("units", len(set(dataset.episodes.unit.tolist()))),
        ("shards", len(dataset.shards)),
        ("steps", f"{dataset.num_steps:,}"),
        ("episodes", f"{len(dataset.episodes):,} of {min(lengths)} to {max(lengths)} steps"),
        ("return", f"mean {returns.mean():.2f}, from {returns.min():.2f} to {returns.max():.2f}"),
        ("size", format_bytes(dataset.num_bytes)),
        ("snapshots", ", ".join(map(str, list_snapshots(dataset.store))) or "none"),
        ("orphans", f"{len(list_orphans(dataset))} shards without a commit"),
        ("content", dataset.content_hash()),
    ]
    show("\n".join(f"{name:<12}{value}" for name, value in rows))
    show(f"\n{'column':<16}{'mean':>12}{'std':>12}{'min':>12}{'max':>12}")
    for name, statistics in dataset.statistics.items():
        for d in range(len(statistics.mean)):
            label = f"{name}[{d}]" if len(statistics.mean) > 1 else name
            show(
                f"{label:<16}{statistics.mean[d]:>12.4f}{statistics.std[d]:>12.4f}"
                f"{statistics.minimum[d]:>12.4f}{statistics.maximum[d]:>12.4f}"
            )


def verify(arguments: list[str]) -> None:
    """`diffplan data verify`."""
    parsed = parse(VerifyArguments, arguments, "data verify")
    from diffplan.data.store import open_store
    from diffplan.data.verification import count_objects, drop_damage, find_damage
    from diffplan.progress import Progress

    store = open_store(parsed.path)
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


ACTIONS: dict[str, Callable[[list[str]], None]] = {"info": info, "verify": verify}


def run(arguments: list[str]) -> None:
    """Run one action with its arguments; raises `ConfigError` for an unknown one."""
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = [f"  {name:<8}{(action.__doc__ or '').strip()}" for name, action in ACTIONS.items()]
        if arguments:
            show("usage: diffplan data ACTION …\n\n" + "\n".join(lines))
            return
        raise ConfigError(f"data: expected one of the actions {', '.join(ACTIONS)}; got nothing")
    if arguments[0] not in ACTIONS:
        raise ConfigError(unknown_name("data", arguments[0], ACTIONS))
    ACTIONS[arguments[0]](arguments[1:])

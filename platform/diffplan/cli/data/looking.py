"""`diffplan data info|stats|head`: look at a dataset."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from diffplan.cli.command import Arguments, Call, Command
from diffplan.cli.output import show_blocks
from diffplan.errors import ConfigError
from diffplan.terminal import choose_characters, find_width


@dataclass(kw_only=True)
class InfoArguments(Arguments):
    """Describe a dataset, with histograms and a map of its positions."""

    path: Annotated[Positional[str], arg(metavar="PATH")]
    """Directory or URL of the dataset."""
    snapshot: int | None = None
    """Number of a snapshot; everything committed so far if not given."""
    hash: bool = False
    """Show the hash of the content too, which reads the whole dataset."""


@dataclass(kw_only=True)
class StatsArguments(Arguments):
    """Show statistics of every column, and warnings about them."""

    path: Annotated[Positional[str], arg(metavar="PATH")]
    """Directory or URL of the dataset."""
    snapshot: int | None = None
    """Number of a snapshot; everything committed so far if not given."""
    all_entries: bool = False
    """List every entry of large columns, such as images."""


@dataclass(kw_only=True)
class HeadArguments(Arguments):
    """Show an episode and its first rows."""

    path: Annotated[Positional[str], arg(metavar="PATH")]
    """Directory or URL of the dataset."""
    episode: int | None = None
    """Number of the episode (`episode_index`); the first one if not given."""
    rows: int = 10
    """Rows to show."""
    snapshot: int | None = None
    """Number of a snapshot; everything committed so far if not given."""


def info(call: Call[InfoArguments]) -> None:
    """Describe a dataset, with histograms and a map."""
    arguments = call.arguments
    from diffplan.cli.data.report import describe_facts, describe_tasks, draw_coverage, draw_histograms
    from diffplan.data.format.dataset import open_dataset
    from diffplan.data.maintenance.oddities import find_oddities

    dataset = open_dataset(arguments.path, snapshot=arguments.snapshot)
    width, characters = find_width(), choose_characters(sys.stdout)
    show_blocks(
        describe_facts(dataset, width, with_hash=arguments.hash),
        describe_tasks(dataset),
        draw_histograms(dataset, width, characters),
        draw_coverage(dataset, width, characters),
        [f"warning: {line}" for line in find_oddities(dataset)],
    )


def stats(call: Call[StatsArguments]) -> None:
    """Show statistics of every column, and warnings about them."""
    arguments = call.arguments
    from diffplan.cli.data.tables import describe_horizons, describe_statistics
    from diffplan.data.format.dataset import open_dataset
    from diffplan.data.maintenance.oddities import find_oddities

    dataset = open_dataset(arguments.path, snapshot=arguments.snapshot)
    show_blocks(
        describe_statistics(dataset, all_entries=arguments.all_entries),
        describe_horizons(dataset),
        [f"warning: {line}" for line in find_oddities(dataset)],
    )


def head(call: Call[HeadArguments]) -> None:
    """Show an episode and its first rows."""
    arguments = call.arguments
    if arguments.rows < 1:
        raise ConfigError(f"--rows: expected at least 1, got {arguments.rows}")
    from diffplan.cli.data.tables import describe_episode, draw_rows, find_episode
    from diffplan.data.format.dataset import open_dataset

    dataset = open_dataset(arguments.path, snapshot=arguments.snapshot)
    number = find_episode(dataset, arguments.episode)
    width, characters = find_width(), choose_characters(sys.stdout)
    show_blocks(
        describe_episode(dataset, number, width, characters),
        draw_rows(dataset, number, arguments.rows, width, characters),
    )


INFO = Command(arguments=InfoArguments, run=info)
STATS = Command(arguments=StatsArguments, run=stats)
HEAD = Command(arguments=HeadArguments, run=head)

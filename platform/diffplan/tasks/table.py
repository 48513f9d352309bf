"""The benchmark table of a task: what is asked of it, and what its rows are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

ROW_KEYS = (
    "protocol",
    "task",
    "method",
    "score_mean",
    "score_stderr",
    "score_ci95",
    "success_rate",
    "metrics",
    "plan_seconds_mean",
    "training_seconds",
    "episodes",
    "seeds",
    "settings",
    "command",
)
"""What every row of a table has; None where it has no meaning."""


@dataclass(frozen=True, kw_only=True)
class TableRequest:
    """A table to make.

    Attributes:
        out: directory of the work; what is there is not done again.
        tasks: which of the table's tasks; all if empty.
        methods: which of its methods; all if empty.
        seeds: training seeds, counted from 0.
        episodes: evaluation episodes of each protocol; None for the table's own number.
        seed: of the evaluation episodes.
        smoke: the smallest size at which every stage is real.
        datasets: directory with a dataset for each task, in place of collecting.
        models: directory with a calibrated checkpoint for each task, in place of training.
        command: what makes all rows; a row records it with its own task and method.
    """

    out: Path
    tasks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    seeds: int = 1
    episodes: int | None = None
    seed: int = 0
    smoke: bool = False
    datasets: Path | None = None
    models: Path | None = None
    command: str = ""


class Table(Protocol):
    """A family's benchmark."""

    tasks: tuple[str, ...]
    """Names of its tasks."""
    methods: tuple[str, ...]
    """Names of its methods."""

    def make(self, request: TableRequest, announce: Callable[[str], None]) -> list[dict[str, Any]]:
        """Do what is still to be done, and return the rows, each with the keys of `ROW_KEYS`.

        Args:
            request: what to make.
            announce: called with a line when a stage begins.

        Raises:
            ConfigError: an unknown task or method, or the work there was begun with another request.
        """
        ...

    def write(self, rows: Sequence[dict[str, Any]], directory: Path, command: str) -> Path:
        """Write the rows as JSON, a page of text and a picture into a directory; returns the path of the page."""
        ...

    def package(self, request: TableRequest, directory: Path) -> dict[str, int]:
        """Write the planners of the table as checkpoints to give away, and return the bytes of each by its name."""
        ...

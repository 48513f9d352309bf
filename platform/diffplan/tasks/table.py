"""The benchmark table of a task: the request for it, and its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from diffplan.errors import ConfigError, unknown_name

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
"""Keys of every row of a table; the value is None if it has no meaning there."""


@dataclass(frozen=True, kw_only=True)
class TableRequest:
    """A table to make.

    Attributes:
        out: directory of the work; finished stages in it are not run again.
        tasks: tasks of the table to include; all if empty.
        methods: methods to include; all if empty.
        seeds: training seeds, counted from 0.
        episodes: evaluation episodes of each protocol; None for the table's own number.
        seed: of the evaluation episodes.
        smoke: the smallest size at which every stage really runs.
        datasets: directory with a dataset for each task; None to collect.
        models: directory with a calibrated checkpoint for each task; None to train.
        command: command that makes all rows; each row records it with its own task and method.
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


def check_request(request: TableRequest, tasks: Sequence[str], methods: Sequence[str]) -> None:
    """Raise `ConfigError` for a task or a method that the table does not have, or a number below 1."""
    for name, values, known in (("tasks", request.tasks, tasks), ("methods", request.methods, methods)):
        for value in values:
            if value not in known:
                raise ConfigError(unknown_name(f"--{name}", value, known))
    for name, value in (("seeds", request.seeds), ("episodes", request.episodes)):
        if value is not None and value < 1:
            raise ConfigError(f"--{name}: expected at least 1, got {value}")


class Table(Protocol):
    """A family's benchmark."""

    tasks: tuple[str, ...]
    """Names of its tasks."""
    methods: tuple[str, ...]
    """Names of its methods."""

    def make(self, request: TableRequest, announce: Callable[[str], None]) -> list[dict[str, Any]]:
        """Run the stages that are not finished, and return the rows, each with the keys of `ROW_KEYS`.

        Args:
            request: what to make.
            announce: called with a line when a stage begins.

        Raises:
            ConfigError: an unknown task or method, or the directory holds work of another request.
        """
        ...

    def write(self, rows: Sequence[dict[str, Any]], directory: Path, command: str) -> Path:
        """Write the rows as JSON, a page of text and a picture into a directory; returns the path of the page."""
        ...

    def package(self, request: TableRequest, directory: Path) -> dict[str, int]:
        """Write the planners of the table as checkpoints to give away, and return the bytes of each by its name."""
        ...

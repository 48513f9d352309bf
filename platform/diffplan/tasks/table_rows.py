"""Rows of benchmark tables: from evaluations, averaged over training seeds, and with rows of earlier sessions kept."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from diffplan.errors import DataError
from diffplan.files import parse_json, read_file
from diffplan.seeding import Stream, make_generator
from diffplan.tasks.table import ROW_KEYS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_RESAMPLES = 4_000
_OF_SUMMARY = (
    *("score_mean", "score_stderr", "score_ci95", "success_rate"),
    *("metrics", "plan_seconds_mean", "episodes"),
)
"""Keys that a row copies from the summary of an evaluation."""


def make_row(
    summary: dict[str, Any], *, task: str, method: str, training_seconds: float | None, command: str
) -> dict[str, Any]:
    """The row of one evaluation, with the keys of `diffplan.tasks.table.ROW_KEYS`.

    Args:
        summary: of the evaluation.
        task: task of the table.
        method: method of the table.
        training_seconds: seconds of its training; None if there was none, or not known.
        command: command that made it.
    """
    # Paths on this machine are of no use elsewhere.
    settings = {k: v for k, v in summary["config"].items() if k not in ("checkpoint", "policy", "training")}
    found = {name: summary[name] for name in _OF_SUMMARY}
    row = {
        "protocol": summary["protocol"],
        "task": task,
        "method": method,
        **found,
        "training_seconds": training_seconds,
        "seeds": 1,
        "settings": settings,
        "command": command,
    }
    return {name: row[name] for name in ROW_KEYS}


def average_rows(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row of the same method with several training seeds.

    With two or more seeds, the standard error is that of the mean over seeds and the interval is Student's t. With one
    seed, both are over its episodes.

    Args:
        rows: of `make_row`, one for each seed.
    """
    if len(rows) == 1:
        return dict(rows[0])
    scores = np.array([row["score_mean"] for row in rows])
    error = float(scores.std(ddof=1) / np.sqrt(len(scores)))
    mean, reach = float(scores.mean()), float(stats.t.ppf(0.975, len(scores) - 1)) * error
    names = ("success_rate", "plan_seconds_mean", "training_seconds")
    return {
        **rows[0],
        "score_mean": mean,
        "score_stderr": error,
        "score_ci95": [mean - reach, mean + reach],
        **{name: _average([row[name] for row in rows]) for name in names},
        "metrics": {name: _average([row["metrics"][name] for row in rows]) for name in rows[0]["metrics"]},
        "seeds": len(rows),
    }


def _average(values: Sequence[float | None]) -> float | None:
    """The mean; None if a value is not known."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def resample_means(scores: Sequence[Sequence[float]], seed: int = 0) -> np.ndarray:
    """Bootstrap of the mean score of a method: training seeds are drawn anew, and then the episodes of each.

    Args:
        scores: of the episodes of each training seed.
        seed: of the draws; two methods that are compared take different ones.

    Returns:
        Means, float64[NUM_RESAMPLES].
    """
    generator = make_generator(seed, Stream.EVALUATION)
    drawn = generator.integers(len(scores), size=(NUM_RESAMPLES, len(scores)))
    means = np.empty(drawn.shape)
    for i, values in enumerate(np.asarray(row, np.float64) for row in scores):
        at = drawn == i
        means[at] = values[generator.integers(len(values), size=(at.sum(), len(values)))].mean(axis=1)
    return means.mean(axis=1)


def find_interval(means: np.ndarray) -> list[float]:
    """The central 95 % of resampled means."""
    low, high = np.quantile(means, (0.025, 0.975))
    return [float(low), float(high)]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of an earlier run of a table; none if there is no file.

    Raises:
        DataError: something else is there.
    """
    if not path.exists():
        return []
    try:
        rows = parse_json(read_file(path))["rows"]
        return [{**dict.fromkeys(ROW_KEYS), **row} for row in rows]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: expected the rows of a table, got something else ({error}); move it away") from None


def write_table(
    rows: Sequence[dict[str, Any]],
    path: Path,
    format_page: Callable[..., str],
    draw: Callable[[Sequence[dict[str, Any]]], Figure],
) -> Path:
    """Write the rows as JSON, a page and a figure. Rows that are there are kept where there are no new ones.

    Args:
        rows: of the table.
        path: of the files, without their endings.
        format_page: makes the page, from the rows and `machine`, its description.
        draw: draws the figure.

    Returns:
        The path of the page.

    Raises:
        DataError: something else than rows is there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = merge_rows(read_rows(path.with_suffix(".json")), rows)
    machine = f"{os.cpu_count()} CPU cores, {platform.machine()}"
    path.with_suffix(".json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    page = path.with_suffix(".md")
    page.write_text(format_page(rows, machine=machine))
    draw(rows).savefig(path.with_suffix(".png"), dpi=110)
    return page


def merge_rows(earlier: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of an earlier run of a table with those of a later one, which replace rows of the same cell."""

    def cell(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["protocol"], row["task"], row["method"]

    return list({cell(row): row for row in (*earlier, *rows)}.values())

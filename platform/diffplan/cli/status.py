"""`diffplan status`: the progress of a run and what it has cost."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from diffplan.cli.command import Arguments, Call, Command
from diffplan.cli.output import show
from diffplan.terminal import draw_table, format_duration, shorten_number

if TYPE_CHECKING:
    from diffplan.runs.stages import StageStatus

HEADER = ("stage", "state", "done", "", "rate", "left", "CPU-hours", "GPU-hours", "attempts")


@dataclass(kw_only=True)
class StatusArguments(Arguments):
    """Show the progress and the cost of a run."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """Directory or URL of a pipeline run, a dataset, a training run, a search, an evaluation or a benchmark table."""
    json: bool = False
    """Write JSON."""


def run(call: Call[StatusArguments]) -> None:
    """Print the status of the run."""
    from diffplan.cli.run_status import read_status
    from diffplan.runs.stages import to_record

    where = call.arguments.run
    stages = read_status(where)
    show(json.dumps(to_record(where, stages), indent=2) if call.arguments.json else "\n".join(describe_status(stages)))


def describe_status(stages: list[StageStatus]) -> list[str]:
    """Lines of a table of stages, and of notes on some of them."""
    rows = [_describe_stage(stage) for stage in stages]
    if len(stages) > 1:
        costs = [_describe_cost(sum(hours or 0.0 for hours in each)) for each in _costs(stages)]
        rows.append(["total", "", "", "", "", "", *costs, ""])
    lines = draw_table(HEADER, rows, left=2)
    for stage in stages:
        if stage.values:
            values = ", ".join(
                f"{name.replace('_', ' ')} {shorten_number(value)}" for name, value in stage.values.items()
            )
            lines.append(f"{stage.stage}: {values}")
        if stage.error:
            lines.append(f"{stage.stage} failed: {stage.error}")
    if any(stage.state in ("interrupted", "failed") for stage in stages):
        lines.append("go on: the same command with --resume")
    return lines


def _costs(stages: list[StageStatus]) -> tuple[list[float | None], list[float | None]]:
    return [stage.cpu_hours for stage in stages], [stage.gpu_hours for stage in stages]


def _describe_stage(stage: StageStatus) -> list[str]:
    done = "?" if stage.done is None else f"{stage.done:,}"
    total = "?" if stage.total is None else f"{stage.total:,}"
    share = f"{stage.done / stage.total:.0%}" if stage.done is not None and stage.total else ""
    return [
        stage.stage,
        stage.state,
        f"{done} / {total} {stage.unit}",
        share,
        "" if stage.rate is None else f"{shorten_number(stage.rate)}/s",
        "" if stage.seconds_left is None else format_duration(stage.seconds_left),
        _describe_cost(stage.cpu_hours),
        _describe_cost(stage.gpu_hours),
        str(stage.attempts) if stage.attempts else "-",
    ]


def _describe_cost(hours: float | None) -> str:
    return "-" if hours is None else f"{hours:,.3f}"


COMMAND = Command(arguments=StatusArguments, run=run)

"""`diffplan report`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from diffplan.cli.command import Arguments, Call, Command
from diffplan.cli.output import show


@dataclass(kw_only=True)
class ReportArguments(Arguments):
    """Write the report page of a run."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """Directory or URL of the run."""
    trust: bool = False
    """Allow the settings of the run to name functions and URLs."""


def run(call: Call[ReportArguments]) -> None:
    """Write the page, and print its path."""
    from diffplan.report.page import write_report

    show(f"report: {write_report(call.arguments.run, trust=call.arguments.trust)}")


COMMAND = Command(arguments=ReportArguments, run=run)

"""`diffplan new`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from diffplan.cli.command import Arguments, Call, Command
from diffplan.cli.output import show


@dataclass(kw_only=True)
class NewArguments(Arguments):
    """Create a package for your own environment.

    It contains an environment, its task and their tests. It works unchanged; adapt it to your needs.
    """

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """Name of the package, its task and its environment: a Python name in lower case, such as my_robot."""
    out: Path | None = None
    """New directory; NAME if not given."""


def run(call: Call[NewArguments]) -> None:
    """Write the package, and print the next steps."""
    from diffplan.cli.scaffold import make_package

    name = call.arguments.name
    directory = make_package(name, call.arguments.out)
    show(f"package: {directory}")
    show(f"try it: cd {directory} && diffplan pipeline {name}.task:TASK/{name}-smoke --out runs/smoke")


COMMAND = Command(arguments=NewArguments, run=run)

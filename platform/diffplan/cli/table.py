"""`diffplan table`: the benchmark table of a family of environments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from diffplan.cli.command import Arguments, Call, Command
from diffplan.cli.experiments import require_counts
from diffplan.cli.output import show
from diffplan.errors import ConfigError

if TYPE_CHECKING:
    from diffplan.tasks.table import Table


@dataclass(kw_only=True)
class TableArguments(Arguments):
    """Make the benchmark table of a family of environments.

    Runs every stage, for the planner and its baselines. If repeated, the command continues where it stopped.
    """

    family: Annotated[Positional[str], arg(metavar="FAMILY")]
    """The family: a task that has a table, by its name or import path."""
    out: Path
    """Working directory."""
    results: Path | None = None
    """Directory for the table as JSON, text and picture; the working directory if not given."""
    tasks: tuple[str, ...] = ()
    """Tasks of the table; all if none are given."""
    methods: tuple[str, ...] = ()
    """Methods of the table; all if none are given."""
    seeds: int = 1
    """Training seeds, counted from 0; scores of trained methods are means over them."""
    episodes: int | None = None
    """Evaluation episodes of each protocol; the table's own number if not given."""
    seed: int = 0
    """Seed of the evaluation episodes."""
    smoke: bool = False
    """Run every stage at its smallest size."""
    datasets: Path | None = None
    """Directory with a dataset for each task, DIR/TASK, instead of collecting."""
    models: Path | None = None
    """Directory with a calibrated checkpoint for each task, DIR/TASK, instead of training."""
    packages: Path | None = None
    """Directory to write the planners to, as small checkpoints."""


def check(call: Call[TableArguments]) -> None:
    """Raise `ConfigError` for a family without a table, or for numbers out of range."""
    find_table(call.arguments.family)
    require_counts(call.arguments, "seeds", "episodes")


def find_table(family: str) -> Table:
    """The table of a family; raises `ConfigError` if it has none."""
    from diffplan.tasks.registry import find_task, list_tasks

    make = find_task(family).table
    if make is None:
        others = ", ".join(name for name in list_tasks() if find_task(name).table is not None)
        raise ConfigError(f"table: expected a family that has a table ({others}), got {family}")
    return make()


def describe_request(arguments: TableArguments) -> str:
    """The command that makes the same rows elsewhere, without paths of this machine, tasks and methods."""
    given = {name: getattr(arguments, name) for name in ("seeds", "episodes", "seed")}
    sizes = [f"--{name} {value}" for name, value in given.items() if value is not None]
    smoke = ["--smoke"] if arguments.smoke else []
    return " ".join(["diffplan table", arguments.family, *smoke, *sizes])


def run(call: Call[TableArguments]) -> None:
    """Make the table, and print it."""
    from diffplan.tasks.table import TableRequest
    from diffplan.terminal import format_bytes

    arguments = call.arguments
    request = TableRequest(
        out=arguments.out,
        tasks=arguments.tasks,
        methods=arguments.methods,
        seeds=arguments.seeds,
        episodes=arguments.episodes,
        seed=arguments.seed,
        smoke=arguments.smoke,
        datasets=arguments.datasets,
        models=arguments.models,
        command=describe_request(arguments),
    )
    table = find_table(arguments.family)
    rows = table.make(request, show)
    page = table.write(rows, arguments.results or arguments.out, call.line)
    show(page.read_text())
    if arguments.packages is not None:
        for name, num_bytes in table.package(request, arguments.packages).items():
            show(f"{arguments.packages / name}: {format_bytes(num_bytes)}")
    show(f"table: {page}")


COMMAND = Command(
    arguments=TableArguments,
    run=run,
    check=check,
    places=("out", "results", "datasets", "models", "packages"),
)

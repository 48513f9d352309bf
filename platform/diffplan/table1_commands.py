"""`diffplan table1`: the paper's Table 1 from nothing, or from what is there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from diffplan.commands import parse, show
from diffplan.errors import ConfigError


@dataclasses.dataclass(kw_only=True)
class Table1Arguments:
    """Collect, train, search, evaluate and compare: Table 1 of Janner et al. 2022.

    Given again, the command goes on where it was.
    """

    out: Path = Path("runs/table1")
    """Directory of the work."""
    results: Path | None = None
    """Directory of table1.md, table1.json and table1.png; that of the work if not given."""
    mazes: tuple[str, ...] = ()
    """Of umaze, medium and large; all if none are given."""
    methods: tuple[str, ...] = ()
    """Of diffuser, waypoint, mppi, mppi_sparse, iql, cql, bc, behavior and random; all if none are given."""
    episodes: int | None = None
    """Evaluation episodes of each protocol; 100 if not given."""
    seed: int = 0
    """Seed of the evaluation episodes."""
    datasets: Path | None = None
    """Directory with a dataset for each maze, such as DIR/umaze, in place of collecting."""
    models: Path | None = None
    """Directory with a calibrated checkpoint for each maze, in place of training."""
    packages: Path | None = None
    """Directory to write the planners to as small checkpoints, such as DIR/maze2d-umaze."""
    smoke: bool = False
    """The smallest size at which every stage is real."""


def parse_table1(arguments: list[str]) -> Table1Arguments:
    """The arguments of `diffplan table1`."""
    parsed = parse(Table1Arguments, arguments, "table1")
    if parsed.episodes is not None and parsed.episodes < 1:
        raise ConfigError(f"episodes: expected at least 1, got {parsed.episodes}")
    return parsed


def table1(arguments: list[str]) -> None:
    """`diffplan table1`."""
    parsed = parse_table1(arguments)
    from diffplan.tasks.maze2d.table import (
        METHODS,
        SMOKE,
        Table1,
        Table1Size,
        make_table1,
        package_planners,
        write_table1,
    )
    from diffplan.tasks.maze2d.table_page import MAZES
    from diffplan.terminal import format_bytes

    size = SMOKE if parsed.smoke else Table1Size()
    table = Table1(
        out=parsed.out.absolute(),
        mazes=parsed.mazes or (("umaze",) if parsed.smoke else tuple(MAZES)),
        methods=parsed.methods or METHODS,
        size=size if parsed.episodes is None else dataclasses.replace(size, episodes=parsed.episodes),
        seed=parsed.seed,
        datasets=parsed.datasets,
        models=parsed.models,
        preset_suffix="-smoke" if parsed.smoke else "",
    )
    rows = make_table1(table, announce=lambda line: show(line, flush=True))
    results = parsed.results or parsed.out
    write_table1(rows, results, " ".join(["python jobs/table1.py", *arguments]))
    show((results / "table1.md").read_text())
    if parsed.packages is not None:
        for name, num_bytes in package_planners(table, parsed.packages).items():
            show(f"{parsed.packages / name}: {format_bytes(num_bytes)}")
    show(f"table: {results / 'table1.md'}")

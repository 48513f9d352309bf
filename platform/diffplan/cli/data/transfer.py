"""`diffplan data import` and `diffplan data export`: datasets from and to other formats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import Positional, arg

from diffplan.cli.command import Arguments, Call, Command, advanced
from diffplan.cli.output import plain_warnings, show
from diffplan.cli.overrides import override_section
from diffplan.config import EnvConfig
from diffplan.errors import ConfigError, unknown_name
from diffplan.runs.progress import follow
from diffplan.terminal import format_bytes


@dataclass(kw_only=True)
class ImportArguments(Arguments):
    """Make a dataset from one of another format.

    If repeated, an interrupted import continues.
    """

    kind: Annotated[Positional[str], arg(metavar="KIND")]
    """minari, or d4rl for an HDF5 file of D4RL."""
    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """Directory or id of the Minari dataset, or the file; nothing is downloaded."""
    out: str
    """Directory or URL of the new dataset."""
    preset: str | None = None
    """Take the environment from this preset or task, changed by --env.*. d4rl requires an environment; for minari it
    replaces the one in the dataset."""
    frame: str | None = None
    """minari: a change of coordinates of a task, from the data to its environments."""
    skip_infos: bool = False
    """minari: leave infos out."""
    split_on: str | None = None
    """d4rl: an array whose changes begin a new episode, such as infos/goal."""
    float32: bool = advanced(False)
    """Store float64 as float32."""
    episodes_per_unit: int = advanced(64)
    """Episodes in one unit, which becomes one shard."""


@dataclass(kw_only=True)
class ExportArguments(Arguments):
    """Write a dataset in another format."""

    kind: Annotated[Positional[str], arg(metavar="KIND")]
    """minari or parquet."""
    path: Annotated[Positional[str], arg(metavar="PATH")]
    """Directory or URL of the dataset."""
    out: str | None = None
    """parquet: the new directory. minari: directory of all Minari datasets, Minari's own if not given."""
    id: str | None = None
    """minari: id of the new dataset, NAMESPACE/NAME-vN."""
    layout: str | None = None
    """parquet: plain (all columns; the default) or rllib (transitions for RLlib's offline algorithms)."""
    snapshot: int | None = None
    """Number of a snapshot; everything committed so far if not given."""


def import_from(call: Call[ImportArguments]) -> None:
    """Make a dataset from one of another format."""
    from diffplan.tasks.registry import find_frame, get_preset

    arguments = call.arguments
    _check_kind("import", arguments.kind, {"minari": ("frame", "skip_infos"), "d4rl": ("split_on",)}, arguments)
    start = EnvConfig(env_id="") if arguments.preset is None else get_preset(arguments.preset).env
    env = override_section(start, call.overrides, "env")
    if not env.env_id and call.overrides:
        raise ConfigError("--env.env_id: expected a Gymnasium id, or a preset with --preset, got neither")
    env = env if env.env_id else None
    if arguments.frame is not None:
        find_frame(arguments.frame)
    if arguments.kind == "d4rl" and env is None:
        raise ConfigError("import d4rl: the file does not name its environment; name it by --preset or --env.env_id")
    with plain_warnings(), follow("import", "episodes") as report:
        common: dict[str, Any] = {
            "float32": arguments.float32,
            "episodes_per_unit": arguments.episodes_per_unit,
            "on_progress": report,
        }
        if arguments.kind == "minari":
            from diffplan.data.exchange.minari import import_minari

            dataset = import_minari(
                arguments.source,
                arguments.out,
                env=env,
                frame=arguments.frame,
                skip_infos=arguments.skip_infos,
                **common,
            )
        else:
            assert env is not None
            from diffplan.data.exchange.d4rl import import_d4rl

            dataset = import_d4rl(arguments.source, arguments.out, env=env, split_on=arguments.split_on, **common)
    size = format_bytes(dataset.num_bytes)
    show(f"{arguments.out}: {dataset.num_steps:,} steps in {len(dataset.episodes):,} episodes, {size}")


def export_to(call: Call[ExportArguments]) -> None:
    """Write a dataset in another format."""
    arguments = call.arguments
    _check_kind("export", arguments.kind, {"minari": ("id",), "parquet": ("layout",)}, arguments)
    if arguments.kind == "minari" and arguments.id is None:
        raise ConfigError("export minari: expected --id NAMESPACE/NAME-vN, such as my_namespace/name-v0, got none")
    if arguments.kind == "parquet" and arguments.out is None:
        raise ConfigError("export parquet: expected --out DIR, the directory to make, got none")
    if arguments.out is not None and "://" in arguments.out:  # as a path it would be a local directory named s3:
        raise ConfigError(
            f"--out: expected a local directory, got {arguments.out}; export to a disk and copy from there"
        )
    layout = arguments.layout or "plain"
    if layout not in ("plain", "rllib"):
        raise ConfigError(unknown_name("--layout", layout, ("plain", "rllib")))
    from diffplan.data.format.dataset import open_dataset

    dataset = open_dataset(arguments.path, snapshot=arguments.snapshot)
    if arguments.id is not None:
        from diffplan.data.exchange.minari_export import export_minari

        with follow("export", "episodes") as report:
            made = export_minari(dataset, arguments.id, root=arguments.out, on_progress=report)
    else:
        from diffplan.data.exchange.parquet import export_parquet

        assert arguments.out is not None
        done = 0
        with follow("export", "steps") as report:

            def count(num_steps: int) -> None:
                nonlocal done
                done += num_steps
                report(done, dataset.num_steps)

            made = export_parquet(dataset, arguments.out, layout=layout, on_progress=count)
    show(f"{made}: {dataset.num_steps:,} steps in {len(dataset.episodes):,} episodes")


def _check_kind(action: str, kind: str, own: dict[str, tuple[str, ...]], arguments: Any) -> None:
    """Raise `ConfigError` for an unknown kind, or for flags of another kind."""
    if kind not in own:
        raise ConfigError(unknown_name(action, kind, own))
    for other, names in own.items():
        for name in names:
            if other != kind and getattr(arguments, name):
                raise ConfigError(f"--{name}: expected only for {other}, got {kind}; leave it out")


IMPORT = Command(arguments=ImportArguments, run=import_from, sections={"env": EnvConfig})
EXPORT = Command(arguments=ExportArguments, run=export_to)

"""`diffplan data import` and `diffplan data export`: datasets from and to other formats."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import warnings
from collections.abc import Iterator
from typing import Annotated, Any

from tyro.conf import Positional, arg

from diffplan.commands import parse, show
from diffplan.config import EnvConfig
from diffplan.errors import ConfigError
from diffplan.progress import follow
from diffplan.suggestion import unknown_name
from diffplan.tasks.registry import find_frame, get_preset
from diffplan.terminal import format_bytes

NO_ENV = EnvConfig(env_id="")


@dataclasses.dataclass(kw_only=True)
class ImportArguments:
    """Make a dataset from one of another format.

    An import that was interrupted goes on when it is run again.
    """

    kind: Annotated[Positional[str], arg(metavar="KIND")]
    """minari, or d4rl for an HDF5 file of D4RL."""
    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """Directory or id of the Minari dataset, or the file; nothing is downloaded."""
    out: str
    """Directory or URL of the new dataset."""
    preset: str | None = None
    """Take the environment from this preset."""
    env: EnvConfig = NO_ENV
    """The environment, where it is not a preset's; needed for d4rl, in place of the one named there for minari."""
    frame: str | None = None
    """minari: a change of coordinates that a task knows, so that its environments and the data agree."""
    skip_infos: bool = False
    """minari: leave infos out."""
    split_on: str | None = None
    """d4rl: an array that begins an episode wherever it changes, such as infos/goal."""
    float32: bool = False
    """Store float64 as float32."""
    episodes_per_unit: int = 64
    """Episodes of one unit, which becomes one shard."""


@dataclasses.dataclass(kw_only=True)
class ExportArguments:
    """Write a dataset in another format."""

    kind: Annotated[Positional[str], arg(metavar="KIND")]
    """minari or parquet."""
    path: Annotated[Positional[str], arg(metavar="PATH")]
    """Directory or URL of the dataset."""
    out: str | None = None
    """parquet: the directory to make. minari: directory of all Minari datasets, Minari's own if not given."""
    dataset_id: Annotated[str | None, arg(name="id")] = None
    """minari: id of the new dataset, NAMESPACE/NAME-vN."""
    layout: str | None = None
    """parquet: plain (all columns; the default) or rllib (transitions for RLlib's offline algorithms)."""
    snapshot: int | None = None
    """Number of a snapshot; everything committed so far if not given."""


def import_from(arguments: list[str]) -> None:
    """Make a dataset from one of another format (minari, d4rl)."""
    parsed = parse(ImportArguments, arguments, "data import")
    if parsed.preset is not None:  # whose environment the other flags then change
        parsed = parse(ImportArguments, arguments, "data import", {"env": get_preset(parsed.preset).env})
    _check_kind("import", parsed.kind, {"minari": ("frame", "skip_infos"), "d4rl": ("split_on",)}, parsed)
    if not parsed.env.env_id and parsed.env != NO_ENV:
        raise ConfigError("--env.env_id: expected a Gymnasium id, or a preset with --preset, got neither")
    env = parsed.env if parsed.env.env_id else None
    if parsed.frame is not None:
        find_frame(parsed.frame)
    if parsed.kind == "d4rl" and env is None:
        raise ConfigError("import d4rl: the file does not name its environment; name it by --preset or --env.env_id")
    with _plain_warnings(), follow("import", "episodes") as report:
        common: dict[str, Any] = {
            "float32": parsed.float32,
            "episodes_per_unit": parsed.episodes_per_unit,
            "on_progress": report,
        }
        if parsed.kind == "minari":
            from diffplan.data.exchange.minari import import_minari

            dataset = import_minari(
                parsed.source, parsed.out, env=env, frame=parsed.frame, skip_infos=parsed.skip_infos, **common
            )
        else:
            assert env is not None
            from diffplan.data.exchange.d4rl import import_d4rl

            dataset = import_d4rl(parsed.source, parsed.out, env=env, split_on=parsed.split_on, **common)
    size = format_bytes(dataset.num_bytes)
    show(f"{parsed.out}: {dataset.num_steps:,} steps in {len(dataset.episodes):,} episodes, {size}")


def export_to(arguments: list[str]) -> None:
    """Write a dataset in another format (minari, parquet)."""
    parsed = parse(ExportArguments, arguments, "data export")
    _check_kind("export", parsed.kind, {"minari": ("dataset_id",), "parquet": ("layout",)}, parsed)
    if parsed.kind == "minari" and parsed.dataset_id is None:
        raise ConfigError("export minari: expected --id NAMESPACE/NAME-vN, such as my_namespace/name-v0, got none")
    if parsed.kind == "parquet" and parsed.out is None:
        raise ConfigError("export parquet: expected --out DIR, the directory to make, got none")
    if parsed.out is not None and "://" in parsed.out:  # a path would take it for a local directory named s3:
        raise ConfigError(f"--out: expected a local directory, got {parsed.out}; export to a disk and copy from there")
    layout = parsed.layout or "plain"
    if layout not in ("plain", "rllib"):
        raise ConfigError(unknown_name("--layout", layout, ("plain", "rllib")))
    from diffplan.data.dataset import open_dataset

    dataset = open_dataset(parsed.path, snapshot=parsed.snapshot)
    if parsed.dataset_id is not None:
        from diffplan.data.exchange.minari_export import export_minari

        with follow("export", "episodes") as report:
            made = export_minari(dataset, parsed.dataset_id, root=parsed.out, on_progress=report)
    else:
        from diffplan.data.exchange.parquet import export_parquet

        assert parsed.out is not None
        done = 0
        with follow("export", "steps") as report:

            def count(num_steps: int) -> None:
                nonlocal done
                done += num_steps
                report(done, dataset.num_steps)

            made = export_parquet(dataset, parsed.out, layout=layout, on_progress=count)
    show(f"{made}: {dataset.num_steps:,} steps in {len(dataset.episodes):,} episodes")


def _check_kind(action: str, kind: str, own: dict[str, tuple[str, ...]], parsed: Any) -> None:
    """Raise `ConfigError` for an unknown kind, or flags that belong to another one."""
    if kind not in own:
        raise ConfigError(unknown_name(action, kind, own))
    for other, names in own.items():
        for name in names:
            if other != kind and getattr(parsed, name):
                flag = "id" if name == "dataset_id" else name
                raise ConfigError(f"--{flag}: expected only for {other}, got {kind}; leave it out")


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings as a line each, without the place in the source that they come from."""

    def show_line(message: Warning | str, category: type[Warning], *place: object, **more: object) -> None:
        sys.stderr.write(f"warning: {message}\n")

    with warnings.catch_warnings():
        warnings.showwarning = show_line
        yield

"""Read the datasets that the arguments name, stage by stage, and print a line of JSON for each."""

import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2] / folder) for folder in ("platform", "envs")]

from diffplan.cli import main  # noqa: E402
from diffplan.data.format.dataset import open_dataset  # noqa: E402
from diffplan.data.format.shard_reader import ShardReader  # noqa: E402
from diffplan.data.maintenance.verification import find_damage  # noqa: E402
from diffplan.storage.opening import open_store  # noqa: E402


def touch(root: Path) -> float:
    dataset = open_dataset(root)
    total = 0.0
    for shard in dataset.shards:
        for column in dataset.manifest.columns:
            total += float(dataset.column(shard, column.name).sum())
    return total


def read_verified(root: Path) -> float:
    dataset = open_dataset(root)
    reader = ShardReader(dataset.store, dataset.manifest, verify=True)
    names = tuple(column.name for column in dataset.manifest.columns)
    return sum(float(reader.read_joined(shard, names, 0, shard.num_rows).sum()) for shard in dataset.shards)


def require_no_damage(root: Path) -> None:
    damages = [damage for damage in find_damage(open_store(root)) if damage is not None]
    if damages:
        assert len({str(damage.error) for damage in damages}) == len(damages), "the same damage twice"
        raise damages[0].error


def outcome_of(read: Callable[[Path], Any], root: Path) -> list[str] | None:
    try:
        read(root)
    except BaseException as error:
        return [type(error).__name__, str(error)]
    return None


def run_command(*arguments: str) -> dict[str, Any]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(list(arguments))
        except BaseException as error:
            code = repr(error)
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def read(root: Path) -> dict[str, Any]:
    return {
        "open": outcome_of(open_dataset, root),
        "touch": outcome_of(touch, root),
        "verified_read": outcome_of(read_verified, root),
        "find_damage": outcome_of(require_no_damage, root),
        "info": run_command("data", "info", str(root)),
        "verify": run_command("data", "verify", str(root)),
        "drop": run_command("data", "verify", "--drop_damaged", str(root)),
        "verify_again": run_command("data", "verify", str(root)),
        "open_again": outcome_of(touch, root),
    }


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(json.dumps(read(Path(argument))), flush=True)

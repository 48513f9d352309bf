"""Maintenance of datasets in processes of their own, which tests may kill at any moment.

Processes are forked from a server that has no threads, with everything imported already, so that one starts within
milliseconds.
"""

import multiprocessing
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path

from walks import make_units

from diffplan.data.format.dataset import open_dataset, read_manifest
from diffplan.data.format.writer import write_unit
from diffplan.data.maintenance.compaction import compact
from diffplan.data.maintenance.merging import Source, merge
from diffplan.storage.opening import open_store

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["struck_processes"])


def compact_once(started: Connection, root: Path, target_bytes: int) -> None:
    """Compact a dataset, after word that it begins."""
    started.send(None)
    compact(open_store(root), target_bytes=target_bytes)


def merge_once(started: Connection, roots: dict[str, Path], out: Path) -> None:
    """Merge datasets by name, after word that it begins."""
    sources = [Source(open_dataset(root), name, index + 1.0) for index, (name, root) in enumerate(roots.items())]
    started.send(None)
    merge(sources, out)


def compact_until(stop: Event, root: Path, target_bytes: int) -> None:
    """Compact a dataset again and again."""
    while not stop.is_set():
        compact(open_store(root), target_bytes=target_bytes)


def write_one_by_one(root: Path, lengths_of_units: list[list[int]], units: range) -> None:
    """Commit the walks of some units with a little rest between."""
    manifest = read_manifest(open_store(root))
    episodes = make_units(lengths_of_units)
    for unit in units:
        write_unit(root, manifest, unit, episodes[unit])
        time.sleep(0.01)


def run_struck(function: Callable[..., None], *args: object, after_seconds: float | None) -> tuple[bool, float]:
    """Run a function that says when it begins, and kill it some time after.

    Returns:
        Whether it was killed, and for how many seconds it ran.
    """
    receive, send = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=function, args=(send, *args))
    process.start()
    send.close()
    receive.recv()
    since = time.monotonic()
    process.join(after_seconds)
    seconds = time.monotonic() - since
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode != 0, seconds


def draw_times(num_times: int, longest_seconds: float, seed: int) -> list[float]:
    """Times to strike at, one at random in each of equal parts, so that few already strike early and late."""
    generator = random.Random(seed)
    times = [longest_seconds * (part + generator.random()) / num_times for part in range(num_times)]
    generator.shuffle(times)
    return times

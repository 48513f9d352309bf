"""Where the coordinator of collection and evaluation saturates, and what each unit costs it.

The code that is measured is that of the platform: `run_units`, `write_unit`, `collect`. What is left
out is what the actors do between two units. A thousand actors do not fit on one machine as processes; here a few real
actors answer as many calls at a time, each after a while in which it only waits, so that the driver has as many calls
in flight, results to take and units to give as it would have with a thousand.

* `driver`: units that take no time, as fast as the driver can give them, by the number of actors. CPU time of the
  driver's process is counted, all threads of Ray in it included: what one core of a driver could do.
* `paced`: actors whose units take a while. The driver keeps up where the rate is that of the actors.
* `commits`: empty units, written and committed for real: by one process, and by two actors under `run_units`.
* `growth`: what a dataset of many units costs its coordinator: listing commits, and the snapshot at the end.
* `scaling`: `collect` with one actor and with two.

    python benchmarks/coordinator.py
"""

import asyncio
import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are imported

import ray
from harness import get_command, make_parser, parse_arguments, write_results

from diffplan.behaviors.collection import UnitCollector, make_manifest
from diffplan.cluster.collect.coordinator import collect
from diffplan.cluster.runtime import ray_session
from diffplan.cluster.units import run_units
from diffplan.config import CollectionConfig, EnvConfig
from diffplan.data.format.commit import list_committed_units
from diffplan.data.format.dataset import pin_commits
from diffplan.data.format.manifest import Manifest
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.storage.opening import open_store
from diffplan.storage.store import Store
from diffplan.tasks.registry import get_preset
from diffplan.types import Episode

ENV = EnvConfig(env_id="diffplan/Maze2D-UMaze-v1")
NO_OP = CollectionConfig(behavior="random", episode_steps=1, episodes_per_unit=1, num_steps=1)
"""The smallest unit: one episode of one step."""
NUM_HOSTS = 2
SECTIONS = ("scaling", "driver", "paced", "commits", "growth")


@ray.remote(num_cpus=0, max_concurrency=10_000)  # pyright: ignore[reportCallIssue, reportArgumentType]
class Host:
    """Answers for many actors: each call waits on its own."""

    def __init__(self, unit_seconds: float) -> None:
        self._unit_seconds = unit_seconds

    async def run(self, unit: int) -> int:
        """Wait."""
        if self._unit_seconds:
            await asyncio.sleep(self._unit_seconds)
        return unit


@ray.remote(num_cpus=1)
class NoOpActor:
    """Writes and commits a unit of one step, as the actors of a collection do theirs."""

    def __init__(self, store: Store, manifest: Manifest, episode: Episode) -> None:
        self._store, self._manifest, self._episode = store, manifest, episode

    def run(self, unit: int) -> int:
        """Write and commit."""
        write_no_op(self._store, self._manifest, unit, self._episode)
        return unit


def write_no_op(store: Store, manifest: Manifest, unit: int, episode: Episode) -> None:
    write_unit(store, manifest, unit, [dataclasses.replace(episode, episode_index=unit)])


def begin_dataset(store: Store) -> tuple[Manifest, Episode]:
    manifest = create_dataset(store, make_manifest(ENV, NO_OP))
    return manifest, UnitCollector(ENV, NO_OP).collect(0)[0]


def run_on_hosts(num_actors: int, num_units: int, unit_seconds: float) -> dict[str, float]:
    """Run units on as many actors as asked for; the first fifth, in which they start, is not counted."""
    hosts = [
        Host.remote(unit_seconds)  # pyright: ignore[reportAttributeAccessIssue]
        for _ in range(NUM_HOSTS)
    ]
    ray.get([host.__ray_ready__.remote() for host in hosts])
    num_spawned, done, marks = 0, [], []

    def spawn() -> Any:
        nonlocal num_spawned
        num_spawned += 1
        return hosts[num_spawned % NUM_HOSTS]

    def on_done(unit: int, result: int) -> None:
        done.append(result)
        marks.append((time.perf_counter(), time.process_time()))

    run_units(range(num_units), spawn, num_actors, on_done)
    assert sorted(done) == list(range(num_units))
    # Towards the end there are fewer units than actors.
    counted = marks[max(num_units // 5, num_actors) : num_units - num_actors + 1]
    (first_wall, first_cpu), (last_wall, last_cpu) = counted[0], counted[-1]
    count = len(counted) - 1
    return {
        "actors": num_actors,
        "unit_seconds": unit_seconds,
        "units_per_second": count / (last_wall - first_wall),
        "driver_us_per_unit": 1e6 * (last_cpu - first_cpu) / count,
        "units_per_driver_second": count / (last_cpu - first_cpu),
    }


def measure_driver(actors: list[int], num_units: int, repeats: int) -> list[dict[str, float]]:
    """The median of some repeats for each number of actors."""
    rows = []
    for num_actors in actors:
        runs = [run_on_hosts(num_actors, num_units + 4 * num_actors, 0.0) for _ in range(repeats)]
        rows.append(sorted(runs, key=lambda row: row["units_per_driver_second"])[repeats // 2])
        print("driver   {actors:>5} actors  {driver_us_per_unit:>6.0f} us/unit  "
              "{units_per_driver_second:>6,.0f} units per driver-second  {units_per_second:>6,.0f} units/s"
              .format(**rows[-1]), flush=True)  # fmt: skip
    return rows


def measure_paced(num_actors: int, unit_seconds: list[float]) -> list[dict[str, float]]:
    rows = []
    for seconds in unit_seconds:
        row = run_on_hosts(num_actors, round(num_actors * (3 + 4 / seconds)), seconds)
        row["offered_units_per_second"] = num_actors / seconds
        row["driver_utilization"] = row["units_per_second"] * row["driver_us_per_unit"] / 1e6
        rows.append(row)
        print("paced    {actors:>5} actors of {unit_seconds:g} s a unit: {units_per_second:>5,.0f} of "
              "{offered_units_per_second:>5,.0f} units/s, {driver_utilization:.0%} of a core"
              .format(**row), flush=True)  # fmt: skip
    return rows


def time_calls(function: Callable[[int], None], indices: range) -> dict[str, float]:
    """Wall and CPU time of calls, in microseconds; the median of the wall time."""
    walls = []
    cpu = time.process_time()
    for index in indices:
        since = time.perf_counter()
        function(index)
        walls.append(time.perf_counter() - since)
    cpu = time.process_time() - cpu
    return {"wall_us_per_unit": 1e6 * statistics.median(walls), "cpu_us_per_unit": 1e6 * cpu / len(indices)}


def measure_commits(directory: Path, num_units: int) -> dict[str, Any]:
    local = open_store(directory / "local")
    manifest, episode = begin_dataset(local)
    one = time_calls(lambda unit: write_no_op(local, manifest, unit, episode), range(num_units))

    two_actors = open_store(directory / "two")
    manifest, episode = begin_dataset(two_actors)
    marks: list[float] = []
    run_units(
        range(num_units),
        lambda: NoOpActor.remote(two_actors, manifest, episode),
        2,
        lambda unit, result: marks.append(time.perf_counter()),
    )
    first = num_units // 5
    assert len(list_committed_units(two_actors)) == num_units

    result = {
        "one_process": one,
        "two_actors_units_per_second": (num_units - 1 - first) / (marks[-1] - marks[first]),
    }
    print(f"commits  {one['wall_us_per_unit']:,.0f} us/unit in one process ({one['cpu_us_per_unit']:,.0f} us of CPU), "
          f"{result['two_actors_units_per_second']:,.0f} units/s by two actors", flush=True)  # fmt: skip
    return result


def measure_growth(directory: Path, num_units: int) -> dict[str, float]:
    """Costs of a dataset in proportion to its units, as large as in the presets but for their steps."""
    collection = CollectionConfig(behavior="random", episode_steps=2)
    store = open_store(directory / "growth")
    manifest = create_dataset(store, make_manifest(ENV, collection))
    episodes = UnitCollector(ENV, collection).collect(0)
    count = len(episodes)
    for unit in range(num_units):
        numbered = [dataclasses.replace(e, episode_index=unit * count + i) for i, e in enumerate(episodes)]
        write_unit(store, manifest, unit, numbered)
    # CPU time: these are one process, and what they read is in the page cache.
    since = time.process_time()
    assert len(list_committed_units(store)) == num_units
    listing = time.process_time() - since
    since = time.process_time()
    pin_commits(store, manifest)
    snapshot = time.process_time() - since
    commit_bytes = sum(stored.num_bytes for stored in store.list("commits")) / num_units
    snapshot_bytes = sum(stored.num_bytes for stored in store.list("snapshots")) / num_units
    result = {
        "episodes_per_unit": count,
        "listing_cpu_us_per_unit": 1e6 * listing / num_units,
        "snapshot_cpu_us_per_unit": 1e6 * snapshot / num_units,
        "commit_bytes_per_unit": commit_bytes,
        "snapshot_bytes_per_unit": snapshot_bytes,
    }
    print("growth   {listing_cpu_us_per_unit:.1f} us/unit to list, {snapshot_cpu_us_per_unit:,.0f} us/unit for the "
          "snapshot, {commit_bytes_per_unit:,.0f} bytes a commit".format(**result), flush=True)  # fmt: skip
    return result


def measure_scaling(directory: Path, num_units: int, repeats: int) -> dict[str, Any]:
    """Steps per second of `collect` with one actor and two, from the first unit done to the last but one round."""
    preset = get_preset("maze2d-large")
    unit_steps = preset.collection.episodes_per_unit * preset.collection.max_episode_steps
    rates: dict[int, list[float]] = {1: [], 2: []}
    num_bytes = 0.0
    for repeat in range(repeats):
        for num_workers in rates:
            num_steps = num_workers * num_units * unit_steps
            root = directory / f"scaling-{num_workers}-{repeat}"
            collection = dataclasses.replace(preset.collection, num_steps=num_steps)
            dataset = collect(preset.env, collection, root, num_workers=num_workers)
            times = sorted(path.stat().st_mtime for path in (root / "commits").iterdir())
            span = times[-num_workers] - times[num_workers - 1]
            rates[num_workers].append(unit_steps * (len(times) - 2 * num_workers + 1) / span)
            num_bytes = dataset.num_bytes / dataset.num_steps
    one, two = (statistics.median(rates[n]) for n in (1, 2))
    print(f"scaling  {one:,.0f} steps/s with one actor, {two:,.0f} with two: {two / one:.2f} times", flush=True)
    return {
        "steps_per_second": {str(n): values for n, values in rates.items()},
        "ratio": two / one,
        "bytes_per_step": num_bytes,
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--sections", nargs="+", choices=SECTIONS, default=SECTIONS, help="the file of --json keeps the others"
    )
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 10, 100, 1_000, 4_000])
    parser.add_argument("--units", type=int, default=4_000, help="units of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--paced-actors", type=int, default=1_000)
    parser.add_argument("--unit-seconds", type=float, nargs="+", default=[4.0, 2.0, 1.0, 0.5])
    parser.add_argument("--scaling-units", type=int, default=12, help="units of each actor")
    quick = {"actors": [1, 10], "units": 200, "repeats": 1, "paced_actors": 50, "unit_seconds": [0.5]}
    args = parse_arguments(parser, quick | {"scaling_units": 3})

    sections: dict[str, Callable[[Path], Any]] = {
        "scaling": lambda root: measure_scaling(root, args.scaling_units, args.repeats),
        "driver": lambda root: measure_driver(args.actors, args.units, args.repeats),
        "paced": lambda root: measure_paced(args.paced_actors, args.unit_seconds),
        "commits": lambda root: measure_commits(root, args.units // 4),
        "growth": lambda root: measure_growth(root, args.units // 4),
    }
    document = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    document = {name: document[name] for name in SECTIONS if name in document}
    try:
        with ray_session(), tempfile.TemporaryDirectory() as directory:
            for name in args.sections:
                load = os.getloadavg()[0]
                result = sections[name](Path(directory))
                # The processes that wanted a core in the minute before and in the last minute of the measurement.
                machine = {"num_cores": os.cpu_count(), "load_before": load, "load_after": os.getloadavg()[0]}
                document[name] = {"command": get_command(), "machine": machine, "result": result}
    finally:  # what was measured before an interruption counts
        write_results(args, document)


if __name__ == "__main__":
    main()

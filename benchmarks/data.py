"""How fast datasets are read and written: each number beside what it is measured against, in one run.

* Random windows (batch 256, horizon 32, 11 + 3 float32 columns, 1 M steps) against a loader of the usual kind (episodes
  padded to one length in memory, a list of all windows, `torch.utils.data.DataLoader`) and against bare copies of as
  many bytes from random places of one array. Loaders take turns, round after round; CPU time of one thread is counted.
* Time from opening a dataset that the page cache does not hold to the first batch.
* Memory of the index of two million episodes (1e9 steps).
* A dataset that the page cache does not hold: the pool of blocks against single windows from mapped files.
* Writing against collecting on Maze2D.

    python benchmarks/data.py
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are imported

import numpy as np
import torch
from harness import make_parser, make_scratch, parse_arguments, write_results
from torch.utils.data import DataLoader, Dataset

from diffplan.behaviors.collection import UnitCollector, make_manifest
from diffplan.data.format.dataset import TrajectoryDataset, open_dataset, write_snapshot
from diffplan.data.format.episodes import EpisodeTable
from diffplan.data.format.manifest import Manifest, make_columns, new_dataset_uuid
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.data.windows.conditions import Conditions
from diffplan.data.windows.mapped_windows import Windows
from diffplan.data.windows.normalization import Normalizer
from diffplan.data.windows.readers import Storage, make_window_reader
from diffplan.data.windows.window_index import WindowIndex
from diffplan.storage.store import LocalStore
from diffplan.tasks.registry import get_preset
from diffplan.types import Episode

BATCH, HORIZON = 256, 32
OBSERVATION_DIM, ACTION_DIM = 11, 3
SIZE = OBSERVATION_DIM + ACTION_DIM
NAMES = ("action", "observation")


def write_random_dataset(root: Path, num_steps: int, num_shards: int) -> TrajectoryDataset:
    """Episodes of 241 to 750 steps of noise, the same whatever the number of shards."""
    manifest = Manifest(
        dataset_uuid=new_dataset_uuid(),
        env={"env_id": "noise"},
        columns=make_columns(OBSERVATION_DIM, ACTION_DIM),
        action_low=[-1.0] * ACTION_DIM,
        action_high=[1.0] * ACTION_DIM,
    )
    create_dataset(root, manifest)
    lengths = np.random.default_rng(0).integers(241, 751, size=num_steps // 495 + 1)
    for unit, indices in enumerate(np.array_split(np.arange(len(lengths)), num_shards)):
        write_unit(root, manifest, unit, [make_random_episode(int(i), int(lengths[i])) for i in indices])
    dataset = open_dataset(root)
    return open_dataset(root, snapshot=write_snapshot(dataset))


def make_random_episode(index: int, length: int) -> Episode:
    generator = np.random.default_rng(index)
    return Episode(
        episode_index=index,
        seed=index,
        behavior="noise",
        observations=generator.standard_normal((length + 1, OBSERVATION_DIM), dtype=np.float32),
        actions=generator.random((length, ACTION_DIM), dtype=np.float32) * 2 - 1,
        rewards=generator.standard_normal(length, dtype=np.float32),
        terminated=False,
        truncated=True,
    )


class PaddedBatch(NamedTuple):
    """What the usual loader gives: windows, and the first and last observation by step."""

    trajectories: Any
    conditions: Any


class PaddedWindows(Dataset):
    """The usual recipe, as in the code of Janner et al. 2022.

    Normalised observations and actions in a buffer each, padded to the longest episode; a list of all windows; each
    item joins its columns and has the first and the last observation as conditions.
    """

    def __init__(self, dataset: TrajectoryDataset, normalizer: Normalizer) -> None:
        lengths = dataset.episodes.length
        values = normalizer.normalize(np.hstack([dataset.read_column(name) for name in NAMES]))
        padded = np.zeros((len(lengths), int(lengths.max()), SIZE), np.float32)
        for i, episode in enumerate(np.split(values, np.cumsum(lengths)[:-1])):
            padded[i, : len(episode)] = episode
        self.actions, self.observations = padded[..., :ACTION_DIM].copy(), padded[..., ACTION_DIM:].copy()
        self.indices = [(i, start) for i, n in enumerate(lengths.tolist()) for start in range(n - HORIZON + 1)]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> PaddedBatch:
        episode, start = self.indices[index]
        observations = self.observations[episode, start : start + HORIZON]
        actions = self.actions[episode, start : start + HORIZON]
        trajectories = np.concatenate([actions, observations], axis=-1)
        return PaddedBatch(trajectories, {0: observations[0], HORIZON - 1: observations[-1]})


def iterate_loader(dataset: PaddedWindows) -> Callable[[], object]:
    """Batches of a shuffling loader without worker processes, which it is faster without."""
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=True, drop_last=True, generator=torch.Generator())
    iterator = iter(loader)

    def next_batch() -> object:
        nonlocal iterator
        try:
            return next(iterator)
        except StopIteration:
            iterator = iter(loader)
            return next(iterator)

    return next_batch


def make_copies(num_steps: int) -> Callable[[], object]:
    """One copy of a window's bytes from a random place of an array for each window, places drawn beforehand."""
    rows = torch.randn(num_steps * SIZE)
    width = HORIZON * SIZE
    pieces = torch.as_strided(rows, (num_steps - HORIZON + 1, width), (SIZE, 1))
    places = [torch.randint(len(pieces), (BATCH,)) for _ in range(512)]
    out = torch.empty(BATCH, width)
    calls = iter(range(sys.maxsize))
    return lambda: torch.index_select(pieces, 0, places[next(calls) % len(places)], out=out)


def take_turns(variants: dict[str, Callable[[], object]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Windows per CPU-second of each variant, one after the other in each round."""
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for next_batch in variants.values():
        next_batch()
    for _ in range(rounds):
        for name, next_batch in variants.items():
            begun, batches = time.process_time(), 0
            while (spent := time.process_time() - begun) < seconds:
                next_batch()
                batches += 1
            rates[name].append(batches * BATCH / spent)
    return rates


def make_readers(dataset: TrajectoryDataset, label: str) -> dict[str, Callable[[], object]]:
    """Batches of each way to read a dataset, normalised with conditions, and raw from mapped shards."""
    normalizer = fit(dataset)
    generator = np.random.default_rng(0)
    readers: dict[str, Callable[[], object]] = {}
    windows = Windows(dataset, NAMES)
    readers[f"mapped_raw{label}"] = lambda: windows.sample(BATCH, HORIZON, generator)
    for storage in ("mapped", "memory", "blocks"):
        for goal in ("none", "window_end"):
            reader = make_window_reader(
                dataset,
                NAMES,
                WindowIndex(dataset, 1),
                normalizer,
                storage=storage,
                conditions=Conditions(goal=goal),
                max_horizon=HORIZON,
            )
            steps = iter(range(sys.maxsize))
            readers[f"{storage}_{'conditions' if goal != 'none' else 'plain'}{label}"] = (
                lambda reader=reader, steps=steps: reader.read(next(steps), BATCH, HORIZON, generator)
            )
    return readers


def fit(dataset: TrajectoryDataset) -> Normalizer:
    return Normalizer.fit([dataset.statistics[name] for name in NAMES], "limits")


def evict(root: Path) -> None:
    """Let the page cache forget a dataset."""
    for path in root.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def measure_first_batch(root: Path, storage: Storage, rounds: int) -> list[float]:
    """Seconds from opening a cold dataset to its first normalised batch."""
    seconds = []
    for _ in range(rounds):
        evict(root)
        begun = time.perf_counter()
        dataset = open_dataset(root)
        reader = make_window_reader(
            dataset, NAMES, WindowIndex(dataset, 1), fit(dataset), storage=storage, max_horizon=HORIZON
        )
        reader.read(0, BATCH, HORIZON, np.random.default_rng(0))
        seconds.append(time.perf_counter() - begun)
        getattr(reader, "close", lambda: None)()
        del reader, dataset
    return seconds


def measure_index(num_episodes: int) -> dict[str, float]:
    """Bytes that the index of many episodes takes, and the time to find a batch in it."""
    lengths = np.full(num_episodes, 500, np.int32)
    core = {
        "unit": np.arange(num_episodes) // 128,
        "shard": np.arange(num_episodes) // 128,
        "first_row": np.arange(num_episodes) % 128 * 500,
        "length": lengths,
        "task": np.zeros(num_episodes),
    }
    table = EpisodeTable(core, lambda: None)  # type: ignore[arg-type]  # nothing beyond the core is read
    manifest = Manifest("", {"env_id": "noise"}, make_columns(OBSERVATION_DIM, ACTION_DIM), [], [])
    index = WindowIndex(TrajectoryDataset(LocalStore("."), manifest, (), table, {}), 1)
    generator = np.random.default_rng(0)
    index.count(HORIZON)
    begun, num_batches = time.process_time(), 200
    for _ in range(num_batches):
        index.locate(index.draw(BATCH, HORIZON, generator), HORIZON)
    spent = time.process_time() - begun
    return {
        "num_episodes": num_episodes,
        "num_steps": int(lengths.sum(dtype=np.int64)),
        "num_bytes": table.num_index_bytes + index.num_bytes,
        "windows_per_second": num_batches * BATCH / spent,
    }


def measure_cold(root: Path, num_batches: int, rounds: int) -> dict[str, list[float]]:
    """Windows per second of wall time from a dataset that the page cache does not hold."""
    rates: dict[str, list[float]] = {"blocks": [], "mapped": []}
    for _ in range(rounds):
        plan: list[tuple[Storage, int]] = [("blocks", num_batches), ("mapped", 2)]
        for storage, batches in plan:
            evict(root)
            dataset = open_dataset(root)
            reader = make_window_reader(
                dataset, NAMES, WindowIndex(dataset, 1), fit(dataset), storage=storage, max_horizon=HORIZON
            )
            generator = np.random.default_rng(0)
            begun = time.perf_counter()
            for step in range(batches):
                reader.read(step, BATCH, HORIZON, generator)
            rates[storage].append(batches * BATCH / (time.perf_counter() - begun))
            getattr(reader, "close", lambda: None)()
            del reader, dataset
    return rates


def measure_writing(units: int) -> dict[str, list[float]]:
    """Seconds to collect each unit of Maze2D and to write it, checksums and fsync included."""
    preset = get_preset("maze2d-umaze")
    env, collection = preset.env, preset.collection
    seconds: dict[str, list[float]] = {"collect": [], "write": []}
    with make_scratch() as directory:
        manifest = create_dataset(directory, make_manifest(env, collection))
        collector = UnitCollector(env, collection)
        for unit in range(units + 1):
            begun = time.perf_counter()
            episodes = collector.collect(unit)
            collected = time.perf_counter()
            write_unit(directory, manifest, unit, episodes)
            seconds["collect"].append(collected - begun)
            seconds["write"].append(time.perf_counter() - collected)
    return {name: values[1:] for name, values in seconds.items()}  # the first unit warms up


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--cold-steps", type=int, default=40_000_000, help="0 leaves the large dataset out")
    parser.add_argument("--shards", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="CPU time of each turn")
    parser.add_argument("--units", type=int, default=7, help="units of Maze2D to collect and write")
    quick = {"steps": 50_000, "cold_steps": 200_000, "shards": 10, "rounds": 1, "seconds": 0.05, "units": 1}
    args = parse_arguments(parser, quick)
    torch.set_num_threads(1)

    with make_scratch() as directory:
        roots = {1: Path(directory, "one"), args.shards: Path(directory, "many")}
        datasets = {n: write_random_dataset(root, args.steps, n) for n, root in roots.items()}
        one = datasets[1]
        variants = {
            "copies": make_copies(one.num_steps),
            "padded": iterate_loader(PaddedWindows(one, fit(one))),
            **make_readers(one, ""),
            **make_readers(datasets[args.shards], "_many"),
        }
        rates = take_turns(variants, args.rounds, args.seconds)
        del variants
        first = {
            f"{storage}{'' if n == 1 else '_many'}": measure_first_batch(root, storage, args.rounds)
            for n, root in roots.items()
            for storage in ("auto", "mapped", "blocks")
        }
    index = measure_index(2_000_000)
    writing = measure_writing(args.units)
    cold: dict[str, list[float]] = {}
    if args.cold_steps:
        with make_scratch() as directory:
            write_random_dataset(Path(directory), args.cold_steps, max(args.cold_steps // 2_000_000, 1))
            # Less than one pass over the blocks, so that none is read from the page cache.
            cold = measure_cold(Path(directory), args.cold_steps // 1_300, 3)

    median = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {
        "memory_over_padded": median["memory_plain"] / median["padded"],
        "mapped_over_padded": median["mapped_raw"] / median["padded"],
        "memory_over_copies": median["memory_plain"] / median["copies"],
        "mapped_over_copies": median["mapped_raw"] / median["copies"],
        "memory_conditions_over_padded": median["memory_conditions"] / median["padded"],
        "mapped_conditions_over_padded": median["mapped_conditions"] / median["padded"],
        **{
            f"{name}_many_over_one": median[f"{name}_many"] / median[name]
            for name in ("mapped_raw", "memory_plain", "blocks_plain")
        },
        "write_over_collect": sum(writing["write"]) / sum(writing["collect"]),
    }
    print(f"{'windows per CPU-second':34}{'median':>12}{'least':>12}{'most':>12}")
    for name, values in rates.items():
        print(f"{name:34}{median[name]:>12,.0f}{min(values):>12,.0f}{max(values):>12,.0f}")
    print(f"\n{'seconds, cold, to the first batch':34}{'median':>12}{'least':>12}{'most':>12}")
    for name, values in first.items():
        print(f"{name:34}{statistics.median(values):>12.3f}{min(values):>12.3f}{max(values):>12.3f}")
    if cold:
        print(f"\n{'windows per second, cold':34}{'median':>12}{'least':>12}{'most':>12}")
        for name, values in cold.items():
            print(f"{name:34}{statistics.median(values):>12,.0f}{min(values):>12,.0f}{max(values):>12,.0f}")
    print(f"\nindex of {index['num_steps']:,} steps: {index['num_bytes'] / 1e6:.1f} MB, ", end="")
    print(f"{index['windows_per_second']:,.0f} windows found per CPU-second")
    print()
    for name, value in ratios.items():
        print(f"{name:34}{value:>12.2f}")
    document = {
        "batch": BATCH,
        "horizon": HORIZON,
        "transition_dim": SIZE,
        "num_steps": args.steps,
        "num_shards_many": args.shards,
        "windows_per_cpu_second": median,
        "first_batch_seconds": {name: statistics.median(values) for name, values in first.items()},
        "index": index,
        "cold_steps": args.cold_steps,
        "cold_windows_per_second": {name: statistics.median(values) for name, values in cold.items()},
        "ratios": ratios,
        "repeats": {
            "windows_per_cpu_second": rates,
            "first_batch_seconds": first,
            "writing_seconds": writing,
            "cold_windows_per_second": cold,
        },
    }
    write_results(args, document)


if __name__ == "__main__":
    main()

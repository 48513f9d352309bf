"""How much of the physics' speed is left when units of a dataset are collected and written.

CPU time of this process is counted, not wall time: collection runs in one thread per core. A unit is collected with
`UnitCollector` and committed with `write_unit`, fsync and checksums included; beside it runs a bare loop that steps as
many environments with the same actions, taken from a collected unit, and keeps nothing.

    python benchmarks/collection.py
"""

import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are imported

import numpy as np
from harness import make_parser, parse_arguments, write_results

from diffplan.behaviors.collection import UnitCollector, make_manifest
from diffplan.config import CollectionConfig, EnvConfig
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.environments import make_vector_env
from diffplan.tasks.registry import get_preset


def measure_collection(env: EnvConfig, collection: CollectionConfig) -> list[float]:
    """Steps per CPU-second of collecting and writing each unit."""
    rates = []
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        manifest = create_dataset(root, make_manifest(env, collection))
        collector = UnitCollector(env, collection)
        for unit in range(collection.num_units):
            start = time.process_time()
            record = write_unit(root, manifest, unit, collector.collect(unit))
            rates.append(record.shard.num_rows / (time.process_time() - start))
    return rates


def measure_bare_loop(env: EnvConfig, collection: CollectionConfig) -> list[float]:
    """Steps per CPU-second of stepping a batch through the actions of one unit, as often as there are units."""
    episodes = UnitCollector(env, collection).collect(0)
    actions = np.stack([episode.actions for episode in episodes], axis=1)
    vector_env = make_vector_env(env, len(episodes), max_episode_steps=collection.episode_steps)
    rates = []
    for _ in range(collection.num_units):
        vector_env.reset(seed=[episode.seed for episode in episodes])  # pyright: ignore[reportArgumentType]  # a seed each
        start = time.process_time()
        for step_actions in actions:
            vector_env.step(step_actions)
        rates.append(len(episodes) * len(actions) / (time.process_time() - start))
    return rates


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--env-id", default="diffplan/Maze2D-Large-v1")
    parser.add_argument("--behavior", default="waypoint")
    parser.add_argument("--repeats", type=int, default=5, help="units to collect, each as large as in the presets")
    args = parse_arguments(parser, {"repeats": 1})

    preset = get_preset("maze2d-large")
    env, unit = replace(preset.env, env_id=args.env_id), preset.collection
    num_steps = (args.repeats + 1) * unit.episodes_per_unit * unit.max_episode_steps
    collection = replace(unit, behavior=args.behavior, num_steps=num_steps)
    # The first repeat warms up: imports, page cache, the batch itself.
    rates = {
        "collect_steps_per_second_core": measure_collection(env, collection)[1:],
        "bare_steps_per_second_core": measure_bare_loop(env, collection)[1:],
    }
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratio = medians["collect_steps_per_second_core"] / medians["bare_steps_per_second_core"]
    print(f"{args.env_id}, {args.behavior}: {unit.episodes_per_unit} environments, {args.repeats} repeats")
    for title, name in (
        ("collect and write", "collect_steps_per_second_core"),
        ("bare step loop", "bare_steps_per_second_core"),
    ):
        print(f"{title:18} {medians[name]:>9,.0f} steps/s/core  ({min(rates[name]):,.0f} to {max(rates[name]):,.0f})")
    print(f"{'ratio':18} {ratio:>9.2f}")
    document = {
        "env_id": args.env_id,
        "behavior": args.behavior,
        "num_envs": unit.episodes_per_unit,
        **medians,
        "ratio": ratio,
        "repeats": rates,
    }
    write_results(args, document)


if __name__ == "__main__":
    main()

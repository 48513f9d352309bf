"""What is left of a collection whose actors and coordinators are killed at random, again and again.

Two scenarios of `tests/`, with a reader that opens and checks the dataset all the time:

* actors: `diffplan collect` with Ray; its actors and the command itself are struck (`tests/chaos_actors.py`);
* writers: plain processes that write units, many times faster, so that kills fall everywhere between the first byte
  of a shard and the last of its commit; some lose the answer to their commit, some are stopped before it and
  resumed when another has committed their unit (`tests/chaos_writers.py`).

    python benchmarks/chaos.py
"""

import os
import sys
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are imported
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from chaos_actors import run_actor_chaos
from chaos_reader import Reader, collect_undisturbed, count_remains
from chaos_writers import ENV, run_writer_chaos
from harness import make_parser, make_scratch, parse_arguments, write_results

from diffplan.data.format.dataset import open_dataset
from diffplan.data.maintenance.verification import find_damage
from diffplan.storage.opening import open_store


def measure(scenario: str, num_kills: int, seed: int) -> dict[str, object]:
    """Run a scenario and count."""
    with make_scratch() as directory:
        root = Path(directory) / "chaos"
        with Reader(root) as reader:
            if scenario == "actors":
                chaos = run_actor_chaos(root, num_kills=num_kills, seed=seed)
                env, kills = chaos.env, {"actors": chaos.num_actor_kills}
            else:
                chaos = run_writer_chaos(root, num_kills=num_kills, seed=seed, timeout_seconds=3_000)
                env, kills = ENV, {"writers": chaos.num_writer_kills}
            sightings = reader.stop()
        kills["coordinators"] = chaos.num_coordinator_kills
        extra = {
            name: getattr(chaos, f"num_{name}") for name in ("answers_lost", "zombies") if hasattr(chaos, f"num_{name}")
        }
        remains = count_remains(root, chaos.collection)
        undisturbed = collect_undisturbed(Path(directory) / "undisturbed", env, chaos.collection)
        return {
            "kills": kills,
            **extra,
            "episodes": chaos.collection.num_units * chaos.collection.episodes_per_unit,
            "lost": remains.num_lost,
            "duplicate": remains.num_repeated,
            "partial": len(sightings.faults) + sum(damage is not None for damage in find_damage(open_store(root))),
            "reader_looks": sightings.num_looks,
            "orphans": remains.num_orphans,
            "content_equal": open_dataset(root).content_hash() == undisturbed,
            "seconds": chaos.seconds,
            "collection": asdict(chaos.collection),
        }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--actor-kills", type=int, default=100, help="kills of actors and coordinators")
    parser.add_argument("--writer-kills", type=int, default=1_000, help="kills of writers")
    parser.add_argument("--seed", type=int, default=0)
    args = parse_arguments(parser, {"actor_kills": 2, "writer_kills": 20})
    num_kills = {"writers": args.writer_kills, "actors": args.actor_kills}
    results = {scenario: measure(scenario, count, args.seed) for scenario, count in num_kills.items()}
    names = ("kills", "answers_lost", "zombies", "episodes", "lost", "duplicate", "partial", "reader_looks", "orphans")
    for scenario, result in results.items():
        print(scenario)
        for name in (*names, "content_equal", "seconds"):
            if name in result:
                print(f"  {name:16}{result[name]}")
    write_results(args, results)


if __name__ == "__main__":
    main()

"""What comes of collecting, training, searching and evaluating on a cluster that loses processes and nodes at random.

A cluster of three local nodes, of which the head runs no work. Each stage is the command that users give, as a job of
that cluster. While it runs, SIGKILL strikes at random times: an actor or worker, a whole node (which is replaced), or
the command itself (which is given again with `--resume`). Then the result is compared with that of an undisturbed run:

* collect: the same content, and no damaged shard;
* train: the same weights to the last bit, and every step once in the curves;
* tune: as many trials as were asked for, and the best one scores what its settings score here;
* evaluate: the same episodes with the same scores, each once.

A stage that ends before it has been struck often enough is run again in another directory. It counts as stuck if
nothing of it could be struck, and it did not end, for `STUCK_SECONDS` after a strike.

    python benchmarks/faults.py --load 2
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a cluster of this process alone, on loopback
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")

import numpy as np
import psutil
import pyarrow.parquet as pq
import torch
from harness import make_parser, parse_arguments, write_results
from ray.cluster_utils import Cluster
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffplan.checkpoint import load_checkpoint
from diffplan.data.format.dataset import open_dataset
from diffplan.data.maintenance.verification import find_damage
from diffplan.evaluation.protocol import apply_protocol
from diffplan.evaluation.rollout import evaluate_episodes
from diffplan.planning.loading import load_planner
from diffplan.planning.settings import load_settings
from diffplan.seeding import Stream
from diffplan.storage.opening import open_store

NODE_MEMORY = 80 * 2**20
KINDS = {"actor": 0.6, "node": 0.2, "driver": 0.2}
"""What is struck, and how often."""
MAX_PAUSE_SECONDS = 4.0
STUCK_SECONDS = 300
TRIALS, BLOCK_EPISODES, BLOCKS = 16, 10, 3


@dataclass(frozen=True)
class Stage:
    """A command that is struck.

    Attributes:
        name: of the stage.
        arguments: of the command, without its output.
        actor: part of the title of the processes that do the work.
        compare: what is wrong with a result, given an undisturbed one.
    """

    name: str
    arguments: list[str]
    actor: str
    compare: Callable[[Path, Path], list[str]]


@dataclass
class Outcome:
    """What came of a stage."""

    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    seconds: float = 0.0
    undisturbed_seconds: float = 0.0
    stuck: int = 0
    wrong: list[str] = field(default_factory=list)


def make_stages(root: Path) -> list[Stage]:
    """The stages; the later ones use the undisturbed results of the earlier ones."""
    data, model = str(root / "undisturbed" / "collect"), str(root / "undisturbed" / "train")
    training = {
        "training.num_steps": 3_000,
        "training.batch_size": 8,
        "training.log_interval": 10,
        "training.checkpoint_interval": 100,
        "training.picture_interval": 0,
    }
    return [
        Stage(
            "collect",
            ["maze2d-umaze", "--num_steps", "400_000", "--episode_steps", "500", "--episodes_per_unit", "8"],
            "CollectionActor",
            compare_datasets,
        ),
        Stage(
            "train",
            [
                "maze2d-umaze-smoke",
                *("--data", data, "--num_workers", "1", "--cpus_per_worker", "1"),
                *(text for name, value in training.items() for text in (f"--{name}", str(value))),
            ],
            "RayTrainWorker",
            compare_checkpoints,
        ),
        Stage(
            "tune",
            [
                model,
                *("--num_trials", str(TRIALS), "--episodes_per_block", str(BLOCK_EPISODES)),
                *("--num_blocks", str(BLOCKS), "--max_concurrent_trials", "2", "--protocols", "maze2d"),
            ],
            "ImplicitFunc",
            lambda out, undisturbed: check_search(out, Path(model)),
        ),
        Stage(
            "evaluate",
            [model, "--protocol", "maze2d", "--episodes", "1500", "--num_workers", "2"],
            "EvaluationActor",
            compare_evaluations,
        ),
    ]


def compare_datasets(out: Path, undisturbed: Path) -> list[str]:
    """See the module."""
    damage = [str(found) for found in find_damage(open_store(out)) if found is not None]
    same = open_dataset(out).content_hash() == open_dataset(undisturbed).content_hash()
    return damage + ([] if same else ["the content is another"])


def compare_checkpoints(out: Path, undisturbed: Path) -> list[str]:
    """See the module."""
    weights, expected = load_checkpoint(out).weights, load_checkpoint(undisturbed).weights
    wrong = [f"weights of {name} are others" for name in expected if not torch.equal(weights[name], expected[name])]
    steps, expected_steps = (read_steps(path / "tensorboard") for path in (out, undisturbed))
    return wrong + ([] if steps == expected_steps else ["the curve has other steps"])


def read_steps(directory: Path) -> list[int]:
    """Steps of the curve of the loss, as TensorBoard shows it."""
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    return [scalar.step for scalar in events.Scalars("train/loss")]


def check_search(out: Path, model: Path) -> list[str]:
    """See the module."""
    trials = json.loads((out / "trials.json").read_text())
    numbers = [trial["trial"] for trial in trials]
    wrong = [] if len(set(numbers)) == len(numbers) == TRIALS else [f"trials {sorted(numbers)}"]
    wrong += [f"trial {trial['trial']}: {trial['error']}" for trial in trials if trial.get("error")]
    best = json.loads((out / "best.json").read_text())
    planner = load_planner(model, load_settings(out / "best.json"))
    env = apply_protocol("maze2d", planner.config.env)
    results = []
    for block in range(BLOCKS):
        episodes = range(block * BLOCK_EPISODES, (block + 1) * BLOCK_EPISODES)
        results += evaluate_episodes(planner, env, episodes, seed=planner.config.search.seed, stream=Stream.TUNING)[0]
    scored = float(np.mean([result.score for result in results]))
    if abs(best["score_mean"] - scored) > 1e-6:
        wrong.append(f"the best trial says {best['score_mean']}, its settings score {scored}")
    return wrong


def compare_evaluations(out: Path, undisturbed: Path) -> list[str]:
    """See the module."""
    clocks = ["plan_seconds"]
    rows, expected = (pq.read_table(path / "episodes.parquet").drop_columns(clocks) for path in (out, undisturbed))
    return [] if rows.equals(expected) else ["the episodes are others"]


class Nodes:
    """The cluster: a head without CPUs, and two nodes of one CPU."""

    def __init__(self) -> None:
        # A node is taken for dead after two seconds, not half a minute: only detecting it takes less time here.
        health = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}
        head = {"num_cpus": 0, "object_store_memory": NODE_MEMORY, "include_dashboard": False, "_system_config": health}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = str(self._cluster.address)
        self._workers = [self._add(), self._add()]

    def _add(self) -> Any:
        return self._cluster.add_node(num_cpus=1, object_store_memory=NODE_MEMORY)

    def replace_one(self, generator: random.Random) -> None:
        """Kill a node with everything on it, and start another."""
        victim = generator.randrange(len(self._workers))
        self._cluster.remove_node(self._workers[victim], allow_graceful=False)
        self._workers[victim] = self._add()

    def shutdown(self) -> None:
        """End all nodes."""
        self._cluster.shutdown()


def run_command(stage: Stage, out: Path, address: str, log: Path) -> subprocess.Popen:
    """Give the command, to go on where there is something."""
    resume = ["--resume"] if out.exists() else []
    command = [sys.executable, "-m", "diffplan.cli", stage.name, *stage.arguments, "--out", str(out), *resume]
    with log.open("a") as file:
        environment = {**os.environ, "RAY_ADDRESS": address, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment)


def find_actors(title: str) -> list[int]:
    """Processes of the cluster's nodes that do the work."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(title in part for part in child.cmdline()):
                found.append(child.pid)
    return found


def strike(kind: str, stage: Stage, process: subprocess.Popen, nodes: Nodes, generator: random.Random) -> bool:
    """Strike once; returns whether anything was hit."""
    actors = find_actors(stage.actor)
    if not actors or process.poll() is not None:  # it has not begun, or has ended
        return False
    if kind == "node":
        nodes.replace_one(generator)
        return True
    try:
        os.kill(process.pid if kind == "driver" else generator.choice(actors), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def disturb(
    stage: Stage, undisturbed: Path, undisturbed_seconds: float, num_kills: int, nodes: Nodes, root: Path, seed: int
) -> Outcome:
    """Run a stage under kills until there were so many and it is complete."""
    generator, outcome = random.Random(seed), Outcome(undisturbed_seconds=undisturbed_seconds)
    plan = [kind for kind, share in KINDS.items() for _ in range(max(1, round(share * num_kills)))]
    generator.shuffle(plan)
    while plan:
        out, log = root / f"{stage.name}_{outcome.runs}", root / f"{stage.name}_{outcome.runs}.log"
        began = struck_at = time.monotonic()
        process = run_command(stage, out, nodes.address, log)
        while process.poll() is None or process.returncode == -signal.SIGKILL:
            if process.poll() is not None:
                process = run_command(stage, out, nodes.address, log)
            if time.monotonic() - struck_at > STUCK_SECONDS + outcome.undisturbed_seconds:
                process.kill()
                outcome.stuck += 1
                outcome.wrong.append(f"stuck after {dict(outcome.kills)}: {log.read_text()[-2000:]}")
                return outcome
            time.sleep(generator.uniform(0.1, MAX_PAUSE_SECONDS))
            if plan and strike(plan[-1], stage, process, nodes, generator):
                outcome.kills[plan.pop()] += 1
                struck_at = time.monotonic()
        outcome.seconds += time.monotonic() - began
        outcome.runs += 1
        if process.returncode != 0:
            outcome.wrong.append(f"exit code {process.returncode}: {log.read_text()[-2000:]}")
        else:
            outcome.wrong += stage.compare(out, undisturbed)
        print(f"  {stage.name} run {outcome.runs}: {dict(outcome.kills)} {outcome.wrong or 'right'}", flush=True)
    return outcome


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--kills", type=int, default=15, help="kills of each stage")
    names = ["collect", "train", "tune", "evaluate"]
    parser.add_argument("--stages", nargs="+", default=names, choices=names)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--load", type=int, default=0, help="busy processes beside the cluster")
    args = parse_arguments(parser, {"kills": 3, "stages": ["collect"]})
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(args.load)]
        nodes = Nodes()
        try:
            stages = make_stages(root)
            last = max(number for number, stage in enumerate(stages) if stage.name in args.stages)
            for stage in stages[: last + 1]:
                undisturbed, log = root / "undisturbed" / stage.name, root / "undisturbed.log"
                (root / "undisturbed").mkdir(exist_ok=True)
                began = time.monotonic()
                if run_command(stage, undisturbed, nodes.address, log).wait():
                    raise SystemExit(f"{stage.name} failed undisturbed:\n{log.read_text()[-2000:]}")
                seconds = time.monotonic() - began
                if wrong := stage.compare(undisturbed, undisturbed):
                    raise SystemExit(f"{stage.name}: undisturbed, {wrong}")
                print(f"{stage.name}: undisturbed in {seconds:.1f} s", flush=True)
                if stage.name not in args.stages:
                    continue
                outcome = disturb(stage, undisturbed, seconds, args.kills, nodes, root, args.seed)
                num_kills = max(sum(outcome.kills.values()), 1)
                results[stage.name] = {
                    "kills": dict(outcome.kills),
                    "runs": outcome.runs,
                    "wrong": outcome.wrong,
                    "stuck": outcome.stuck,
                    "undisturbed_seconds": round(seconds, 1),
                    "seconds_lost_per_kill": round((outcome.seconds - outcome.runs * seconds) / num_kills, 1),
                }
        finally:
            nodes.shutdown()
            for process in busy:
                process.kill()
    print("stage     actors  nodes  drivers  runs  wrong  seconds lost a kill")
    for name, row in results.items():
        kills = row["kills"]
        print(
            f"{name:9} {kills.get('actor', 0):6d} {kills.get('node', 0):6d} {kills.get('driver', 0):8d} "
            f"{row['runs']:5d} {len(row['wrong']):6d} {row['seconds_lost_per_kill']:20.1f}"
        )
    document = {
        "kills": sum(sum(row["kills"].values()) for row in results.values()),
        "load": args.load,
        "wrong_results": sum(len(row["wrong"]) for row in results.values()),
        "stuck": sum(row["stuck"] for row in results.values()),
        "stages": results,
    }
    write_results(args, document)


if __name__ == "__main__":
    main()

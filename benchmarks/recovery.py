"""How long a training stands still when its worker is killed.

A small training with one worker is struck by SIGKILL once, at a random time after its first checkpoint. Measured are
the seconds from the kill to the first step that is new, so steps that were taken before and lost are included, and how
many steps occur twice in the curves. Three runs.

    python benchmarks/recovery.py
"""

import contextlib
import os
import random
import signal
import statistics
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are imported

import psutil
import ray
from harness import make_parser, parse_arguments, write_results
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffplan.cluster.collect.coordinator import collect
from diffplan.cluster.runtime import ray_session
from diffplan.cluster.train.driver import train_on_cluster
from diffplan.config import Config, with_overrides
from diffplan.tasks.registry import get_preset


def make_config(num_steps: int) -> Config:
    """A training of some seconds, which logs every step and writes a checkpoint each 100."""
    overrides = {
        "collection.num_steps": 6_000,
        "collection.episode_steps": 300,
        "network.dim": 8,
        "network.dim_mults": [1, 2],
        "planning.horizon.max": 16,
        "training.num_steps": num_steps,
        "training.batch_size": 8,
        "training.log_interval": 1,
        "training.checkpoint_interval": 100,
        "training.picture_interval": 0,
    }
    return with_overrides(get_preset("maze2d-umaze-smoke"), overrides)


def kill_worker(run: Path, seconds: float, killed: list[float]) -> None:
    """Kill the training worker some seconds after the first checkpoint of a run, and note when."""
    while not list(run.glob("run/step_*/config.json")):
        time.sleep(0.05)
    time.sleep(seconds)
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("RayTrainWorker" in part for part in process.cmdline()):
                killed.append(time.time())
                os.kill(process.pid, signal.SIGKILL)
                return


def read_scalars(path: Path) -> list[tuple[int, float]]:
    """Steps of a curve and when they were written; of one file, or of a directory as TensorBoard shows it."""
    events = EventAccumulator(str(path), size_guidance={"scalars": 0})
    events.Reload()
    return [(scalar.step, scalar.wall_time) for scalar in events.Scalars("train/loss")]


def measure(config: Config, dataset: Path, run: Path, seconds: float) -> dict[str, float]:
    """Train, kill once, and look at the curves."""
    killed: list[float] = []
    thread = threading.Thread(target=kill_worker, args=(run, seconds, killed), daemon=True)
    thread.start()
    train_on_cluster(config, dataset, run, cpus_per_worker=1)
    if not killed:
        raise SystemExit("the training ended before the kill; give more --steps")
    first, _ = (read_scalars(path) for path in sorted((run / "tensorboard").iterdir(), key=lambda p: p.stat().st_ctime))
    shown = read_scalars(run / "tensorboard")
    last_step = max(step for step, _ in first)
    # Its last steps may not have reached the disk; but it would have written its curve out at the next checkpoint.
    interval = config.training.checkpoint_interval
    last_step += interval - 1 - last_step % interval
    new = min(when for step, when in shown if step > last_step)
    steps = [step for step, _ in shown]
    return {
        "killed_after_seconds": seconds,
        "killed_before_step": last_step + 1,
        "recovery_seconds": new - killed[0],
        "steps_twice": len(steps) - len(set(steps)),
        "steps_missing": config.training.num_steps - len(set(steps)),
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2_500, help="steps of a run")
    parser.add_argument("--seed", type=int, default=0, help="of the times of the kills")
    args = parse_arguments(parser, {"runs": 1})
    config, times = make_config(args.steps), random.Random(args.seed)
    with tempfile.TemporaryDirectory() as directory, ray_session():
        dataset = Path(directory) / "dataset"
        collect(config.env, config.collection, dataset)
        runs = [measure(config, dataset, Path(directory) / f"run{n}", times.uniform(0, 10)) for n in range(args.runs)]
    print("run  killed before step  seconds to the first new step  steps twice")
    for number, row in enumerate(runs):
        print(f"{number:3}  {row['killed_before_step']:18}  {row['recovery_seconds']:29.1f}  {row['steps_twice']:11}")
    seconds = [row["recovery_seconds"] for row in runs]
    document = {
        "ray": ray.__version__,
        "recovery_seconds_median": round(statistics.median(seconds), 1),
        "recovery_seconds_max": round(max(seconds), 1),
        "steps_twice": sum(row["steps_twice"] for row in runs),
        "steps_missing": sum(row["steps_missing"] for row in runs),
        "runs": [{name: round(value, 2) for name, value in row.items()} for row in runs],
    }
    write_results(args, document)


if __name__ == "__main__":
    main()

"""How fast planners are evaluated: many episodes at once, planning included, against one episode at a time.

Both run in one process on one core, turn by turn on the same episodes; a turn of single episodes takes a part of them,
for all would take minutes. Seconds are the processor's for this process, so that other programs on the machine count
as little as may be. Then the parts of one more block are measured. Actors run such blocks side by side, one on each
CPU.

    OMP_NUM_THREADS=1 python benchmarks/evaluation.py --model pretrained:maze2d-large
"""

from __future__ import annotations

import argparse
import json
import os
import platform as machine
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from diffplan.config import EnvConfig
from diffplan.evaluation.protocol import apply_protocol
from diffplan.evaluation.rollout import evaluate_episodes
from diffplan.planning.loading import load_planner
from diffplan.planning.planner import Planner
from diffplan.seeding import Stream
from diffplan_envs.maze_paths import MazePaths

from mujoco.batch import Batch  # isort: skip  (after our physics, which chooses what mujoco draws with)


def measure_parts(planner: Planner, env: EnvConfig, num: int) -> dict[str, float]:
    """Shares of the processor's time that parts of an evaluation take."""
    seconds: dict[str, float] = {"planning": 0.0, "physics": 0.0, "shortest ways": 0.0}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            since = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[name] += time.process_time() - since

        return call

    with (
        mock.patch.object(Planner, "plan", timed("planning", Planner.plan)),
        mock.patch.object(Batch, "step", timed("physics", Batch.step)),
        mock.patch.object(MazePaths, "shortest_lengths", timed("shortest ways", MazePaths.shortest_lengths)),
    ):
        since = time.process_time()
        evaluate_episodes(planner, env, range(num), seed=0, stream=Stream.TUNING)
        total = time.process_time() - since
    shares = {name: value / total for name, value in seconds.items()}
    return {**shares, "everything else": 1 - sum(shares.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pretrained:maze2d-large")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--single", type=int, default=4, help="episodes of a turn that are run one at a time")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("docs/results/evaluation.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    planner = load_planner(args.model)
    env = apply_protocol("multi2d", planner.config.env)
    evaluate_episodes(planner, env, [0], seed=0, stream=Stream.TUNING)  # what is computed once is computed here
    together, single = [], []
    for turn in range(args.turns):
        since = time.process_time()
        evaluate_episodes(planner, env, range(args.episodes), seed=turn, stream=Stream.TUNING)
        together.append((time.process_time() - since) / args.episodes)
        since = time.process_time()
        for episode in range(args.single):
            evaluate_episodes(planner, env, [episode], seed=turn, stream=Stream.TUNING)
        single.append((time.process_time() - since) / args.single)
        print(
            f"turn {turn}: {1000 * together[-1]:6.1f} ms an episode at once, {1000 * single[-1]:7.1f} ms alone",
            flush=True,
        )
    ratio = statistics.median(single) / statistics.median(together)
    print(f"{args.episodes} episodes at once: {ratio:.1f} x the episodes a second of one at a time")
    parts = measure_parts(planner, env, args.episodes)
    print("of the time at once: " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in parts.items()))
    result = {
        "command": f"OMP_NUM_THREADS=1 python benchmarks/evaluation.py --model {args.model}",
        "machine": f"{os.cpu_count()} CPU cores, {machine.machine()}, torch {torch.__version__}",
        "env_id": env.env_id,
        "protocol": "multi2d",
        "episodes_at_once": args.episodes,
        "seconds_an_episode_at_once": together,
        "seconds_an_episode_alone": single,
        "speedup_over_one_at_a_time": ratio,
        "shares_of_the_time_at_once": parts,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

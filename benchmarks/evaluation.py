"""How fast planners are evaluated: many episodes at once, planning included, against one episode at a time.

Both run in one process on one core, turn by turn on the same episodes; a turn of single episodes takes a part of them,
for all would take minutes. Actors run such blocks side by side, one on each CPU.

    OMP_NUM_THREADS=1 python benchmarks/evaluation.py --model pretrained:maze2d-large
"""

from __future__ import annotations

import argparse
import json
import os
import platform as machine
import statistics
import time
from pathlib import Path

import torch

from diffplan.evaluation.protocol import apply_protocol
from diffplan.evaluation.rollout import evaluate_episodes
from diffplan.planning.loading import load_planner
from diffplan.seeding import Stream


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
        since = time.perf_counter()
        evaluate_episodes(planner, env, range(args.episodes), seed=turn, stream=Stream.TUNING)
        together.append((time.perf_counter() - since) / args.episodes)
        since = time.perf_counter()
        for episode in range(args.single):
            evaluate_episodes(planner, env, [episode], seed=turn, stream=Stream.TUNING)
        single.append((time.perf_counter() - since) / args.single)
        print(
            f"turn {turn}: {1000 * together[-1]:6.1f} ms an episode at once, {1000 * single[-1]:7.1f} ms alone",
            flush=True,
        )
    ratio = statistics.median(single) / statistics.median(together)
    print(f"{args.episodes} episodes at once: {ratio:.1f} x the episodes a second of one at a time")
    result = {
        "command": f"OMP_NUM_THREADS=1 python benchmarks/evaluation.py --model {args.model}",
        "machine": f"{os.cpu_count()} CPU cores, {machine.machine()}, torch {torch.__version__}",
        "env_id": env.env_id,
        "protocol": "multi2d",
        "episodes_at_once": args.episodes,
        "seconds_an_episode_at_once": together,
        "seconds_an_episode_alone": single,
        "speedup_over_one_at_a_time": ratio,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

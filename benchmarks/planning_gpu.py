"""How fast plans are made on a GPU, against a CPU: batches of 1 to 1024 plans, and 100 episodes at once.

Runs without Ray. The noise in plans is drawn on the CPU, so both devices plan from the same noise; the largest
difference between their plans is reported too.

    python benchmarks/planning_gpu.py
    python benchmarks/planning_gpu.py --device cpu --largest 256
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch
from harness import make_parser, parse_arguments, require_gpu, write_results

from diffplan.environments import make_vector_env
from diffplan.evaluation.protocol import apply_protocol
from diffplan.evaluation.rollout import evaluate_episodes
from diffplan.planning.loading import load_planner
from diffplan.planning.planner import Planner
from diffplan.seeding import Stream


def draw_problems(planner: Planner, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and goals of Multi2D, float[num, 4] and float[num, 2]."""
    env = make_vector_env(apply_protocol("multi2d", planner.config.env), num)
    observations, infos = env.reset(seed=list(range(num)))  # pyright: ignore[reportArgumentType]  # a seed each
    env.close()
    return observations, np.array(infos["goal"])


def time_plans(planner: Planner, num: int, turns: int) -> tuple[float, np.ndarray]:
    """Median milliseconds of a call of `plan` for a batch, and the last positions but one of its plans.

    What is timed is the whole call, with the search over horizons; its result is on the CPU, so the GPU has finished.
    """
    observations, goals = draw_problems(planner, num)
    milliseconds, plans = [], []
    for turn in range(turns + 1):
        generator = torch.Generator().manual_seed(0)
        since = time.perf_counter()
        plans = planner.plan(observations, goals, generator)
        if turn:  # the first call loads kernels
            milliseconds.append(1000 * (time.perf_counter() - since))
    return statistics.median(milliseconds), np.stack([plan.observations[-2] for plan in plans])


def time_horizon(planner: Planner, num: int, horizon: int, turns: int) -> float:
    """Median milliseconds of plans of one horizon: one run of the sampler, without a search."""
    observations, goals = draw_problems(planner, num)
    milliseconds = []
    for turn in range(turns + 1):
        since = time.perf_counter()
        planner.plan_horizon(observations, goals, horizon, torch.Generator().manual_seed(0))
        if turn:
            milliseconds.append(1000 * (time.perf_counter() - since))
    return statistics.median(milliseconds)


def time_episodes(planner: Planner, num: int, turns: int) -> dict[str, Any]:
    """Seconds and scores of episodes at once, planning included."""
    env = apply_protocol("multi2d", planner.config.env)
    evaluate_episodes(planner, env, [0], seed=0, stream=Stream.TUNING)
    seconds, results = [], []
    for turn in range(turns):
        since = time.perf_counter()
        results += evaluate_episodes(planner, env, range(num), seed=turn, stream=Stream.TUNING)[0]
        seconds.append(time.perf_counter() - since)
    scores = [result.score for result in results if result.score is not None]
    return {
        "episodes_at_once": num,
        "milliseconds_an_episode": [1000 * value / num for value in seconds],
        "plan_milliseconds_an_episode": 1000 * sum(result.plan_seconds for result in results) / len(results),
        "score_mean": statistics.mean(scores),
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="pretrained:maze2d-large")
    parser.add_argument("--device", default="cuda", help="device that is compared with the CPU")
    parser.add_argument("--largest", type=int, default=1024, help="largest batch on the device")
    parser.add_argument("--largest-cpu", type=int, default=256, help="largest batch on the CPU, which takes seconds")
    parser.add_argument("--horizon", type=int, default=32)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="threads of the CPU")
    args = parse_arguments(parser, {"largest": 4, "largest_cpu": 4, "episodes": 4, "turns": 1})
    if args.device != "cpu":
        require_gpu()
    torch.set_num_threads(args.threads)
    devices = list(dict.fromkeys(["cpu", args.device]))
    planners = {device: load_planner(args.model, device=device) for device in devices}
    largest = {"cpu": args.largest_cpu, args.device: args.largest}
    rows = []
    print(f"{'batch':>6}" + "".join(f"{f'plan, {d}':>14}{f'one run, {d}':>16}" for d in devices) + "  milliseconds")
    for num in (2**i for i in range(max(largest.values()).bit_length())):
        row: dict[str, Any] = {"batch": num}
        ends = {}
        text = f"{num:>6}"
        for device in devices:
            if num > largest[device]:
                text += f"{'-':>14}{'-':>16}"
                continue
            plan, ends[device] = time_plans(planners[device], num, args.turns)
            run = time_horizon(planners[device], num, args.horizon, args.turns)
            row[device] = {"plan_milliseconds": plan, "one_run_milliseconds": run}
            text += f"{plan:>14.1f}{run:>16.1f}"
        if len(ends) == 2:
            # The median: a plan whose consistency is at the limit may get another horizon.
            row["median_difference"] = float(np.median(np.abs(ends["cpu"] - ends[args.device]).max(axis=1)))
        rows.append(row)
        print(text, flush=True)
    episodes = {device: time_episodes(planners[device], args.episodes, args.turns) for device in devices}
    for device, found in episodes.items():
        print(
            f"{args.episodes} episodes at once, planning on {device}: "
            f"{statistics.median(found['milliseconds_an_episode']):.1f} ms an episode, "
            f"{found['plan_milliseconds_an_episode']:.1f} ms of it planning; score {found['score_mean']:.1f}"
        )
    result = {
        "threads": args.threads,
        "horizon_of_one_run": args.horizon,
        "batches": rows,
        "episodes": episodes,
    }
    write_results(args, result)


if __name__ == "__main__":
    main()

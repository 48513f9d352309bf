"""One diffuser, never told a reward, asked for speeds when it plans: what was asked, and what the robot ran.

For each training seed: the preset `halfcheetah-speeds` is trained and calibrated, then asked for each speed, and asked
for nothing (the same planner without the constraint).

    python benchmarks/speeds.py
"""

from __future__ import annotations

import dataclasses
import os
import statistics
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are imported

import numpy as np
import torch
from harness import find_dataset, make_parser, parse_arguments, run_diffplan, write_results

from diffplan.config import EnvConfig
from diffplan.evaluation.protocol import apply_protocol
from diffplan.evaluation.rollout import evaluate_episodes
from diffplan.planning.loading import load_planner
from diffplan.planning.planner import Planner

PRESET = "halfcheetah-speeds"
SPEEDS = (2, 4, 6, 8)
"""Asked, in m/s."""
BARS = {"must": 1.3, "goal": 0.5}
"""Mean distance of the speed from the one asked, in m/s."""


def train(dataset: Path, out: Path, seed: int, num_steps: int) -> Path:
    """A planner with its companions; what is there is used, and an interrupted training goes on."""
    if not (out / "calibration.json").exists():
        steps = ["--training.num_steps", str(num_steps), "--training.seed", str(seed)]
        resume = ["--resume"] if out.exists() else []
        # A second core would be of little use to so small a model, and of much where other programs run.
        run_diffplan("train", [PRESET, "--data", dataset, "--out", out, "--cpus_per_worker", "1", *steps, *resume])
        run_diffplan("calibrate", [out])
    return out


def run(planner: Planner, env: EnvConfig, episodes: int, seed: int) -> dict[str, Any]:
    """The speeds of episodes under a protocol, or without one."""
    results, _ = evaluate_episodes(planner, env, list(range(episodes)), seed=seed)
    speeds = [float(result.metrics["forward_speed"] or 0.0) for result in results]
    return {"speeds": speeds, "mean": float(np.mean(speeds)), "std": float(np.std(speeds))}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="training seeds")
    parser.add_argument("--steps", type=int, default=60_000, help="training steps")
    parser.add_argument("--collection", type=int, default=400_000, help="environment steps of the data")
    parser.add_argument("--episodes", type=int, default=20, help="episodes of each speed and training seed")
    parser.add_argument("--seed", type=int, default=211, help="of the episodes")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/speeds"), help="where planners are kept")
    arguments = parse_arguments(parser, quick={"seeds": 1, "steps": 40, "collection": 8_000, "episodes": 1})
    torch.set_num_threads(1)
    dataset = find_dataset(PRESET, arguments.collection)
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        size = f"{arguments.collection}-{arguments.steps}"
        checkpoint = train(dataset, arguments.out / f"{size}-seed{seed}", seed, arguments.steps)
        planner = load_planner(checkpoint)
        env = planner.config.env
        limit = {"max_episode_steps": 30} if arguments.quick else {}
        for asked in (None, *SPEEDS):
            own = env if asked is None else apply_protocol(f"speed-{asked}", env)
            own = dataclasses.replace(own, env_kwargs={**own.env_kwargs, **limit})
            rows.append({"seed": seed, "asked": asked, **run(planner, own, arguments.episodes, arguments.seed)})
    show(rows, arguments.seeds)
    errors = [abs(row["mean"] - row["asked"]) for row in rows if row["asked"] is not None]
    write_results(arguments, {"bars": BARS, "mean_error": statistics.mean(errors), "rows": rows})


def show(rows: list[dict[str, Any]], num_seeds: int) -> None:
    """Print a line for each speed."""
    print(f"mean speed in m/s over the episodes of each of {num_seeds} training seeds")
    print(f"{'asked':>8} {'mean':>7} {'error':>7}   each seed")
    for asked in (None, *SPEEDS):
        means = [row["mean"] for row in rows if row["asked"] == asked]
        error = "" if asked is None else f"{statistics.mean(abs(mean - asked) for mean in means):.2f}"
        each = ", ".join(f"{mean:.2f}" for mean in means)
        print(f"{'nothing' if asked is None else asked!s:>8} {statistics.mean(means):7.2f} {error:>7}   {each}")


if __name__ == "__main__":
    main()

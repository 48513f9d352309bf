"""Whether a value learned from random actions plans: Pendulum-v1 by the default task, with and without the value.

For each seed of data, training and value the whole pipeline runs as `diffplan pipeline gymnasium` does: collect, train,
calibrate, search, evaluate. The same planner without its value and random actions, which is what the data come from,
are evaluated on the same episodes.

    python benchmarks/pendulum.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import make_parser, make_scratch, parse_arguments, run_diffplan, write_results

ENV_ID = "Pendulum-v1"
QUICK = [
    *("--collection.num_steps", "2000", "--collection.episodes_per_unit", "5"),
    *("--training.num_steps", "20"),
    *("--search.num_trials", "1", "--search.episodes_per_block", "2", "--search.num_blocks", "1"),
]
"""Sizes that only show that it works."""


def evaluate(policy: str | Path, out: Path, episodes: int, options: Sequence[str | Path] = ()) -> dict[str, Any]:
    """The summary of a policy on the episodes of the pipeline."""
    run_diffplan("evaluate", [policy, "--out", out, "--episodes", str(episodes), *options])
    return json.loads((out / "summary.json").read_text())


def measure_seed(run: Path, seed: int, episodes: int, options: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of one seed: the pipeline, the same planner without its value, and random actions."""
    seeds = ["--collection.seed", str(seed), "--training.seed", str(seed), "--search.seed", str(seed)]
    environment = ["--env.env_id", ENV_ID]
    size = ["--episodes", str(episodes), "--out", run]
    run_diffplan("pipeline", ["gymnasium", *environment, *size, *seeds, *options])
    stages = {stage["name"]: stage["seconds"] for stage in json.loads((run / "pipeline.json").read_text())["stages"]}
    best = run / "search" / "best.json"
    without = ["--settings", best, "--planning.guidance.value", "None"]
    summaries = {
        "value": json.loads((run / "evaluation" / "default" / "summary.json").read_text()),
        "no value": evaluate(run / "checkpoint", run / "no_value", episodes, without),
        "random": evaluate("baseline:random", run / "random", episodes, environment),
    }
    kept = ("return_mean", "score_ci95", "plan_seconds_mean", "episodes")
    rows = [{"seed": seed, "method": name, **{key: found[key] for key in kept}} for name, found in summaries.items()]
    rows[0] |= {"settings": json.loads(best.read_text())["settings"], "stage_seconds": stages}
    return rows


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="of data, training and value")
    parser.add_argument("--episodes", type=int, default=100)
    args = parse_arguments(parser, {"seeds": 1, "episodes": 2})
    rows: list[dict[str, Any]] = []
    with make_scratch() as scratch:
        for seed in range(args.seeds):
            rows += measure_seed(Path(scratch) / str(seed), seed, args.episodes, QUICK if args.quick else [])
    print("seed  method      return  95 % interval        pipeline")
    for row in rows:
        low, high = row["score_ci95"]
        seconds = f"{sum(row['stage_seconds'].values()):6.0f} s" if "stage_seconds" in row else ""
        print(f"{row['seed']:4d}  {row['method']:8s}  {row['return_mean']:8.1f}  [{low:7.1f}, {high:7.1f}]  {seconds}")
    means = {
        method: float(np.mean([row["return_mean"] for row in rows if row["method"] == method]))
        for method in ("value", "no value", "random")
    }
    print("mean over seeds: " + ", ".join(f"{method} {mean:.1f}" for method, mean in means.items()))
    write_results(args, {"env_id": ENV_ID, "return_mean": means, "rows": rows})


if __name__ == "__main__":
    main()

"""Milliseconds of one plan of block stacking on one core, one environment at a time, for each protocol.

CPU time of one thread, so that other programs on the machine count little; the median over plans, with the protocols
taking turns.

    python benchmarks/stacking_plans.py
"""

from __future__ import annotations

import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are imported

import numpy as np
import torch
from harness import make_parser, parse_arguments, write_results

from diffplan.environments import make_vector_env
from diffplan.evaluation.protocol import apply_protocol
from diffplan.planning.loading import load_planner
from diffplan.tasks.stacking.asking import ask_for_pairs

BARS = {"unconditional": 100, "conditional": 40}
"""Goals, in ms."""
PROTOCOLS = (*BARS, "rearrangement")


def main() -> None:
    """Print a table of milliseconds."""
    parser = make_parser(__doc__)
    parser.add_argument("--plans", type=int, default=40, help="plans of each protocol")
    arguments = parse_arguments(parser, {"plans": 2})
    torch.set_num_threads(1)
    planner, generator = load_planner("pretrained:stacking"), torch.Generator().manual_seed(0)
    found: dict[str, list[float]] = {protocol: [] for protocol in PROTOCOLS}
    for number in range(arguments.plans + 1):
        for protocol in PROTOCOLS:
            env = apply_protocol(protocol, planner.config.env)
            batch = make_vector_env(env, 1)
            observations, infos = batch.reset(seed=number)
            stage = ask_for_pairs(env, observations, infos).stage
            constraints = () if stage is None else stage(observations, np.zeros(1, dtype=int)).constraints
            since = time.process_time()
            planner.plan(observations, None, generator, constraints=constraints)
            found[protocol].append(1000 * (time.process_time() - since))
            batch.close()
    rows = {name: statistics.median(values[1:]) for name, values in found.items()}  # the first plan warms up
    print(f"{'protocol':16} {'CPU ms a plan':>14} {'goal':>6}")
    for name, value in rows.items():
        print(f"{name:16} {value:14.1f} {BARS.get(name, ''):>6}")
    write_results(arguments, {"cpu_ms_per_plan": rows, "bars": BARS, "plans": arguments.plans})


if __name__ == "__main__":
    main()

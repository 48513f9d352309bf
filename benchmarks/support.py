"""What it is worth that plans keep to where the data have been: the same planners with `max_departure` and without.

How many first plans lead through a wall, of which the planner knows nothing; what that costs in steps at walls and in
the score. The settings are those that came with the planner, chosen with the limit; so each planner is also shown
as careful without it: with smaller speed errors.

    python benchmarks/support.py
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are imported

import numpy as np
import torch
from harness import make_parser, parse_arguments, write_results

from diffplan.config import Tracking
from diffplan.evaluation.protocol import apply_protocol
from diffplan.evaluation.rollout import evaluate_episodes
from diffplan.evaluation.scores import compute_interval
from diffplan.planning.control.policy import PlanningPolicy
from diffplan.planning.interpolation import interpolate
from diffplan.planning.loading import load_planner
from diffplan.planning.planner import with_settings
from diffplan.tasks.maze2d.environment import get_maze
from diffplan.types import Plan

MAZES = ("umaze", "medium", "large")
VARIANTS: dict[str, dict[str, float]] = {
    "kept to the data": {},
    "not kept": {"horizon.max_departure": 0.0},
    "not kept, speed errors of two thirds": {"horizon.max_departure": 0.0, "horizon.max_speed_error": 2 / 3},
    "not kept, speed errors of a third": {"horizon.max_departure": 0.0, "horizon.max_speed_error": 1 / 3},
}
"""Settings that are changed; speed errors are factors."""


def measure(maze: str, variant: str, protocol: str, episodes: int, seed: int) -> dict[str, Any]:
    """Evaluate a variant of a planner."""
    torch.set_num_threads(1)
    planner = load_planner(f"pretrained:maze2d-{maze}")
    changes = dict(VARIANTS[variant])
    if "horizon.max_speed_error" in changes:
        assert planner.settings.horizon.max_speed_error is not None
        changes["horizon.max_speed_error"] *= planner.settings.horizon.max_speed_error
    planner = with_settings(planner, changes)
    env = apply_protocol(protocol, planner.config.env)
    plans: list[Plan] = []
    reset = PlanningPolicy.reset

    def keep(policy: PlanningPolicy, observations: np.ndarray, goals: np.ndarray) -> None:
        reset(policy, observations, goals)
        plans.extend(policy.plans)

    with mock.patch.object(PlanningPolicy, "reset", keep):
        results, _ = evaluate_episodes(planner, env, range(episodes), seed=seed)
    layout, columns = get_maze(env), list(env.position_columns)
    assert layout is not None
    controller = planner.settings.controller
    assert isinstance(controller, Tracking)
    through_walls = []
    for plan in plans:
        every_step = np.arange((plan.horizon - 1) * plan.stride + 1.0)
        way = interpolate(plan, env, every_step, controller.interpolation)[:, columns]
        through_walls.append(not layout.is_free(way).all())
    scores = [result.score for result in results]
    return {
        "maze": maze,
        "protocol": protocol,
        "variant": variant,
        "settings": {name: getattr(planner.settings.horizon, name) for name in ("max_departure", "max_speed_error")},
        "episodes": episodes,
        "score_mean": float(np.mean(scores)),
        "score_ci95": compute_interval(scores),
        "success_rate": float(np.mean([bool(result.success) for result in results])),
        "plans_through_walls": float(np.mean(through_walls)),
        "wall_steps_mean": float(np.mean([result.get_metric("collision_steps") or 0 for result in results])),
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--mazes", nargs="+", default=list(MAZES), choices=MAZES)
    parser.add_argument("--episodes", type=int, default=100, help="of each protocol and variant")
    parser.add_argument("--seed", type=int, default=101)
    args = parse_arguments(parser, {"mazes": ["umaze"], "episodes": 2})
    cells = [(m, v, p) for m in args.mazes for p in ("maze2d", "multi2d") for v in VARIANTS]
    rows = []
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(measure, *cell, args.episodes, args.seed) for cell in cells]
        print(f"{'':50}      score   success  through a wall  steps at walls")
        for job in jobs:
            row = job.result()
            rows.append(row)
            print(
                f"{row['maze']:7} {row['protocol']:8} {row['variant']:37} {row['score_mean']:7.1f}  "
                f"{row['success_rate']:8.1%}  {row['plans_through_walls']:14.1%}  {row['wall_steps_mean']:14.1f}",
                flush=True,
            )
    write_results(args, {"rows": rows, "seed": args.seed})


if __name__ == "__main__":
    main()

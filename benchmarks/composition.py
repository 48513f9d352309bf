"""Zero-shot composition on Maze2D-Large: constraints that training never saw, put together at planning time.

* Keep-out zones: a disc on the way that the planner would otherwise take, while another way exists.
* Way-points: two positions to pass in order before the goal, at times that the planner chooses.

Problems are drawn at random. Every plan is examined at 16 points between two of its steps. With a zone, the policy
drives: it plans again where the ball strays from the plan, always with the zone. With way-points, the one plan is
followed by the tracking controller without planning again.

    python benchmarks/composition.py --seed 2029
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are imported

import numpy as np
import torch
from harness import make_parser, parse_arguments, write_results
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from diffplan.environments import make_env
from diffplan.planning.constraints import Fixed
from diffplan.planning.control.policy import PlanningPolicy
from diffplan.planning.control.registry import ControllerContext, make_controller
from diffplan.planning.interpolation import interpolate
from diffplan.planning.loading import load_planner
from diffplan.planning.planner import Planner, with_settings
from diffplan.seeding import Stream, make_generator
from diffplan.tasks.maze2d.environment import require_maze
from diffplan.tasks.maze2d.figures import GOAL_COLOR, START_COLOR, draw_maze, draw_path, mark
from diffplan.types import Plan

POINTS_PER_STEP = 16
REACHED = 0.5
"""Distance within which a goal counts as reached, as in D4RL."""
EPISODE_STEPS = 800
"""Steps of an episode on Maze2D-Large."""
PASSED = 0.3
"""Distance within which the followed path must pass a way-point."""


@dataclass(frozen=True)
class ComposedProblem:
    """A start and goal with a zone to keep out of, or with way-points."""

    start: np.ndarray
    goal: np.ndarray
    center: np.ndarray | None = None
    radius: float = 0.0
    via: np.ndarray | None = None


def find_path_length(maze: Any, start: np.ndarray, goal: np.ndarray, blocked: set[tuple[int, int]]) -> int | None:
    """Moves between the cells of two positions around blocked cells; None where there is no way."""
    source, target = (tuple(int(c) for c in maze.cell_at(p)) for p in (start, goal))
    frontier, seen, moves = [source], {source}, 0
    while frontier:
        if target in seen:
            return moves
        frontier = [
            cell
            for i, j in frontier
            for cell in ((i, j - 1), (i, j + 1), (i - 1, j), (i + 1, j))
            if not maze.walls[cell] and cell not in blocked and cell not in seen and not seen.add(cell)  # type: ignore[func-returns-value]
        ]
        moves += 1
    return None


def draw_position(maze: Any, generator: np.random.Generator) -> np.ndarray:
    """A position as Multi2D draws its goals: a free cell and a little beside it."""
    return generator.choice(maze.free_cells) + generator.uniform(-0.1, 0.1, 2)


def draw_zone_problem(planner: Planner, maze: Any, number: int, seed: int) -> ComposedProblem:
    """A problem whose zone lies on the plan that is made without it, and that has another way."""
    generator = make_generator(seed, Stream.EVALUATION, number, 3)
    centers = np.array(maze.free_cells) - 0.2
    while True:
        start, goal = draw_position(maze, generator), draw_position(maze, generator)
        direct = find_path_length(maze, start, goal, set())
        radius, share = generator.uniform(0.25, 0.5), generator.uniform(0.3, 0.7)
        if direct is None or direct < 4:
            continue
        path = follow_plan(planner, plan_freely(planner, start, goal, number))
        center = path[round(share * (len(path) - 1))]
        near = [maze.cell_at(c) for c in centers if np.linalg.norm(c - center) < radius + 0.35]
        blocked = {(int(i), int(j)) for i, j in near}
        clear = min(np.linalg.norm(center - start), np.linalg.norm(center - goal)) > radius + 0.4
        around = find_path_length(maze, start, goal, blocked)
        if clear and around is not None and around <= 20:
            return ComposedProblem(start, goal, center, radius)


def draw_waypoint_problem(maze: Any, number: int, seed: int) -> ComposedProblem:
    """Two way-points in random cells, with at least two moves between any two points on the way and 24 in all."""
    generator = make_generator(seed, Stream.EVALUATION, number, 4)
    while True:
        points = [draw_position(maze, generator) for _ in range(4)]
        legs = [find_path_length(maze, a, b, set()) for a, b in pairwise(points)]
        if all(leg is not None and leg >= 2 for leg in legs) and sum(leg or 0 for leg in legs) <= 24:
            return ComposedProblem(points[0], points[3], via=np.stack(points[1:3]))


def at_rest(position: np.ndarray) -> np.ndarray:
    """An observation, float32[1, 4]."""
    return np.concatenate([position, np.zeros(2)]).astype(np.float32)[None]


def plan_freely(planner: Planner, start: np.ndarray, goal: np.ndarray, seed: int) -> Plan:
    """A plan that knows of nothing but start and goal."""
    (plan,) = planner.plan(at_rest(start), goal[None], torch.Generator().manual_seed(seed))
    return plan


def follow_plan(planner: Planner, plan: Plan) -> np.ndarray:
    """Positions along a plan, float[points, 2]."""
    times = np.arange((plan.horizon - 1) * POINTS_PER_STEP + 1) * plan.stride / POINTS_PER_STEP
    return interpolate(plan, planner.config.env, times, "hermite")[:, list(planner.config.env.position_columns)]


def execute(planner: Planner, plan: Plan, problem: ComposedProblem) -> np.ndarray:
    """Positions of the ball when it follows a plan, float[steps, 2]; some steps longer than the plan."""
    settings = planner.settings
    controller = make_controller(settings.controller.kind, ControllerContext(planner.config.env, settings))
    controller.reset([plan])
    return drive(planner, problem, controller.act, (plan.horizon - 1) * plan.stride + 50)


def pursue(planner: Planner, problem: ComposedProblem, seed: int) -> tuple[list[Plan], np.ndarray]:
    """All plans of a policy that plans again where it strays from its plan, and the positions of the ball."""
    policy = PlanningPolicy(planner, torch.Generator().manual_seed(seed))
    policy.reset(at_rest(problem.start), problem.goal[None])
    plans = [policy.plans[0]]

    def act(observations: np.ndarray) -> np.ndarray:
        actions = policy.act(observations)
        if policy.plans[0] is not plans[-1]:
            plans.append(policy.plans[0])
        return actions

    return plans, drive(planner, problem, act, EPISODE_STEPS)


def drive(
    planner: Planner, problem: ComposedProblem, act: Callable[[np.ndarray], np.ndarray], num_steps: int
) -> np.ndarray:
    """Positions of the ball in so many steps, float[steps + 1, 2]."""
    env = make_env(planner.config.env, max_episode_steps=10_000)
    options = {"observation": at_rest(problem.start)[0].tolist(), "goal": problem.goal.tolist()}
    observation, _ = env.reset(seed=0, options=options)
    positions = [observation[:2].copy()]
    for _ in range(num_steps):
        observation, *_ = env.step(act(observation[None])[0])
        positions.append(observation[:2].copy())
    env.close()
    return np.array(positions)


def solve(model: str, kind: str, number: int, args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Draw, plan and follow one problem; what came of it, and the paths to draw."""
    torch.set_num_threads(1)
    planner = with_settings(
        load_planner(model),
        {
            "horizon.max_speed_error": args.max_speed_error,
            "sampling.num_steps": args.num_sampling_steps,
            "guidance.target": args.guide_target,
            "guidance.stop_step": args.guide_stop_step,
            "sampling.sampler": args.sampler,
            "selection.rule": "consistency",
            "controller.pace": 1.0,
            "controller.max_lag": 0.0,
            "replanning.max_deviation": 0.7,
        },
    )
    maze = require_maze(planner.config.env, "benchmark")
    problem = (
        draw_zone_problem(planner, maze, number, args.seed)
        if kind == "keep_out"
        else draw_waypoint_problem(maze, number, args.seed)
    )
    generator = torch.Generator().manual_seed(number)
    start = time.perf_counter()
    if kind == "keep_out":
        (x, y), radius = problem.center.tolist(), problem.radius  # type: ignore[union-attr]
        guided = with_settings(
            planner,
            {
                "guidance.guides": (f"keep_out([{x}, {y}], {radius}, margin={args.margin})",),
                "guidance.scale": args.guidance_scale,
                "selection.num_candidates": args.num_candidates,
                "horizon.max": args.max_horizon,
                "horizon.rule": "scan",
            },
        )
        plans, driven = pursue(guided, problem, number)
        plan = plans[0]
    else:
        (plan,) = planner.plan(
            at_rest(problem.start),
            problem.goal[None],
            generator,
            constraints=[Fixed(position) for position in problem.via],  # type: ignore[union-attr]
            num_candidates=args.num_candidates,
        )
        plans, driven = [plan], execute(planner, plan, problem)
    seconds = (time.perf_counter() - start) / len(plans)
    path, free = (
        follow_plan(planner, plan),
        follow_plan(planner, plan_freely(planner, problem.start, problem.goal, number)),
    )
    result: dict[str, Any] = {
        "horizon": plan.horizon,
        "consistent": plan.consistent,
        "plan_in_walls": float((~maze.is_free(path)).mean()),
        "reached": bool((np.linalg.norm(driven - problem.goal, axis=1) <= REACHED).any()),
        "num_plans": len(plans),
        "plan_seconds": seconds,
    }
    if kind == "keep_out":
        paths = [np.concatenate([follow_plan(planner, p) for p in plans]), driven, free]
        depths = [problem.radius - np.linalg.norm(p - problem.center, axis=1).min() for p in paths]
        result |= dict(zip(("plan_depth", "driven_depth", "unguided_depth"), map(float, depths), strict=True))
        result["plan_violates"], result["driven_violates"] = depths[0] > 1e-4, depths[1] > 1e-4
        # A drive that was pushed into the zone is planned again from inside, where no plan can keep out from the start.
        outside = [p for p in plans if np.linalg.norm(p.observations[0, :2] - problem.center) >= problem.radius]
        result["plans_from_inside"] = len(plans) - len(outside)
        result["plans_violating_from_outside"] = sum(
            bool(problem.radius - np.linalg.norm(follow_plan(planner, p) - problem.center, axis=1).min() > 1e-4)
            for p in outside
        )
    else:
        reached = [pass_in_order(p, problem.via, limit) for p, limit in ((path, 1e-3), (driven, PASSED))]  # type: ignore[arg-type]
        result["plan_violates"], result["driven_violates"] = (not passed for passed in reached)
    arrays = {"plan": path, "driven": driven, "free": free, "start": problem.start, "goal": problem.goal}
    if problem.center is not None:
        arrays |= {"center": problem.center, "radius": np.array(problem.radius)}
    if problem.via is not None:
        arrays["via"] = problem.via
    return {k: bool(v) if isinstance(v, np.bool_) else v for k, v in result.items()}, arrays


def pass_in_order(path: np.ndarray, via: np.ndarray, limit: float) -> bool:
    """Whether a path comes near every way-point, one after the other."""
    first = 0
    for point in via:
        near = np.flatnonzero(np.linalg.norm(path[first:] - point, axis=1) <= limit)
        if not near.size:
            return False
        first += int(near[0])
    return True


def summarize(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares over all problems."""
    mean = {name: float(np.mean([r[name] for r in results])) for name in ("consistent", "reached", "plan_in_walls")}
    summary = {
        "problems": len(results),
        "plans": int(sum(r["num_plans"] for r in results)),
        "plans_violating": int(sum(r["plan_violates"] for r in results)),
        "driven_violating": int(sum(r["driven_violates"] for r in results)),
        "success_rate": float(np.mean([r["reached"] and not r["plan_violates"] for r in results])),
        "driven_success_rate": float(np.mean([r["reached"] and not r["driven_violates"] for r in results])),
        "plan_seconds_median": float(np.median([r["plan_seconds"] for r in results])),
        **mean,
    }
    if "unguided_depth" in results[0]:
        for name in ("plans_from_inside", "plans_violating_from_outside"):
            summary[name] = int(sum(r[name] for r in results))
        summary["unguided_plans_violating"] = int(sum(r["unguided_depth"] > 1e-4 for r in results))
        summary["driven_depth_max"] = max(r["driven_depth"] for r in results)
    return summary


def draw(maze: Any, zones: list[dict[str, np.ndarray]], waypoints: list[dict[str, np.ndarray]], path: Path) -> None:
    """Some problems of both kinds: dashed the plan without the zone, in colour the path that was driven."""
    figure = Figure(figsize=(13, 5.1), layout="constrained")
    for row, examples in zip(figure.subplots(2, 4), (zones, waypoints), strict=True):
        for axes, example in zip(row, examples, strict=False):
            draw_maze(axes, maze, border=0.4)
            if "center" in example:
                center = example["center"][::-1]
                axes.add_patch(Circle(tuple(center), float(example["radius"]), color="#c8452f", alpha=0.55, zorder=2))
                axes.plot(*example["free"].T[::-1], color="black", linewidth=1, linestyle=(0, (3, 2)), zorder=2.5)
            draw_path(axes, example["driven"])
            for number, point in enumerate(example.get("via", ()), 1):
                mark(axes, point, "#e0a526", "D", 60)
                axes.annotate(str(number), point[::-1] + 0.25, fontsize=10, zorder=6)
            mark(axes, example["start"], START_COLOR)
            mark(axes, example["goal"], GOAL_COLOR, "*", 150)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="pretrained:maze2d-large", help="a checkpoint of Maze2D-Large")
    parser.add_argument("--problems", type=int, default=100, help="of each kind")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--guide-target", default="denoised")
    parser.add_argument("--guide-stop-step", type=int, default=8)
    parser.add_argument("--sampler", default="ddpm")
    parser.add_argument("--margin", type=float, default=0.15)
    parser.add_argument("--num-candidates", type=int, default=4)
    parser.add_argument("--num-sampling-steps", type=int, default=32)
    parser.add_argument("--max-speed-error", type=float, default=2.0)
    parser.add_argument("--max-horizon", type=int, default=96)
    args = parse_arguments(parser, {"problems": 2})
    summaries, pictures = {}, {}
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for kind in ("keep_out", "waypoints"):
            jobs = [pool.submit(solve, args.model, kind, i, args) for i in range(args.problems)]
            solved = [job.result() for job in jobs]
            results = [result for result, _ in solved]
            summaries[kind] = {**summarize(results), "results": results}
            pictures[kind] = [arrays for _, arrays in solved[:4]]
    names = dict.fromkeys(name for summary in summaries.values() for name in summary if name != "results")
    print(f"{'':30}" + "".join(f"{kind:>12}" for kind in summaries))
    for name in names:
        cells = [f"{summary[name]:12.4g}" if name in summary else " " * 12 for summary in summaries.values()]
        print(f"{name:30}" + "".join(cells).rstrip())
    settings = {name: str(value) for name, value in vars(args).items() if name not in ("json", "quick", "model")}
    write_results(args, {**summaries, "settings": settings})
    if args.json is not None:
        maze = require_maze(load_planner(args.model).config.env, "benchmark")
        draw(maze, pictures["keep_out"], pictures["waypoints"], args.json.with_suffix(".png"))


if __name__ == "__main__":
    main()

"""How fast plans are made, and what the speed costs in score. All of a maze is measured in one run, side by side.

* One plan, horizon chosen, for one environment on one CPU core; and one made again from what is left of it later.
* A sampler loop of the paper's kind (its network and step counts; Janner et al. 2022), unoptimised, on the same core.
* Many plans in one call against as many one call each.
* Scores of the fast settings and, on the same episodes, of the same model with every diffusion step and a scan over all
  horizons; and with warm-started replanning.

The planners are those that come with the package, or with `--models MODELS` the checkpoints MODELS/umaze,
MODELS/medium and MODELS/large, trained by the presets of these names and calibrated (`diffplan calibrate`).

    python benchmarks/planning.py
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are imported

import numpy as np
import torch
from harness import make_parser, parse_arguments, write_results
from scipy import stats

from diffplan.config import NetworkConfig
from diffplan.diffusion.schedule import make_cosine_schedule
from diffplan.environments import make_vector_env
from diffplan.evaluation.protocol import apply_protocol
from diffplan.evaluation.rollout import evaluate_episodes
from diffplan.evaluation.scores import compute_interval
from diffplan.networks.temporal_unet import TemporalUnet
from diffplan.planning.interpolation import interpolate
from diffplan.planning.loading import load_planner
from diffplan.planning.planner import Planner, with_settings
from diffplan.seeding import Stream, make_seed
from diffplan.types import Plan

PAPER = {"umaze": (128, 64), "medium": (256, 256), "large": (384, 256)}
"""Horizon and diffusion steps of Janner et al. 2022 (`config/maze2d.py` of its code)."""
EPISODES_AT_ONCE = 25


def draw_problems(planner: Planner, num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and goals of Multi2D."""
    env = make_vector_env(apply_protocol("multi2d", planner.config.env), num)
    seeds = [make_seed(seed, Stream.EVALUATION, i, 2) for i in range(num)]
    observations, infos = env.reset(seed=seeds)  # pyright: ignore[reportArgumentType]  # a seed each
    goals = np.array(infos["goal"])
    env.close()
    return observations.astype(np.float32), goals.astype(np.float32)


def time_calls(calls: Iterator[Callable[[], object]], warm_up: int = 5) -> list[float]:
    """Milliseconds of each call but the first few."""
    times = []
    for call in calls:
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return times[warm_up:]


def time_single(planner: Planner, starts: np.ndarray, goals: np.ndarray) -> tuple[list[float], list[Plan]]:
    """Milliseconds of single plans, and the plans."""
    generator, plans = torch.Generator().manual_seed(0), []
    rows = range(len(starts))
    times = time_calls(
        (lambda i=i: plans.extend(planner.plan(starts[i : i + 1], goals[i : i + 1], generator))) for i in rows
    )
    return times, plans


def time_warm(planner: Planner, plans: list[Plan], goals: np.ndarray, elapsed: int) -> list[float]:
    """Milliseconds of planning again, a little way into each plan and a little beside it."""
    generator, noise = torch.Generator().manual_seed(0), np.random.default_rng(0)
    env = planner.config.env
    observations = [interpolate(plan, env, np.array([elapsed]), "hermite") for plan in plans]
    observations = [o + noise.normal(0, 0.02, o.shape) for o in observations]
    steps = np.array([elapsed])
    return time_calls(
        (lambda i=i: planner.replan([plans[i]], steps, observations[i], goals[i : i + 1], generator))
        for i in range(len(plans))
    )


@torch.no_grad()
def sample_like_the_paper(
    network: torch.nn.Module, start: np.ndarray, goal: np.ndarray, horizon: int, num_steps: int
) -> None:
    """Ancestral sampling as in the code of Janner et al. 2022: every step, conditions put in place by indexing."""
    schedule = make_cosine_schedule(num_steps)
    alpha_bar = schedule.alpha_bar.float()
    alpha_bar_before = torch.cat([torch.ones(1), alpha_bar[:-1]])
    beta = 1 - alpha_bar / alpha_bar_before
    clean_share = beta * alpha_bar_before.sqrt() / (1 - alpha_bar)
    noisy_share = (1 - alpha_bar_before) * (1 - beta).sqrt() / (1 - alpha_bar)
    log_variance = torch.log((beta * (1 - alpha_bar_before) / (1 - alpha_bar)).clamp(min=1e-20))
    conditions = {
        0: torch.from_numpy(start),
        horizon - 1: torch.from_numpy(np.concatenate([goal, [0.0, 0.0]]).astype(np.float32)),
    }

    def condition(x: torch.Tensor) -> torch.Tensor:
        for step, value in conditions.items():
            x[:, step, 2:] = value.clone()
        return x

    x = condition(torch.randn(1, horizon, 6))
    for step in reversed(range(num_steps)):
        steps = torch.full((1,), step, dtype=torch.long)
        clean = network(x, steps).clamp(-1, 1)
        mean = clean_share[steps][:, None, None] * clean + noisy_share[steps][:, None, None] * x
        nonzero = (1 - (steps == 0).float())[:, None, None]
        x = condition(mean + nonzero * (0.5 * log_variance[steps][:, None, None]).exp() * torch.randn_like(x))


def time_paper(maze: str, starts: np.ndarray, goals: np.ndarray, repeats: int) -> list[float]:
    """Milliseconds of plans by the paper's network (untrained: weights do not change the time) and step counts."""
    horizon, num_steps = PAPER[maze]
    network = TemporalUnet(6, NetworkConfig(dim=32, dim_mults=(1, 4, 8))).eval()
    return time_calls(
        (
            (lambda i=i: sample_like_the_paper(network, starts[i] / 12, goals[i] / 12, horizon, num_steps))
            for i in range(repeats)
        ),
        warm_up=0,
    )


def time_batched(planner: Planner, starts: np.ndarray, goals: np.ndarray, repeats: int) -> dict[str, float]:
    """Plans per second, in one call and in one call each, taking turns; with all cores for both."""
    generator = torch.Generator().manual_seed(0)
    torch.set_num_threads(os.cpu_count() or 1)
    planner.plan(starts, goals, generator)
    rates: dict[str, list[float]] = {"batched": [], "single": []}
    for _ in range(repeats):
        start = time.perf_counter()
        planner.plan(starts, goals, generator)
        rates["batched"].append(len(starts) / (time.perf_counter() - start))
        start = time.perf_counter()
        for i in range(len(starts)):
            planner.plan(starts[i : i + 1], goals[i : i + 1], generator)
        rates["single"].append(len(starts) / (time.perf_counter() - start))
    torch.set_num_threads(1)
    medians = {f"{name}_plans_per_second": statistics.median(values) for name, values in rates.items()}
    speedup = statistics.median(b / s for b, s in zip(rates["batched"], rates["single"], strict=True))
    return {**medians, "batched_speedup": speedup}


def score_block(checkpoint: str, changes: dict[str, Any], protocol: str, first: int, last: int, seed: int) -> list[Any]:
    """Results of a block of episodes."""
    torch.set_num_threads(1)
    planner = with_settings(load_planner(checkpoint), changes)
    env = apply_protocol(protocol, planner.config.env)
    return evaluate_episodes(planner, env, range(first, last), seed=seed)[0]


def score_variants(
    pool: ProcessPoolExecutor, checkpoint: str, variants: dict[str, dict[str, Any]], episodes: int, seed: int
) -> dict[str, Any]:
    """Scores of settings on the same episodes, and how each compares with `many_steps`."""
    jobs = {
        (protocol, name, first): pool.submit(
            score_block, checkpoint, changes, protocol, first, min(first + EPISODES_AT_ONCE, episodes), seed
        )
        for protocol in ("maze2d", "multi2d")
        for name, changes in variants.items()
        for first in range(0, episodes, EPISODES_AT_ONCE)
    }
    results: dict[str, Any] = {}
    for protocol in ("maze2d", "multi2d"):
        scores = {
            name: [r for (p, n, _), job in jobs.items() if (p, n) == (protocol, name) for r in job.result()]
            for name in variants
        }
        reference = np.array([r.score for r in scores["many_steps"]])
        for name, episodes_of in scores.items():
            values = np.array([r.score for r in episodes_of])
            ratio = (
                stats.bootstrap(
                    (values, reference),
                    lambda a, b, axis: a.mean(axis=axis) / b.mean(axis=axis),
                    paired=True,
                    vectorized=True,
                    n_resamples=4_000,
                    method="percentile",
                    rng=np.random.default_rng(0),
                ).confidence_interval
                if name != "many_steps"
                else None
            )
            results[f"{protocol}_{name}"] = {
                "episodes": len(values),
                "score_mean": float(values.mean()),
                "score_ci95": compute_interval(values.tolist()),
                "success_rate": float(np.mean([r.success for r in episodes_of])),
                "num_plans_mean": float(np.mean([r.num_plans for r in episodes_of])),
                "ratio_to_many_steps": float(values.mean() / reference.mean()),
                "ratio_ci95": None if ratio is None else [float(ratio.low), float(ratio.high)],
            }
    return results


def summarize_times(times: list[float]) -> dict[str, float]:
    """Median, mean and 95th percentile."""
    return {
        "median": statistics.median(times),
        "mean": statistics.fmean(times),
        "p95": float(np.quantile(times, 0.95)),
        "num": len(times),
    }


def find_checkpoint(maze: str, models: Path | None) -> str:
    """The checkpoint of a maze: that of the package, or one of a directory."""
    return f"pretrained:maze2d-{maze}" if models is None else str(models / maze)


def measure_times(maze: str, checkpoint: str, args: argparse.Namespace) -> dict[str, Any]:
    """All times of one maze."""
    planner = load_planner(checkpoint)
    starts, goals = draw_problems(planner, args.batch, args.seed)
    single, plans = time_single(planner, starts, goals)
    stride = planner.config.windows.stride
    long_enough = [i for i, plan in enumerate(plans) if plan.horizon >= planner.config.network.min_horizon + 3]
    warm = time_warm(planner, [plans[i] for i in long_enough], goals[long_enough], elapsed=2 * stride)
    paper = time_paper(maze, starts, goals, args.paper_repeats)
    single_again, _ = time_single(planner, starts, goals)  # so that the paper's loop ran between two turns
    single += single_again
    return {
        "plan_milliseconds_single": summarize_times(single),
        "replan_milliseconds_warm": summarize_times(warm),
        "paper_milliseconds": summarize_times(paper),
        "speedup_over_reference_sampler": statistics.median(paper) / statistics.median(single),
        **time_batched(planner, starts, goals, args.repeats),
        "horizon_mean": float(np.mean([plan.horizon for plan in plans])),
        "consistent": float(np.mean([plan.consistent for plan in plans])),
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--models", type=Path, help="directory of checkpoints; the shipped planners if not given")
    parser.add_argument("--batch", type=int, default=256, help="plans of one call")
    parser.add_argument("--mazes", nargs="+", default=list(PAPER), choices=list(PAPER))
    parser.add_argument("--episodes", type=int, default=200, help="of each protocol and variant; 0 for times alone")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=5, help="turns of batched against single")
    parser.add_argument("--paper-repeats", type=int, default=3)
    quick = {"mazes": ["umaze"], "episodes": 2, "batch": 32, "repeats": 1, "paper_repeats": 1}
    args = parse_arguments(parser, quick)
    torch.set_num_threads(1)
    mazes: dict[str, Any] = {}
    for maze in args.mazes:
        mazes[maze] = measure_times(maze, find_checkpoint(maze, args.models), args)
        print_times(maze, mazes[maze], args.batch)
    if args.episodes:  # after all times, for scoring takes every core
        with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
            for maze in args.mazes:
                checkpoint = find_checkpoint(maze, args.models)
                variants = make_variants(load_planner(checkpoint))
                mazes[maze]["scores"] = score_variants(pool, checkpoint, variants, args.episodes, args.seed)
                print_scores(maze, mazes[maze]["scores"])
    result = {
        # Of the slowest maze, and of the one where the ratio is least.
        "plan_milliseconds_single": max(m["plan_milliseconds_single"]["median"] for m in mazes.values()),
        "replan_milliseconds_warm": max(m["replan_milliseconds_warm"]["median"] for m in mazes.values()),
        "speedup_over_reference_sampler": min(m["speedup_over_reference_sampler"] for m in mazes.values()),
        "batched_speedup": min(m["batched_speedup"] for m in mazes.values()),
        "mazes": mazes,
        "batch": args.batch,
        "seed": args.seed,
    }
    write_results(args, result)


def make_variants(planner: Planner) -> dict[str, dict[str, Any]]:
    """Settings that are scored, as changes to those of the checkpoint."""
    return {
        "many_steps": {
            "sampling.num_steps": planner.config.diffusion.num_diffusion_steps,
            "horizon.rule": "scan",
        },
        "fast": {},
        "warm": {
            "replanning": "receding",
            "replanning.interval": 2 * planner.config.windows.stride,
            "replanning.warm_start": 0.3,
        },
    }


def print_times(maze: str, result: dict[str, Any], batch: int) -> None:
    """One line of the table of times."""
    single, warm, paper = (
        result[name] for name in ("plan_milliseconds_single", "replan_milliseconds_warm", "paper_milliseconds")
    )
    print(
        f"{maze:7} plan {single['median']:6.2f} ms (mean {single['mean']:.2f}, p95 {single['p95']:.2f})   "
        f"warm replan {warm['median']:5.2f} ms   paper's loop {paper['median']:8.0f} ms = "
        f"{result['speedup_over_reference_sampler']:.0f} x   batch of {batch}: "
        f"{result['batched_plans_per_second']:.0f} plans/s = {result['batched_speedup']:.1f} x one at a time",
        flush=True,
    )


def print_scores(maze: str, scores: dict[str, Any]) -> None:
    """The table of scores of a maze."""
    for name, row in scores.items():
        low, high = row["score_ci95"]
        interval = "" if row["ratio_ci95"] is None else "[{:.3f}, {:.3f}]".format(*row["ratio_ci95"])
        print(
            f"{maze:7} {name:20} {row['score_mean']:7.1f} [{low:.1f}, {high:.1f}]  success {row['success_rate']:6.1%}  "
            f"of many steps {row['ratio_to_many_steps']:.3f} {interval}",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""How long training takes to plan well: the presets of Maze2D, from a dataset to scores.

Only the training is timed, from the first step to the last with checkpoints left out; then the checkpoint
is calibrated (`diffplan calibrate`) and scored on episodes whose seeds no setting was chosen on. A training that was
interrupted goes on where it was.

    python benchmarks/time_to_quality.py [--device cuda]

With `--data DATASETS` datasets are expected at DATASETS/umaze, DATASETS/medium and DATASETS/large.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import find_dataset, make_parser, make_scratch, parse_arguments, run_diffplan, write_results

from diffplan.checkpoint import is_checkpoint, load_training_state, save_checkpoint
from diffplan.config import Config, with_overrides
from diffplan.data.format.dataset import open_dataset
from diffplan.evaluation.protocol import apply_protocol
from diffplan.evaluation.rollout import evaluate_episodes
from diffplan.evaluation.scores import compute_interval
from diffplan.planning.loading import load_planner
from diffplan.tasks.registry import get_preset
from diffplan.training.batches import TrainingBatches
from diffplan.training.loop import TrainingProgress, train
from diffplan.training.state import TrainingState

BEST_PUBLISHED = {"umaze": 142.9, "medium": 149.4, "large": 167.9}
"""Best published score of Maze2D by any diffusion planner."""
MINUTES = {"umaze": 5, "medium": 15, "large": 40}
EPISODES_AT_ONCE = 25


def train_config(maze: str, config: Config, data: Path, out: Path, device: str) -> dict[str, float]:
    """Train, and keep the seconds of it beside the checkpoint, so that they add up over interruptions."""
    dataset = open_dataset(data)
    batches = TrainingBatches(config, dataset, device=device)
    state = TrainingState(config, batches.layout, device)
    clock_path = out / "training_seconds.json"
    seconds = 0.0
    if is_checkpoint(out):
        state.load_state_dict(load_training_state(out))
        seconds = json.loads(clock_path.read_text())
    since = time.perf_counter()

    def save(progress: TrainingProgress) -> None:
        nonlocal seconds, since
        seconds += time.perf_counter() - since
        save_checkpoint(
            out,
            config=config,
            layout=batches.layout,
            step=state.step,
            normalizer=batches.normalizer,
            weights=state.average_weights(),
            dataset={"path": str(data), "uuid": dataset.manifest.dataset_uuid},
            training_state=state.state_dict(),
        )
        clock_path.write_text(json.dumps(seconds))
        print(f"{maze:7} step {progress.step:6d}  loss {progress.loss:.5f}  {seconds / 60:.1f} minutes", flush=True)
        since = time.perf_counter()

    train(state, batches, device=device, on_checkpoint=save)
    return {"training_seconds": seconds, "num_steps": state.step, "batch_size": config.training.batch_size}


def score_block(checkpoint: str, protocol: str, first: int, last: int, seed: int) -> list[Any]:
    """Results of a block of episodes."""
    torch.set_num_threads(1)
    planner = load_planner(checkpoint)
    return evaluate_episodes(planner, apply_protocol(protocol, planner.config.env), range(first, last), seed=seed)[0]


def score(checkpoint: Path, protocol: str, episodes: int, seed: int) -> dict[str, Any]:
    """Score, interval and success of a protocol."""
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        blocks = [
            pool.submit(score_block, str(checkpoint), protocol, first, min(first + EPISODES_AT_ONCE, episodes), seed)
            for first in range(0, episodes, EPISODES_AT_ONCE)
        ]
        results = [result for block in blocks for result in block.result()]
    scores = [result.score for result in results]
    return {
        "episodes": episodes,
        "score_mean": float(np.mean(scores)),
        "score_ci95": compute_interval(scores),
        "success_rate": float(np.mean([result.success for result in results])),
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--data", type=Path, help="directory of datasets; collected if not given")
    parser.add_argument("--out-models", type=Path, help="directory of checkpoints; a temporary one if not given")
    parser.add_argument("--preset", default="maze2d-{}", help="preset of a maze, whose name is put in")
    parser.add_argument("--steps", type=int, help="training steps in place of the preset's")
    parser.add_argument("--num_plans", type=int, default=40_000, help="plans that a calibration learns from")
    parser.add_argument("--mazes", nargs="+", default=list(MINUTES), choices=list(MINUTES))
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=23)
    parser.add_argument("--device", default="cpu", help="that trains; plans are made on the CPU")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the training")
    quick = {"preset": "maze2d-{}-smoke", "mazes": ["umaze"], "steps": 50, "num_plans": 200, "episodes": 2}
    args = parse_arguments(parser, quick | {"threads": 1})
    torch.set_num_threads(args.threads)
    with make_scratch() as scratch:
        mazes = measure(args, args.out_models or Path(scratch))
    device = args.device if args.device == "cpu" else torch.cuda.get_device_name()
    result = {"mazes": mazes, "seed": args.seed, "training_device": device, "training_threads": args.threads}
    write_results(args, result)


def measure(args: argparse.Namespace, models: Path) -> dict[str, Any]:
    """Train, calibrate and score the preset of each maze, with a line of the table for each."""
    mazes: dict[str, Any] = {}
    for maze in args.mazes:
        preset, out = args.preset.format(maze), models / maze
        data = find_dataset(preset) if args.data is None else args.data / maze
        out.mkdir(parents=True, exist_ok=True)
        config = get_preset(preset)
        if args.steps:
            config = with_overrides(config, {"training.num_steps": args.steps})
        row: dict[str, Any] = train_config(maze, config, data, out, args.device)
        run_diffplan("calibrate", [out, "--num_plans", str(args.num_plans)])
        row |= {protocol: score(out, protocol, args.episodes, args.seed) for protocol in ("maze2d", "multi2d")}
        row |= {"best_published": BEST_PUBLISHED[maze], "minutes_allowed": MINUTES[maze]}
        mazes[maze] = row
        single, multi = row["maze2d"], row["multi2d"]
        print(
            f"{maze:7} {row['training_seconds'] / 60:5.1f} of {MINUTES[maze]} minutes   "
            f"Maze2D {single['score_mean']:6.1f} (best published {BEST_PUBLISHED[maze]})  "
            f"success {single['success_rate']:.1%}   "
            f"Multi2D {multi['score_mean']:6.1f}  success {multi['success_rate']:.1%}",
            flush=True,
        )
    return mazes


if __name__ == "__main__":
    main()

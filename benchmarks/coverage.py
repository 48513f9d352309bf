"""What the data cover against what the planner scores: Maze2D-UMaze from three datasets of one size.

* `waypoint`: the controller on the way to goals anywhere, as the preset collects it;
* `random`: uniform actions;
* `half`: the controller in the first half of the corridor, the other half behind a wall; scored in the whole maze.

Each dataset trains the preset, is calibrated, and plans with the preset's settings, so that nothing but the data
differs. What is there in `--work` is not made again.

    python benchmarks/coverage.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from harness import make_parser, make_scratch, parse_arguments, run_diffplan, write_results

from diffplan.data.format.dataset import open_dataset
from diffplan.tasks.maze2d.environment import get_maze
from diffplan.tasks.registry import get_preset

HALF = json.dumps({"maze": "#####/#GOO#/###O#/#####/#####"})
DATASETS: dict[str, list[str]] = {
    "waypoint": [],
    "random": ["--behavior", "random"],
    "half": ["--env.env_id", "diffplan/Maze2D-v1", "--env.env_kwargs", HALF],
}
BIN = 0.1
"""Edge of the squares that positions are counted in, in units."""


def measure_coverage(path: Path, preset: str) -> float:
    """Share of the squares that the ball's centre can be in, over the whole maze, that the data have visited."""
    maze = get_maze(get_preset(preset).env)
    assert maze is not None
    num_rows, num_columns = maze.walls.shape
    centres = np.stack(np.meshgrid(np.arange(0, num_rows, BIN), np.arange(0, num_columns, BIN), indexing="ij"), -1)
    free = maze.is_free(centres + BIN / 2)
    visited = np.zeros(free.shape, dtype=bool)
    places = np.floor(open_dataset(path).read_column("observation")[:, :2] / BIN).astype(int)
    inside = (places >= 0).all(axis=1) & (places < free.shape).all(axis=1)
    visited[tuple(places[inside].T)] = True
    return float((visited & free).sum() / free.sum())


def run(name: str, arguments: list[str | Path], done: Path) -> None:
    """Run a command of diffplan unless what it makes is there."""
    if not done.exists():
        run_diffplan(name, arguments)


def score(name: str, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Collect, train, calibrate and evaluate one of the datasets."""
    data, model = work / name / "dataset", work / name / "model"
    run("collect", [args.preset, "--out", data, *DATASETS[name]], data / "snapshots")
    steps = [] if args.steps is None else ["--training.num_steps", str(args.steps)]
    run("train", [args.preset, "--data", data, "--out", model, *steps], model / "config.json")
    run("calibrate", [model, "--num_plans", str(args.num_plans)], model / "calibration.json")
    row: dict[str, Any] = {"coverage": measure_coverage(data, args.preset)}
    for protocol in ("maze2d", "multi2d"):
        out = work / name / protocol
        sizes = ["--episodes", str(args.episodes), "--seed", str(args.seed)]
        run("evaluate", [model, "--protocol", protocol, "--out", out, *sizes], out / "summary.json")
        summary = json.loads((out / "summary.json").read_text())
        row[protocol] = {k: summary[k] for k in ("score_mean", "score_ci95", "success_rate", "episodes")}
    return row


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--preset", default="maze2d-umaze")
    parser.add_argument("--steps", type=int, help="training steps in place of the preset's")
    parser.add_argument("--num_plans", type=int, default=40_000, help="plans that a calibration learns from")
    parser.add_argument("--work", type=Path, help="directory of data, models and scores; a temporary one if not given")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    quick = {"preset": "maze2d-umaze-smoke", "steps": 50, "num_plans": 200, "episodes": 2}
    args = parse_arguments(parser, quick)
    with make_scratch() as directory:
        rows = {name: score(name, args.work or Path(directory), args) for name in DATASETS}
    print(f"{'data':<10}{'coverage':>9}{'Maze2D':>10}{'success':>9}{'Multi2D':>10}{'success':>9}")
    for name, row in rows.items():
        cells = "".join(f"{row[p]['score_mean']:>10.1f}{row[p]['success_rate']:>9.0%}" for p in ("maze2d", "multi2d"))
        print(f"{name:<10}{row['coverage']:>9.0%}{cells}")
    write_results(args, {"env_id": get_preset(args.preset).env.env_id, "rows": rows})


if __name__ == "__main__":
    main()

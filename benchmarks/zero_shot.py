"""One diffuser that was never told a reward, asked for different things when it plans: what was asked, what came of it.

For each training seed, the planner of the preset `halfcheetah-speeds` runs episodes for each request below, and without
any. Beside each speed stands a specialist: a policy cloned from the tenth of the same data that is closest to that
speed. Models are kept and an interrupted training goes on.

    python benchmarks/zero_shot.py
"""

from __future__ import annotations

import dataclasses
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are imported

import numpy as np
import torch
from harness import find_dataset, make_parser, parse_arguments, run_diffplan, write_results

from diffplan.config import EnvConfig
from diffplan.data.format.dataset import open_dataset
from diffplan.data.format.manifest import new_dataset_uuid
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.evaluation.rollout import evaluate_episodes
from diffplan.evaluation.sources import find_policy
from diffplan.planning.loading import load_planner
from diffplan.planning.planner import with_settings
from diffplan.types import Episode

PRESET = "halfcheetah-speeds"
SPEEDS = (2, 4, 6, 8)
"""Speeds asked for, in m/s; protocols of the task."""
BARS = {"must": 1.3, "goal": 0.5}
"""Mean distance of the speed from these, in m/s."""
PIECE_STEPS = 50
"""Steps of the pieces of episodes that specialists learn from."""
FORWARD, PITCH, FORWARD_VELOCITY, JOINTS = 0, 2, 9, slice(12, 18)
"""Columns of an observation with the position along x: that, the pitch of the trunk, and velocities."""


def measure_speed(observations: np.ndarray, step_seconds: float) -> float:
    """Mean speed in m/s of an episode, of float[steps + 1, 18]."""
    return float((observations[-1, FORWARD] - observations[0, FORWARD]) / (step_seconds * (len(observations) - 1)))


def measure_joints(observations: np.ndarray, step_seconds: float) -> float:
    """Root mean square of the joint velocities of an episode, in rad/s."""
    del step_seconds
    return float(np.sqrt(np.square(observations[1:, JOINTS]).mean()))


def measure_pitch(observations: np.ndarray, step_seconds: float) -> float:
    """Mean pitch of the trunk in an episode, in rad; positive is nose down."""
    del step_seconds
    return float(observations[1:, PITCH].mean())


@dataclass(frozen=True)
class Request:
    """What plans are asked for.

    Attributes:
        name: what it is.
        measure: what came of it.
        speed: mean speed of plans, in m/s; None for any.
        guide: expression to maximise; None for none.
        scale: strength of the guide.
    """

    name: str
    measure: Callable[[np.ndarray, float], float]
    speed: float | None = None
    guide: str | None = None
    scale: float = 0.0

    @property
    def settings(self) -> dict[str, Any]:
        """Planner settings that ask for it, beside the speed."""
        if self.guide is None:
            return {}
        guided = {"guides": (self.guide,), "scale": self.scale, "target": "denoised", "scaling": "none"}
        return {f"guidance.{name}": value for name, value in guided.items()}


NOTHING = Request("nothing", measure_speed)
CALM, NOSE_UP, NOSE_DOWN = (
    "-mean(square(observation[..., 12:18]))",
    "-mean(observation[..., 2])",
    "mean(observation[..., 2])",
)
REQUESTS = (
    NOTHING,
    *(Request(f"{speed} m/s", measure_speed, speed) for speed in SPEEDS),
    Request("stand", measure_speed, 0),
    Request("2 m/s backwards", measure_speed, -2),
    Request("fast (a guide)", measure_speed, guide=f"mean(observation[..., {FORWARD_VELOCITY}])", scale=3.0),
    Request("4 m/s: joint speed", measure_joints, 4),
    Request("4 m/s + slow joints: joint speed", measure_joints, 4, CALM, 0.2),
    Request("4 m/s + slow joints: speed", measure_speed, 4, CALM, 0.2),
    Request("4 m/s: pitch", measure_pitch, 4),
    Request("4 m/s + nose up: pitch", measure_pitch, 4, NOSE_UP, 30.0),
    Request("4 m/s + nose up: speed", measure_speed, 4, NOSE_UP, 30.0),
    Request("4 m/s + nose down: pitch", measure_pitch, 4, NOSE_DOWN, 30.0),
    Request("4 m/s + nose down: speed", measure_speed, 4, NOSE_DOWN, 30.0),
)


def train(dataset: Path, out: Path, seed: int, num_steps: int, options: Sequence[str | Path] = ()) -> Path:
    """A model of the preset, unless it is there; an interrupted training goes on."""
    if not (out / "model.safetensors").exists():
        # A second core would be of little use to so small a model, and of much where other programs run.
        size = ["--training.num_steps", str(num_steps), "--training.seed", str(seed), "--cpus_per_worker", "1"]
        resume = ["--resume"] if out.exists() else []
        run_diffplan("train", [PRESET, "--data", dataset, "--out", out, *size, *options, *resume])
    return out


def cut(dataset: Path, out: Path, speed: float) -> Path:
    """The data in pieces, each of which pays minus the distance of its mean speed from the one asked for."""
    if (out / "done").exists():
        return out
    source = open_dataset(dataset)
    step_seconds = source.env.step_seconds
    assert step_seconds is not None
    pieces = []
    for number in range(len(source.episodes.length)):
        observations = source.episode_column(number, "observation")
        actions = source.episode_column(number, "action")
        for first in range(0, len(actions) - PIECE_STEPS + 1, PIECE_STEPS):
            seen = observations[first : first + PIECE_STEPS + 1]
            if len(seen) <= PIECE_STEPS:
                continue
            distance = abs(measure_speed(seen, step_seconds) - speed)
            pieces.append(
                Episode(
                    episode_index=len(pieces),
                    seed=None,
                    behavior="piece",
                    observations=seen,
                    actions=actions[first : first + PIECE_STEPS],
                    rewards=np.full(PIECE_STEPS, -distance / PIECE_STEPS, dtype=np.float32),
                    terminated=False,
                    truncated=True,
                )
            )
    manifest = dataclasses.replace(source.manifest, dataset_uuid=new_dataset_uuid())
    write_unit(out, create_dataset(out, manifest), 0, pieces)
    (out / "done").touch()
    return out


def run(policy: Any, env: EnvConfig, request: Request, episodes: int, seed: int) -> list[float]:
    """What came of a request in each episode."""
    _, recorded = evaluate_episodes(policy, env, list(range(episodes)), seed=seed, num_recorded=episodes)
    assert env.step_seconds is not None
    return [request.measure(episode.observations.astype(np.float64), env.step_seconds) for episode in recorded]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="training seeds")
    parser.add_argument("--steps", type=int, default=30_000, help="training steps of the planner")
    parser.add_argument("--cloning_steps", type=int, default=10_000, help="training steps of each specialist")
    parser.add_argument("--collection", type=int, default=400_000, help="environment steps of the data")
    parser.add_argument("--episodes", type=int, default=20, help="episodes of each request and training seed")
    parser.add_argument("--seed", type=int, default=211, help="of the episodes")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/zero_shot"), help="where models are kept")
    quick = {"seeds": 1, "steps": 40, "cloning_steps": 40, "collection": 8_000, "episodes": 1}
    arguments = parse_arguments(parser, quick=quick)
    torch.set_num_threads(1)
    dataset = find_dataset(PRESET, arguments.collection)
    size = f"{arguments.collection}-{arguments.steps}-{arguments.cloning_steps}"
    limit = {"max_episode_steps": 30} if arguments.quick else {}
    rows: list[dict[str, Any]] = []

    def add(policy: Any, env: EnvConfig, request: Request, seed: int, method: str) -> None:
        target = {} if request.speed is None else {"target_speed": float(request.speed)}
        own = dataclasses.replace(env, env_kwargs={**env.env_kwargs, **target, **limit})
        values = run(policy, own, request, arguments.episodes, arguments.seed)
        mean, std = float(np.mean(values)), float(np.std(values))
        rows.append({"asked": request.name, "method": method, "training_seed": seed, "mean": mean, "std": std})

    for seed in range(arguments.seeds):
        checkpoint = train(dataset, arguments.out / f"{size}-seed{seed}", seed, arguments.steps)
        if not (checkpoint / "calibration.json").exists():
            run_diffplan("calibrate", [checkpoint])
        planner = load_planner(checkpoint)
        env = planner.config.env
        for request in REQUESTS:
            add(with_settings(planner, request.settings), env, request, seed, "planner")
        for speed in SPEEDS:
            pieces = cut(dataset, arguments.out / f"{arguments.collection}-pieces-{speed}", speed)
            cloning = ["--training.objective", "behavior_cloning", "--windows.best_share", "0.1"]
            out = arguments.out / f"{size}-specialist-{speed}-seed{seed}"
            policy = find_policy(train(pieces, out, seed, arguments.cloning_steps, cloning)).load()
            request = next(request for request in REQUESTS if request.speed == speed)
            add(policy, env, request, seed, "specialist")
    show(rows, arguments.seeds)
    errors = {
        method: statistics.mean(
            abs(row["mean"] - speed) for speed in SPEEDS for row in find(rows, f"{speed} m/s", method)
        )
        for method in ("planner", "specialist")
    }
    print("mean distance from the speed asked for, m/s: " + ", ".join(f"{m} {e:.2f}" for m, e in errors.items()))
    write_results(arguments, {"bars": BARS, "mean_speed_error": errors, "rows": rows})


def find(rows: Sequence[dict[str, Any]], asked: str, method: str) -> list[dict[str, Any]]:
    """The rows of a request and a method."""
    return [row for row in rows if (row["asked"], row["method"]) == (asked, method)]


def show(rows: Sequence[dict[str, Any]], num_seeds: int) -> None:
    """Print a line for each request and method."""
    print(f"m/s, rad/s or rad: the mean over {num_seeds} training seeds, and that of each")
    print(f"{'asked':<34} {'method':<11} {'mean':>7}   each seed")
    for request in REQUESTS:
        for method in ("planner", "specialist"):
            means = [row["mean"] for row in find(rows, request.name, method)]
            if means:
                each = ", ".join(f"{mean:.2f}" for mean in means)
                print(f"{request.name:<34} {method:<11} {statistics.mean(means):7.2f}   {each}")


if __name__ == "__main__":
    main()

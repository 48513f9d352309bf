"""How fast planners are evaluated: many episodes at once, planning included, against one episode at a time.

One episode at a time, all in one process, and in as many processes as the machine has cores, in the units that the
actors of `diffplan evaluate` run, take turns on the same episodes; a turn of single episodes takes a part of them, for
all would take minutes. Of one process the processor's seconds count, so that other programs on the machine matter as
little as may be; of several the most that one of them takes. Then the parts of one more block, and of single episodes,
are measured.

    python benchmarks/evaluation.py

On a machine of many cores units of 50 episodes leave most of them without work: `--episodes_per_unit 7`.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are imported

import torch
from harness import make_parser, parse_arguments, write_results

from diffplan.config import EnvConfig
from diffplan.evaluation.protocol import EPISODES_PER_UNIT, apply_protocol
from diffplan.evaluation.rollout import evaluate_episodes
from diffplan.planning.loading import load_planner
from diffplan.planning.planner import Planner
from diffplan.seeding import Stream
from diffplan_envs.maze_paths import MazePaths

from mujoco.batch import Batch  # isort: skip  (after our physics, which chooses what mujoco draws with)


PLANNERS: dict[str, Planner] = {}
"""The planner of each process."""


def get_ready(model: str) -> None:
    """Load the planner of a process, and compute what is computed once."""
    torch.set_num_threads(1)
    PLANNERS[model] = planner = load_planner(model)
    evaluate_episodes(planner, apply_protocol("multi2d", planner.config.env), [0], seed=0, stream=Stream.TUNING)


def time_episodes(model: str, episodes: Sequence[int], seed: int) -> float:
    """Processor seconds of this process for episodes side by side."""
    planner = PLANNERS[model]
    since = time.process_time()
    evaluate_episodes(planner, apply_protocol("multi2d", planner.config.env), episodes, seed=seed, stream=Stream.TUNING)
    return time.process_time() - since


def time_unit(model: str, episodes: Sequence[int], seed: int) -> tuple[int, float]:
    """This process, and its processor seconds for a unit."""
    return os.getpid(), time_episodes(model, episodes, seed)


def time_units(pool: ProcessPoolExecutor, model: str, num_episodes: int, of_a_unit: int, seed: int) -> float:
    """Processor seconds of the process that has the most to do, of those that share the units of an evaluation."""
    episodes = range(num_episodes)
    units = [episodes[first : first + of_a_unit] for first in range(0, num_episodes, of_a_unit)]
    seconds: dict[int, float] = defaultdict(float)
    for job in [pool.submit(time_unit, model, unit, seed) for unit in units]:
        process, of_unit = job.result()
        seconds[process] += of_unit
    return max(seconds.values())


def measure_parts(planner: Planner, env: EnvConfig, blocks: Sequence[Sequence[int]]) -> dict[str, float]:
    """Milliseconds of the processor that the parts of an evaluation take for each episode, block by block."""
    seconds: dict[str, float] = {"planning": 0.0, "physics": 0.0, "shortest ways": 0.0}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            since = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[name] += time.process_time() - since

        return call

    with (
        mock.patch.object(Planner, "plan", timed("planning", Planner.plan)),
        mock.patch.object(Planner, "plan_within", timed("planning", Planner.plan_within)),
        mock.patch.object(Batch, "step", timed("physics", Batch.step)),
        mock.patch.object(MazePaths, "shortest_lengths", timed("shortest ways", MazePaths.shortest_lengths)),
    ):
        since = time.process_time()
        for episodes in blocks:
            evaluate_episodes(planner, env, episodes, seed=0, stream=Stream.TUNING)
        seconds["everything else"] = time.process_time() - since - sum(seconds.values())
    num = sum(len(episodes) for episodes in blocks)
    return {name: 1000 * value / num for name, value in seconds.items()}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="pretrained:maze2d-large")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--single", type=int, default=10, help="episodes of a turn that are run one at a time")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--episodes_per_unit", type=int, default=EPISODES_PER_UNIT)
    quick = {"model": "pretrained:maze2d-umaze", "episodes": 8, "single": 2, "turns": 1, "episodes_per_unit": 4}
    args = parse_arguments(parser, quick)
    get_ready(args.model)
    planner = PLANNERS[args.model]
    env = apply_protocol("multi2d", planner.config.env)
    num_cores = os.cpu_count() or 1
    together, everywhere, single = [], [], []
    context = get_context("spawn")
    print(f"CPU milliseconds an episode\nturn         alone       at once{f'on {num_cores} cores':>14}")
    with ProcessPoolExecutor(num_cores, context, initializer=get_ready, initargs=(args.model,)) as pool:
        for turn in range(args.turns):
            together.append(time_episodes(args.model, range(args.episodes), turn) / args.episodes)
            everywhere.append(time_units(pool, args.model, args.episodes, args.episodes_per_unit, turn))
            everywhere[-1] /= args.episodes
            alone = [time_episodes(args.model, [episode], turn) for episode in range(args.single)]
            single.append(statistics.mean(alone))
            cells = (single[-1], together[-1], everywhere[-1])
            print(f"{turn:4}" + "".join(f"{1000 * value:14.1f}" for value in cells), flush=True)
    of_a_core = statistics.median(a / b for a, b in zip(single, together, strict=True))
    of_the_machine = statistics.median(a / b for a, b in zip(single, everywhere, strict=True))
    print(
        f"{args.episodes} episodes at once: {of_a_core:.1f} x the episodes a second of one at a time on one core, "
        f"{of_the_machine:.1f} x on {num_cores}"
    )
    parts = {
        "at once": measure_parts(planner, env, [range(args.episodes)]),
        "alone": measure_parts(planner, env, [[episode] for episode in range(2 * args.single)]),
    }
    for name, milliseconds in parts.items():
        print(f"an episode {name}: " + ", ".join(f"{part} {value:.1f} ms" for part, value in milliseconds.items()))
    result = {
        "env_id": env.env_id,
        "protocol": "multi2d",
        "episodes_at_once": args.episodes,
        "episodes_of_a_unit": args.episodes_per_unit,
        "seconds_an_episode_at_once": together,
        "seconds_an_episode_alone": single,
        "seconds_an_episode_on_all_cores": everywhere,
        "speedup_of_a_core": of_a_core,
        "speedup_over_one_at_a_time": of_the_machine,
        "milliseconds_of_an_episode": parts,
    }
    write_results(args, result)


if __name__ == "__main__":
    main()

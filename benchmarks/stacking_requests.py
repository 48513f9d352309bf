"""A planner of block stacking that is asked for what it was never trained on: what was asked, what came of it.

Each request is a few lines: a constraint, a guide, or another choice of the next placement. It is measured beside the
same planner without it, in the same episodes. With several planners, which differ in their training seed, the results
are means over planners.

    python benchmarks/stacking_requests.py
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are imported

import numpy as np
import torch
from harness import make_parser, parse_arguments, write_results

from diffplan.config import EnvConfig
from diffplan.environments import get_box_bounds, make_vector_env
from diffplan.planning.constraints import Bounds, Constraint, Fixed
from diffplan.planning.control.policy import PlanningPolicy
from diffplan.planning.loading import load_planner
from diffplan.planning.planner import Planner
from diffplan.tasks.contracts import Ask
from diffplan.tasks.stacking.asking import ask_for_pairs
from diffplan.tasks.stacking.columns import find_space, read_pairs
from diffplan_envs.arm import BLOCK_SIZE
from diffplan_envs.stacking import PLACEMENT_MOVES
from diffplan_envs.stacking_rules import count_right, find_freest_spot, measure_tower

SEED = 1_000
"""Of the first episode; planner settings were chosen on others."""
HEIGHT = 0.6
"""Height of the cup that is asked for while it swings, in m."""
SWING = (4, 5)
"""Steps of a plan at the ends of its longest move, with a block held."""
PUSH = 0.05
"""How far a block is pushed away, in m."""


@dataclass(frozen=True)
class Run:
    """Episodes side by side, from their observations at the end of each move.

    Attributes:
        observations: float64[moves + 1, episodes, columns].
        pairs: pairs that each episode asks for, (top, bottom), int[pairs, 2].
        places: where a tower was asked for, float64[episodes, 2].
        env: the environment.
    """

    observations: np.ndarray
    pairs: Sequence[np.ndarray]
    places: np.ndarray
    env: EnvConfig

    @property
    def blocks(self) -> np.ndarray:
        """Positions of the blocks in m, float64[moves + 1, episodes, blocks, 3]."""
        return find_space(self.env).read_blocks(self.observations)


def measure_score(run: Run) -> float:
    """Per cent of the pairs that are stacked at the end, by the strict rule."""
    return 100 * statistics.mean(
        count_right(blocks, pairs) / len(pairs) for blocks, pairs in zip(run.blocks[-1], run.pairs, strict=True)
    )


def measure_height_of_tower(run: Run) -> float:
    """Blocks in the tallest tower at the end, mean over episodes."""
    return statistics.mean(measure_tower(blocks) for blocks in run.blocks[-1])


def measure_height(run: Run) -> float:
    """Lowest cup at the ends of swings with a block, in cm, mean over placements."""
    moves = len(run.observations) - 1
    steps = [first + step for first in range(0, moves, PLACEMENT_MOVES) for step in SWING]
    return 100 * float(run.observations[steps, :, 2].reshape(-1, len(SWING), run.observations.shape[1]).min(1).mean())


def measure_miss(run: Run) -> float:
    """Median distance of the lowest block of what was asked from the place that was asked, in cm."""
    ends = np.stack([blocks[pairs[0, 1], :2] for blocks, pairs in zip(run.blocks[-1], run.pairs, strict=True)])
    return 100 * float(np.median(np.linalg.norm(ends - run.places, axis=1)))


def measure_moved(run: Run) -> float:
    """How far block 0 is from where it lay, in cm, mean over episodes."""
    return 100 * float(np.linalg.norm(run.blocks[-1, :, 0] - run.blocks[0, :, 0], axis=1).mean())


@dataclass(frozen=True)
class Request:
    """What plans are asked for, beside what the protocol asks for.

    Attributes:
        name: what it is.
        kind: of the environment.
        num_placements: placements of an episode.
        measures: what is measured, by name.
        constraints: further constraints of every plan.
        guides: further guides.
        pairs: pairs in place of those of the environment.
        is_placed: whether the tower has a place.
        pushed_in: placement in whose first move the block to be moved is pushed away; None for none.
    """

    name: str
    kind: str
    num_placements: int
    measures: dict[str, Callable[[Run], float]]
    constraints: tuple[Constraint, ...] = ()
    guides: tuple[Callable[[Any], torch.Tensor], ...] = ()
    pairs: tuple[tuple[int, int], ...] | None = None
    is_placed: bool = False
    pushed_in: int | None = None
    without: dict[str, Any] = field(default_factory=dict)
    """What the planner without the request has in place of these."""


def stay(plans: Any) -> torch.Tensor:
    """Block 0 stays where it is: minus its squared ways, in block edges."""
    ways = (plans.observations[:, :, 3:6] - plans.observations[:, :1, 3:6].detach()) / BLOCK_SIZE
    return -ways.square().sum(dim=(1, 2))


REQUESTS = (
    Request(
        f"carry at {100 * HEIGHT:.0f} cm or more",
        "conditional",
        3,
        {"lowest swing, cm": measure_height, "score": measure_score},
        constraints=(Bounds(low=HEIGHT, columns=(2,), first_step=SWING[0], last_step=SWING[1]),),
        without={"constraints": ()},
    ),
    Request(
        "a tower at a place",
        "conditional",
        4,
        {"miss of the place, cm": measure_miss, "score": measure_score},
        is_placed=True,
        without={"is_placed": False, "num_placements": 3},
    ),
    Request(
        "two towers",
        "conditional",
        3,
        {"score": measure_score},
        pairs=((0, 1), (2, 3)),
        without={"pairs": ((0, 1), (1, 2), (2, 3))},
    ),
    Request(
        "block 0 must not move, two placements",
        "unconditional",
        2,
        {"block 0 moved, cm": measure_moved, "blocks in the tower": measure_height_of_tower},
        guides=(stay,),
        without={"guides": ()},
    ),
    Request(
        f"a block is pushed {100 * PUSH:.0f} cm away in mid-plan",
        "conditional",
        4,
        {"score": measure_score},
        pushed_in=1,
        without={"num_placements": 3},
    ),
)
"""Without it: lower swings; a tower where a block happens to lie; one tower of these blocks; any block may move; no
placement to spare."""


def run_request(planner: Planner, request: Request, num_episodes: int) -> Run:
    """Run episodes."""
    env = replace(
        planner.config.env,
        env_kwargs={
            **planner.config.env.env_kwargs,
            "kind": request.kind,
            "on_pile": None,
            "num_placements": 2 * request.num_placements,
        },
    )
    space = find_space(env)
    batch = make_vector_env(env, num_episodes)
    options: dict[str, Any] = {}
    if request.pairs is not None:
        options["pairs"] = np.tile(np.array(request.pairs), (num_episodes, 1, 1))
    observations, infos = batch.reset(seed=SEED, options=options)
    pairs = [read_pairs(goal) for goal in infos["goal"]]
    starts = space.read_blocks(observations)
    lowest = [each[0, 1] if len(each) else 0 for each in pairs]
    places = np.stack([find_freest_spot(start, block)[:2] for start, block in zip(starts, lowest, strict=True)])
    ask = ask_for_pairs(env, observations, infos)

    def choose(observations: np.ndarray, envs: np.ndarray) -> Ask:
        constraints = list(request.constraints)
        if ask.stage is not None:
            (asked,) = ask.stage(observations, envs).constraints
            ends = np.array(asked.values).reshape(len(envs), -1, 3)
            for end, now, i in zip(ends, space.read_blocks(observations), envs, strict=True):
                if request.is_placed and np.linalg.norm(now[lowest[i], :2] - places[i]) > BLOCK_SIZE / 2:
                    end[:] = now
                    end[lowest[i]] = [*places[i], BLOCK_SIZE / 2]
            constraints.append(Fixed(ends.reshape(len(envs), -1), columns=space.block_columns, step=-1))
        guides = (*planner.settings.guidance.guides, *request.guides) if request.guides else ()
        return Ask(constraints=constraints, guides=guides)

    bounds = [np.asarray(each) for each in get_box_bounds(batch)]
    policy = PlanningPolicy(planner, torch.Generator().manual_seed(SEED), *bounds)
    policy.ask(stage=choose)
    policy.reset(observations, None)
    seen = [observations.copy()]
    for move in range(PLACEMENT_MOVES * request.num_placements):
        observations, *_ = batch.step(policy.act(observations))
        if request.pushed_in is not None and move == PLACEMENT_MOVES * request.pushed_in:
            observations = push(batch, space, observations, policy)
        seen.append(observations.copy())
    batch.close()
    return Run(np.stack(seen), pairs, places, env)


def push(batch: Any, space: Any, observations: np.ndarray, policy: PlanningPolicy) -> np.ndarray:
    """Push the block that each plan moves away, in a random direction that is the same in every run."""
    generator = np.random.default_rng(SEED)
    pushed = observations.copy()
    for i, plan in enumerate(policy.plans):
        first, last = (space.read_blocks(plan.observations[step]) for step in (0, -1))
        ways = np.linalg.norm(last - first, axis=1)
        angle = generator.uniform(-np.pi, np.pi)
        column = space.block_columns[3 * int(ways.argmax())]
        pushed[i, column : column + 2] += PUSH * np.array([np.cos(angle), np.sin(angle)])
    found, _ = batch.reset(options={"observation": pushed})
    return found


def main() -> None:
    """Print a table of requests: with and without."""
    parser = make_parser(__doc__)
    parser.add_argument("--planners", nargs="+", default=["pretrained:stacking"], help="checkpoints of the planners")
    parser.add_argument("--episodes", type=int, default=50, help="episodes of each planner and request")
    arguments = parse_arguments(parser, {"episodes": 2})
    planners = [load_planner(path) for path in arguments.planners]
    rows = []
    print(f"{'asked for':44} {'measured':24} {'with':>8} {'without':>8}")
    for request in REQUESTS:
        plain = replace(request, **request.without)
        found = [[run_request(planner, each, arguments.episodes) for each in (request, plain)] for planner in planners]
        for name, measure in request.measures.items():
            with_it, without = ([measure(pair[i]) for pair in found] for i in range(2))
            rows.append({"asked": request.name, "measured": name, "with": with_it, "without": without})
            means = (statistics.mean(with_it), statistics.mean(without))
            print(f"{request.name:44} {name:24} {means[0]:8.1f} {means[1]:8.1f}", flush=True)
    write_results(arguments, {"planners": len(planners), "episodes": arguments.episodes, "rows": rows})


if __name__ == "__main__":
    main()

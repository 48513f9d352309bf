"""How far Maze2D's physical limit is from what controllers reach, and how exact it is.

For each maze and protocol: the limit of every episode (`diffplan_envs.maze_limits`), and what two controllers score on
the same episodes: the noiseless waypoint controller, planning anew in each episode, and `lookahead`, which tries the
nine bang-bang forces in the true simulator for a tick and takes the one whose end is nearest by the limit's own table.
`lookahead` shows in the true environment how much of the limit can be reached; it is run with Maze2D's one goal only.

    python benchmarks/maze2d_limits.py
"""

import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are imported

import numpy as np
from harness import make_parser, parse_arguments, write_results

from diffplan.config import EnvConfig
from diffplan.environments import get_episode_limit, make_simulator, make_vector_env
from diffplan.seeding import Stream, make_generator, make_seed
from diffplan.tasks.maze2d.environment import get_limit_returns, get_reference_returns, require_maze
from diffplan.tasks.maze2d.waypoint import WaypointBehavior
from diffplan_envs.maze_limits import StateLattice, limit_steps

MAZES = ("UMaze", "Medium", "Large")
FORCES = np.array([(x, y) for x in (-1.0, 0.0, 1.0) for y in (-1.0, 0.0, 1.0)])
NUM_LOOKAHEAD_STEPS = 3


class LookaheadPolicy:
    """Bang-bang forces chosen by the table of a lattice: `ticks` uint8[levels, levels, positions] to the goal."""

    def __init__(self, env_config: EnvConfig, goal: np.ndarray, num_episodes: int) -> None:
        maze = require_maze(env_config, "benchmark")
        self.goal = goal
        self.lattice = StateLattice(maze, 7, ~maze.walls)
        self.simulator = make_simulator(env_config, len(FORCES) * num_episodes)
        num_levels, size = 2 * self.lattice.num_speeds + 1, self.lattice.is_free.size
        self.ticks = np.zeros((num_levels, num_levels, size), dtype=np.uint8)
        for states in self.lattice.expand(goal):
            for i in range(num_levels):
                for j in range(num_levels):
                    bits = np.unpackbits(self.lattice.to_bytes(states[i][j]), bitorder="little", count=size)
                    self.ticks[i, j] += 1 - bits

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Forces for a batch."""
        num = len(observations)
        forces = np.tile(FORCES, (num, 1))
        self.simulator.set_states(np.repeat(observations, len(FORCES), axis=0), np.tile(self.goal, (len(forces), 1)))
        outside, ahead = np.zeros(len(forces)), np.empty((len(forces), 4))
        for _ in range(NUM_LOOKAHEAD_STEPS):
            ahead, rewards, _ = self.simulator.step(forces)
            outside += rewards == 0
        nearby = self.lattice.find_nearby(ahead)
        ticks = self.ticks[nearby.levels[:, :, None, 0], nearby.levels[:, :, None, 1], nearby.places[:, None]]
        outside += self.lattice.ticks_to_steps(ahead, self.goal, nearby, ticks)
        outside += 1e-3 * np.linalg.norm(ahead[:, :2] - self.goal, axis=1)  # inside, to the middle
        return FORCES[outside.reshape(num, -1).argmin(axis=1)]


def measure(env_config: EnvConfig, policy: str, num_episodes: int, seed: int) -> tuple[np.ndarray, ...]:
    """Starts, goals and undiscounted returns of whole episodes."""
    env = make_vector_env(env_config, num_episodes)
    observations, infos = env.reset(seed=[make_seed(seed, Stream.EVALUATION, i, 0) for i in range(num_episodes)])  # pyright: ignore[reportArgumentType]  # a seed each
    starts, goals, returns = observations.copy(), infos["goal"].copy(), np.zeros(num_episodes)
    if policy == "waypoint":
        behavior = WaypointBehavior(require_maze(env_config, "benchmark"), goals=goals)
        behavior.reset(observations, [make_generator(seed, Stream.EVALUATION, i, 1) for i in range(num_episodes)])
    else:
        behavior = LookaheadPolicy(env_config, goals[0], num_episodes)
    for _ in range(get_episode_limit(env_config)):
        observations, rewards, _, _, _ = env.step(behavior.act(observations))
        returns += rewards
    env.close()
    return starts, goals, returns


def summarize(returns: np.ndarray, references: tuple[float, float]) -> dict[str, float]:
    """Mean return and score, with the score's standard error."""
    scores = 100 * (returns - references[0]) / (references[1] - references[0])
    error = float(scores.std(ddof=1) / np.sqrt(len(scores)))
    return {"return": float(returns.mean()), "normalized_score": float(scores.mean()), "score_stderr": error}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--episodes", type=int, default=300, help="episodes of each maze in Maze2D, at least 2")
    parser.add_argument("--multi2d_episodes", type=int, default=100, help="in Multi2D, where each has its own goal")
    parser.add_argument("--lookahead_episodes", type=int, default=50, help="of them, with `lookahead`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mazes", nargs="+", choices=MAZES, default=MAZES)
    quick = {"episodes": 4, "multi2d_episodes": 2, "lookahead_episodes": 2, "mazes": ["UMaze"]}
    args = parse_arguments(parser, quick)
    if not args.episodes >= args.lookahead_episodes >= 2 or args.multi2d_episodes < 2:
        parser.error("--episodes, ...: expected at least 2 each, and no more with lookahead than without")

    rows = []
    print(f"{'env':24} {'limit':>8} {'waypoint':>9} {'lookahead':>10} {'most over':>10} {'finer':>8} {'CPU s':>7}")
    for maze in args.mazes:
        for family in ("Maze2D", "Multi2D"):
            env_config = EnvConfig(env_id=f"diffplan/{family}-{maze}-v1")
            references, num_steps = get_reference_returns(env_config), get_episode_limit(env_config)
            find_limits = get_limit_returns(env_config)
            assert references is not None
            assert find_limits is not None
            num_episodes = args.episodes if family == "Maze2D" else args.multi2d_episodes
            starts, goals, returns = measure(env_config, "waypoint", num_episodes, args.seed)
            began = time.process_time()
            limits = find_limits(starts, goals, num_steps)
            row = {
                "env_id": env_config.env_id,
                "episodes": num_episodes,
                "limit_cpu_seconds": time.process_time() - began,
                "limit": summarize(limits, references),
                "waypoint": summarize(returns, references),
                "most_steps_over_limit": float((returns - limits).max()),
            }
            if family == "Maze2D":
                n = args.lookahead_episodes
                _, _, reached = measure(env_config, "lookahead", n, args.seed)
                row["lookahead"] = {
                    "episodes": n,
                    **summarize(reached, references),
                    "limit_of_the_same": summarize(limits[:n], references),
                    "steps_below_limit": {
                        "mean": float((limits[:n] - reached).mean()),
                        "least": float((limits[:n] - reached).min()),
                        "most": float((limits[:n] - reached).max()),
                    },
                }
                row["most_steps_over_limit"] = max(row["most_steps_over_limit"], float((reached - limits[:n]).max()))
                fine = limit_steps(require_maze(env_config, "benchmark"), starts[:n], goals[:n], num_speeds=10)
                row["finer_lattice_steps_more"] = float((fine - (num_steps - limits[:n])).mean())
            rows.append(row)
            lookahead = row.get("lookahead", {}).get("normalized_score", float("nan"))
            print(
                f"{env_config.env_id:24} {row['limit']['normalized_score']:8.1f} "
                f"{row['waypoint']['normalized_score']:9.1f} {lookahead:10.1f} {row['most_steps_over_limit']:10.1f} "
                f"{row.get('finer_lattice_steps_more', float('nan')):8.2f} {row['limit_cpu_seconds']:7.1f}",
                flush=True,
            )
    write_results(args, {"seed": args.seed, "results": rows})


if __name__ == "__main__":
    main()

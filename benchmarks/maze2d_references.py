"""How our Maze2D compares with D4RL's: returns of a random policy and of the waypoint controller.

D4RL's reference of an expert comes from a controller that plans only when its target changes, so with a fixed goal it
plans for the first episode and then drives straight at the goal, walls or not: that is `straight`, and lands near the
reference. `waypoint` plans anew in each episode, which is the stronger baseline that a planner has to beat.

    python benchmarks/maze2d_references.py
"""

from collections.abc import Sequence

import numpy as np
from harness import make_parser, parse_arguments, write_results

from diffplan.behaviors.random import RandomBehavior
from diffplan.config import EnvConfig
from diffplan.environments import get_episode_limit, make_vector_env
from diffplan.seeding import Stream, make_generator, make_seed
from diffplan.tasks.contracts import Behavior
from diffplan.tasks.maze2d.environment import get_reference_returns, require_maze
from diffplan.tasks.maze2d.waypoint import POSITION_GAIN, VELOCITY_GAIN, WaypointBehavior

MAZES = ("UMaze", "Medium", "Large")
POLICIES = (("random", "Maze2D"), ("straight", "Maze2D"), ("waypoint", "Maze2D"), ("waypoint", "Multi2D"))


class StraightBehavior:
    """Drives straight at the goal with the gains of the waypoint controller."""

    def __init__(self, goals: np.ndarray) -> None:
        self._goals = goals

    def reset(self, observations: np.ndarray, generators: Sequence[np.random.Generator]) -> None:
        """Nothing to start."""

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions towards the goal."""
        force = POSITION_GAIN * (self._goals - observations[:, :2]) - VELOCITY_GAIN * observations[:, 2:]
        return np.clip(force, -1.0, 1.0).astype(np.float32)

    def columns(self) -> dict[str, np.ndarray]:
        """No further columns."""
        return {}


def make_policy(name: str, env_config: EnvConfig, goals: np.ndarray) -> Behavior:
    """The policy of a name; the waypoint controller walks to the goal of each episode."""
    if name == "random":
        return RandomBehavior(np.full(2, -1.0), np.full(2, 1.0))
    if name == "straight":
        return StraightBehavior(goals)
    return WaypointBehavior(require_maze(env_config, "benchmark"), goals=goals)


def measure_returns(policy: str, env_config: EnvConfig, num_episodes: int, seed: int) -> np.ndarray:
    """Undiscounted returns of whole episodes under the registered limit, float64[num_episodes]."""
    env = make_vector_env(env_config, num_episodes)
    observations, infos = env.reset(seed=[make_seed(seed, Stream.EVALUATION, i, 0) for i in range(num_episodes)])  # pyright: ignore[reportArgumentType]  # a seed each
    behavior = make_policy(policy, env_config, infos["goal"])
    behavior.reset(observations, [make_generator(seed, Stream.EVALUATION, i, 1) for i in range(num_episodes)])
    returns = np.zeros(num_episodes)
    limit = get_episode_limit(env_config)
    for step in range(1, limit + 1):
        observations, rewards, terminations, truncations, _ = env.step(behavior.act(observations))
        returns += rewards
        assert not terminations.any()
        assert truncations.all() == truncations.any() == (step == limit)
    env.close()
    return returns


def summarize(values: np.ndarray) -> dict[str, float]:
    """Mean and its standard error."""
    return {"mean": float(values.mean()), "stderr": float(values.std(ddof=1) / np.sqrt(len(values)))}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--episodes", type=int, default=300, help="episodes of each maze and policy, at least 2")
    parser.add_argument("--seed", type=int, default=0)
    args = parse_arguments(parser, {"episodes": 2})
    if args.episodes < 2:
        parser.error(f"--episodes: expected at least 2, got {args.episodes}")

    rows = []
    print(f"{'maze':8} {'policy':9} {'env':8} {'return':>16} {'score':>16} {'D4RL random, expert':>22}")
    for maze in MAZES:
        for policy, family in POLICIES:
            env_config = EnvConfig(env_id=f"diffplan/{family}-{maze}-v1")
            returns = measure_returns(policy, env_config, args.episodes, args.seed)
            reference_returns = get_reference_returns(env_config)
            assert reference_returns is not None
            low, high = reference_returns
            row = {
                "env_id": env_config.env_id,
                "maze": maze,
                "policy": policy,
                "episodes": args.episodes,
                "return": summarize(returns),
                "normalized_score": summarize(100 * (returns - low) / (high - low)),
                "d4rl_reference_returns": {"random": low, "expert": high},
            }
            rows.append(row)
            cells = [f"{row[k]['mean']:.1f} ± {row[k]['stderr']:.1f}" for k in ("return", "normalized_score")]
            print(f"{maze:8} {policy:9} {family:8} {cells[0]:>16} {cells[1]:>16} {low:>13.2f}, {high:>7.2f}")
    write_results(args, {"seed": args.seed, "results": rows})


if __name__ == "__main__":
    main()

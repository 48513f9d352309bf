"""How much of the physics' speed is left when robots are stepped and their data collected.

Environment steps per CPU second of this process in one thread, for Hopper, Walker2d and HalfCheetah under random
actions; robots that fall start again. Four ways, side by side in each repeat:

* bare: `mujoco.batch.Batch`, which is given the actions and the starts that our batch had, and nothing is read;
* batch: our vector environment, `diffplan/Hopper-v4`;
* sync: Gymnasium's vector environment of as many of Gymnasium's `Hopper-v4`;
* collection: `UnitCollector` with the behavior `random`, a unit of episodes. `collected` counts all steps that it took,
  `kept` those of the data: a unit steps all its environments until the first episode of each has ended, and keeps
  the first.

    python benchmarks/locomotion_steps.py
"""

import os
import statistics
import time
from dataclasses import dataclass

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are imported

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from harness import make_parser, parse_arguments, write_results
from mujoco.batch import Batch

import diffplan_envs.locomotion as robots
from diffplan.behaviors.collection import UnitCollector
from diffplan.config import CollectionConfig, EnvConfig
from diffplan.environments import make_vector_env, restart_ended

ROBOTS = ("Hopper-v4", "Walker2d-v4", "HalfCheetah-v4")
WAYS = ("bare", "batch", "sync", "collected", "kept")
BAR = 0.8
"""Share of the bare rate that collection should reach."""


@dataclass
class Script:
    """What happens in a run of a batch: actions float32[steps, num_envs, action_dim], and where robots start again.

    `restarts` holds for each step the environments that start after it, int[num], and their states float[num, nq + nv].
    """

    actions: np.ndarray
    starts: np.ndarray
    restarts: list[tuple[np.ndarray, np.ndarray]]


def write_script(name: str, num_envs: int, num_steps: int, seed: int) -> Script:
    """A run of our batch under random actions, observed with all positions, so that observations are states."""
    kwargs = {"exclude_current_positions_from_observation": False}
    env = make_vector_env(EnvConfig(env_id=f"diffplan/{name}", env_kwargs=kwargs), num_envs)
    space = env.single_action_space
    shape = (num_steps, num_envs, *(space.shape or ()))
    actions = np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)
    observations, _ = env.reset(seed=seed)
    starts, restarts = observations.copy(), []
    for step_actions in actions:
        observations, _, terminations, truncations, _ = env.step(step_actions)
        ended = terminations | truncations
        observations = restart_ended(env, observations, ended)
        restarts.append((np.flatnonzero(ended), observations[ended]))
    return Script(actions, starts, restarts)


def measure_bare(name: str, script: Script) -> float:
    """Steps per CPU second of the physics alone."""
    single = getattr(robots, name.replace("-v", "V") + "Env")()
    num_positions, num_envs = single.model.nq, len(script.starts)
    batch = Batch(single.model, nsim=num_envs, nthread=1)
    positions, velocities, controls = (batch.bind(field) for field in ("qpos", "qvel", "ctrl"))
    positions[:], velocities[:] = np.split(script.starts, [num_positions], axis=1)
    start = time.process_time()
    for actions, (envs, states) in zip(script.actions, script.restarts, strict=True):
        controls[:] = actions
        batch.step(nstep=single.frame_skip)
        if envs.size:
            batch.reset(ids=envs, stage=0)
            positions[envs], velocities[envs] = np.split(states, [num_positions], axis=1)
    return script.actions.shape[0] * num_envs / (time.process_time() - start)


def measure_env(env: VectorEnv, script: Script, seed: int) -> float:
    """Steps per CPU second of a vector environment, with restarts."""
    observations, _ = env.reset(seed=seed)
    start = time.process_time()
    for actions in script.actions:
        observations, _, terminations, truncations, _ = env.step(actions)
        observations = restart_ended(env, observations, terminations | truncations)
    return script.actions.shape[0] * env.num_envs / (time.process_time() - start)


def measure_collection(collector: UnitCollector, unit: int) -> tuple[float, float]:
    """Steps per CPU second of a unit: those that were taken, and those that were kept."""
    start = time.process_time()
    lengths = [len(episode) for episode in collector.collect(unit)]
    seconds = time.process_time() - start
    return max(lengths) * len(lengths) / seconds, sum(lengths) / seconds


def measure_robot(name: str, num_envs: int, num_steps: int, repeats: int) -> dict[str, list[float]]:
    """The rates of each repeat, by the way; a first repeat is left out, which warms up."""
    collection = CollectionConfig(num_steps=1, episode_steps=num_steps, episodes_per_unit=num_envs)
    collector = UnitCollector(EnvConfig(env_id=f"diffplan/{name}"), collection)
    batch = make_vector_env(EnvConfig(env_id=f"diffplan/{name}"), num_envs)
    sync = gymnasium.make_vec(
        gymnasium.spec(f"diffplan/{name}"), num_envs, "sync", vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED}
    )
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    for repeat in range(repeats + 1):
        script = write_script(name, num_envs, num_steps, seed=repeat)
        row = [measure_bare(name, script), measure_env(batch, script, repeat), measure_env(sync, script, repeat)]
        for way, rate in zip(WAYS, [*row, *measure_collection(collector, repeat)], strict=True):
            if repeat:
                rates[way].append(rate)
    return rates


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--steps", type=int, default=200, help="of each environment in a repeat")
    parser.add_argument("--repeats", type=int, default=7)
    args = parse_arguments(parser, {"num_envs": 8, "steps": 30, "repeats": 1})

    document: dict[str, object] = {"num_envs": args.num_envs, "steps": args.steps, "bar": BAR}
    print(f"steps per CPU second in one thread, {args.num_envs} environments, medians of {args.repeats} repeats")
    print(f"{'':<15}" + "".join(f"{way:>11}" for way in WAYS) + f"{'collected/bare':>17}{'kept/bare':>11}")
    for name in ROBOTS:
        rates = measure_robot(name, args.num_envs, args.steps, args.repeats)
        medians = {way: statistics.median(values) for way, values in rates.items()}
        # Within a repeat, for the load of the machine changes from one to the next.
        shares = {
            way: statistics.median(rate / bare for rate, bare in zip(rates[way], rates["bare"], strict=True))
            for way in WAYS[1:]
        }
        cells = "".join(f"{medians[way]:>11,.0f}" for way in WAYS)
        print(f"{name:<15}{cells}{shares['collected']:>17.2f}{shares['kept']:>11.2f}")
        document[name] = {"steps_per_cpu_second": medians, "share_of_bare": shares, "repeats": rates}
    print(f"bar: collected/bare of at least {BAR}")
    write_results(args, document)


if __name__ == "__main__":
    main()

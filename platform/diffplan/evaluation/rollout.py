"""Evaluate a policy on a block of episodes in one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from diffplan.config import EnvConfig
from diffplan.environments import (
    get_box_bounds,
    get_reference_returns,
    get_shortest_path_lengths,
    get_touches_wall,
    make_vector_env,
    restart_ended,
)
from diffplan.errors import ConfigError
from diffplan.evaluation.policies import MakePolicy, RolloutContext, follow_planner
from diffplan.evaluation.record import Record
from diffplan.evaluation.scores import EpisodeResult, normalize_score
from diffplan.planning.planner import Planner
from diffplan.seeding import Stream, make_seed
from diffplan.types import Plan


@dataclass(frozen=True)
class RecordedEpisode:
    """An episode to draw: what was planned and what was done.

    Attributes:
        result: its scores.
        plan: the first plan; None of a policy without plans.
        observations: float32[length + 1, observation_dim].
    """

    result: EpisodeResult
    plan: Plan | None
    observations: np.ndarray


def evaluate_episodes(
    policy: Planner | MakePolicy,
    env: EnvConfig,
    episodes: Sequence[int],
    *,
    seed: int,
    stream: Stream = Stream.EVALUATION,
    goal: Sequence[float] | None = None,
    num_recorded: int = 0,
) -> tuple[list[EpisodeResult], list[RecordedEpisode]]:
    """Run episodes side by side.

    Args:
        policy: a planner, with its settings, or what makes another policy.
        env: the environment under a protocol.
        episodes: indices of the episodes; with `seed` and `stream` they fix every random number.
        seed: seed of the evaluation.
        stream: what the episodes are for; tuning and evaluation never share one.
        goal: a position that every episode must reach, in place of the protocol's goal.
        num_recorded: keep trajectories of this many of the episodes.

    Returns:
        A result for each episode, and the recorded ones.

    Raises:
        ConfigError: the environment cannot be made, has no goals, or refuses this one.
    """
    make_policy = follow_planner(policy) if isinstance(policy, Planner) else policy
    vector_env = make_vector_env(env, len(episodes))
    try:
        references = get_reference_returns(env)
        return _evaluate(make_policy, env, vector_env, references, list(episodes), seed, stream, goal, num_recorded)
    finally:
        vector_env.close()


def _evaluate(
    make_policy: MakePolicy,
    env: EnvConfig,
    vector_env: VectorEnv,
    reference_returns: tuple[float, float] | None,
    episodes: list[int],
    seed: int,
    stream: Stream,
    goal: Sequence[float] | None,
    num_recorded: int,
) -> tuple[list[EpisodeResult], list[RecordedEpisode]]:
    seeds = [make_seed(seed, stream, episode, 0) for episode in episodes]
    generator = torch.Generator().manual_seed(make_seed(seed, stream, episodes[0], 1))
    low, high = (
        np.array([default if v is None else v for v in values])
        for values, default in zip(get_box_bounds(vector_env), (-np.inf, np.inf), strict=True)
    )
    try:
        options = None if goal is None else {"goal": list(goal)}
        observations, infos = vector_env.reset(seed=seeds, options=options)  # pyright: ignore[reportArgumentType]  # a seed each
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if "goal" not in infos:
        raise ConfigError("env.env_id: expected an environment whose infos have a 'goal', got none")
    starts, goals = observations.copy(), np.array(infos["goal"])
    own_seeds = [make_seed(seed, stream, episode, 2) for episode in episodes]
    policy = make_policy(RolloutContext(env, own_seeds, generator, low, high))
    policy.reset(observations, goals)
    first_plans: list[Plan | None] = list(getattr(policy, "plans", [None] * len(episodes)))
    num_envs = len(episodes)
    num_plans = np.zeros(num_envs, dtype=int)
    running = np.ones(num_envs, dtype=bool)
    record = Record(observations)
    in_step = not (hasattr(policy, "act_some") and hasattr(vector_env, "step_some"))
    while running.any():
        if in_step:
            stepped, rows = np.flatnonzero(running), running
            after, rewards, terminations, truncations, infos = vector_env.step(policy.act(observations))
            observations = restart_ended(vector_env, after, ended := terminations | truncations)
        else:
            stepped, actions = policy.act_some(observations, running)  # pyright: ignore[reportAttributeAccessIssue]
            after, rewards, terminations, truncations, infos = vector_env.step_some(stepped, actions)  # pyright: ignore[reportAttributeAccessIssue]
            observations[stepped], ended, rows = after, terminations | truncations, slice(None)
        record.add(stepped, after[rows], rewards[rows], np.asarray(infos["success"])[rows])
        num_plans = np.where(running, getattr(policy, "num_plans", num_plans), num_plans)
        running[stepped] = ~ended[rows]
    returns, lengths, reached = record.returns, record.lengths, record.times_to_goal
    total_plans = int(getattr(policy, "num_plans", num_plans).sum())
    plan_seconds = getattr(policy, "plan_seconds", 0.0) / max(total_plans, 1)
    efficiencies, num_collision_steps = _compare_paths(env, record, starts, goals)
    results = [
        EpisodeResult(
            episode=episode,
            seed=seeds[i],
            goal=goals[i].tolist(),
            start=starts[i].tolist(),
            undiscounted_return=float(returns[i]),
            score=normalize_score(float(returns[i]), reference_returns),
            success=bool(reached[i] >= 0),
            time_to_goal_steps=int(reached[i]) if reached[i] >= 0 else None,
            length=int(lengths[i]),
            horizon=None if (plan := first_plans[i]) is None else plan.horizon,
            plan_speed_error=None if plan is None else plan.speed_error,
            num_plans=int(num_plans[i]),
            plan_seconds=plan_seconds * int(num_plans[i]),
            path_efficiency=efficiencies[i],
            num_collision_steps=num_collision_steps[i],
        )
        for i, episode in enumerate(episodes)
    ]
    recorded = [
        RecordedEpisode(results[i], first_plans[i], record.observations[: lengths[i] + 1, i].astype(np.float32))
        for i in range(min(num_recorded, num_envs))
    ]
    return results, recorded


def _compare_paths(
    env: EnvConfig, record: Record, starts: np.ndarray, goals: np.ndarray
) -> tuple[list[float | None], list[int | None]]:
    """Path efficiency and number of steps in touch with a wall of each episode, None where they mean nothing."""
    num_envs = len(starts)
    collisions: list[int | None] = [None] * num_envs
    if (touches_wall := get_touches_wall(env)) is not None:
        collisions = [int(number) for number in record.count(touches_wall)]
    if (shortest_path_lengths := get_shortest_path_lengths(env)) is None:
        return [None] * num_envs, collisions
    shortest, travelled = shortest_path_lengths(starts, goals), record.path_lengths(list(env.position_columns))
    counts = (record.times_to_goal >= 0) & (shortest > 0) & (travelled > 0)
    return [float(shortest[i] / travelled[i]) if counts[i] else None for i in range(num_envs)], collisions

"""Evaluate a policy on a block of episodes in one process."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from diffplan.config import EnvConfig
from diffplan.environments import get_box_bounds, get_episode_limit, make_vector_env, restart_ended
from diffplan.errors import ConfigError
from diffplan.evaluation.policies import follow_planner
from diffplan.evaluation.record import Record
from diffplan.evaluation.scores import EpisodeResult, normalize_score
from diffplan.planning.planner import Planner
from diffplan.seeding import Stream, make_seed
from diffplan.tasks.contracts import Ask, FinishedEpisodes, MakePolicy, RolloutContext
from diffplan.tasks.registry import task_of
from diffplan.tasks.task import Task
from diffplan.types import Plan


@dataclass(frozen=True)
class RecordedEpisode:
    """An episode to draw: its first plan and its rollout.

    Attributes:
        result: its scores.
        plan: the first plan; None for a policy without plans.
        observations: float32[length + 1, observation_dim].
    """

    result: EpisodeResult
    plan: Plan | None
    observations: np.ndarray


@dataclass(frozen=True)
class BegunEpisodes:
    """A batch of episodes before their first step.

    Attributes:
        seeds: that the environments were reset with.
        observations: the first ones, float[num_envs, observation_dim].
        ask: what plans must satisfy.
        action_low: lower bounds of the actions, -inf for none.
        action_high: upper bounds of the actions, inf for none.
    """

    seeds: list[int]
    observations: np.ndarray
    ask: Ask
    action_low: np.ndarray
    action_high: np.ndarray


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
        policy: a planner with its settings, or a function that makes a policy.
        env: the environment under a protocol.
        episodes: indices of the episodes; with `seed` and `stream` they fix every random number.
        seed: seed of the evaluation.
        stream: random stream of the episodes; tuning and evaluation have different ones.
        goal: values of the goal columns that every episode must reach, in place of the protocol's goal.
        num_recorded: keep trajectories of this many of the episodes.

    Returns:
        A result for each episode, and the recorded ones.

    Raises:
        ConfigError: the environment cannot be made, its episodes may never end, it refuses or ignores the goal, or the
            task measures other metrics than it declares.
    """
    make_policy = follow_planner(policy) if isinstance(policy, Planner) else policy
    get_episode_limit(env)
    vector_env = make_vector_env(env, len(episodes))
    try:
        return _evaluate(make_policy, env, task_of(env), vector_env, list(episodes), seed, stream, goal, num_recorded)
    finally:
        vector_env.close()


def _evaluate(
    make_policy: MakePolicy,
    env: EnvConfig,
    task: Task,
    vector_env: VectorEnv,
    episodes: list[int],
    seed: int,
    stream: Stream,
    goal: Sequence[float] | None,
    num_recorded: int,
) -> tuple[list[EpisodeResult], list[RecordedEpisode]]:
    begun = begin_episodes(env, vector_env, episodes, seed, stream, goal)
    seeds, observations, ask = begun.seeds, begun.observations, begun.ask
    generator = torch.Generator().manual_seed(make_seed(seed, stream, episodes[0], 1))
    starts, goals = observations.copy(), None if ask.goals is None else np.array(ask.goals)
    own_seeds = [make_seed(seed, stream, episode, 2) for episode in episodes]
    policy = make_policy(RolloutContext(env, own_seeds, generator, begun.action_low, begun.action_high))
    start_policy(policy, observations, goals, ask)
    first_plans: list[Plan | None] = list(getattr(policy, "plans", [None] * len(episodes)))
    num_envs = len(episodes)
    num_plans = np.zeros(num_envs, dtype=int)
    running = np.ones(num_envs, dtype=bool)
    record = Record(observations)
    knows_success = False
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
        success = infos.get("success", np.zeros(len(rewards), dtype=bool))
        record.add(stepped, after[rows], rewards[rows], np.asarray(success)[rows].astype(bool))
        knows_success |= "success" in infos
        num_plans = np.where(running, getattr(policy, "num_plans", num_plans), num_plans)
        running[stepped] = ~ended[rows]
    returns, lengths, reached = record.returns, record.lengths, record.times_to_goal
    total_plans = int(getattr(policy, "num_plans", num_plans).sum())
    plan_seconds = getattr(policy, "plan_seconds", 0.0) / max(total_plans, 1)
    references = task.references(env)
    scores = np.array([normalize_score(float(value), references) for value in returns])
    measured = measure_episodes(task, FinishedEpisodes(env, record, starts, goals, scores))
    results = [
        EpisodeResult(
            episode=episode,
            seed=seeds[i],
            goal=None if goals is None else goals[i].tolist(),
            start=starts[i].tolist(),
            undiscounted_return=float(returns[i]),
            score=float(scores[i]),
            success=bool(reached[i] >= 0) if knows_success else None,
            time_to_goal_steps=int(reached[i]) if reached[i] >= 0 else None,
            length=int(lengths[i]),
            horizon=None if (plan := first_plans[i]) is None else plan.horizon,
            plan_speed_error=None if plan is None else plan.speed_error,
            num_plans=int(num_plans[i]),
            plan_seconds=plan_seconds * int(num_plans[i]),
            metrics={name: values[i] for name, values in measured.items()},
        )
        for i, episode in enumerate(episodes)
    ]
    recorded = [
        RecordedEpisode(results[i], first_plans[i], record.observations[: lengths[i] + 1, i].astype(np.float32))
        for i in range(min(num_recorded, num_envs))
    ]
    return results, recorded


def begin_episodes(
    env: EnvConfig,
    vector_env: VectorEnv,
    episodes: list[int],
    seed: int,
    stream: Stream,
    goal: Sequence[float] | None,
) -> BegunEpisodes:
    """Reset a batch to the episodes of an evaluation; arguments as for `evaluate_episodes`.

    Raises:
        ConfigError: the environment refuses or ignores the goal, or its actions are not vectors.
    """
    task = task_of(env)
    seeds = [make_seed(seed, stream, episode, 0) for episode in episodes]
    low, high = (
        np.array([default if v is None else v for v in values])
        for values, default in zip(get_box_bounds(vector_env), (-np.inf, np.inf), strict=True)
    )
    try:
        options = None if goal is None else {"goal": list(goal)}
        observations, infos = vector_env.reset(seed=seeds, options=options)  # pyright: ignore[reportArgumentType]  # a seed each
    except ValueError as error:
        raise ConfigError(str(error)) from None
    ask = (task.ask or ask_for_goal)(env, observations, infos)
    if goal is not None:
        _check_goal(goal, env, infos)
    return BegunEpisodes(seeds, observations, ask, low, high)


def ask_for_goal(env: EnvConfig, observations: np.ndarray, infos: Mapping[str, Any]) -> Ask:
    """The default of `Task.ask`: the `goal` of the infos, if they have one.

    Raises:
        ConfigError: goals that are not vectors of equally many finite numbers in each environment.
    """
    if infos.get("goal") is None:
        return Ask()
    goals = np.asarray(infos["goal"])
    try:
        # Gymnasium keeps lists and tuples of a batch as objects.
        goals = np.array(goals.tolist(), dtype=np.float64) if goals.dtype == object else goals
        if goals.ndim == 2 and np.isfinite(goals.astype(np.float64)).all():
            return Ask(goals)
    except (TypeError, ValueError):
        pass
    raise ConfigError(
        f"env.env_id {env.env_id!r}: expected infos with a goal of as many finite numbers in each environment, got "
        f"{textwrap.shorten(repr(infos['goal']), 100)}"
    )


def _check_goal(goal: Sequence[float], env: EnvConfig, infos: Mapping[str, Any]) -> None:
    """Raise `ConfigError` unless every episode has this goal."""
    goals = ask_for_goal(env, np.empty(0), infos).goals
    if goals is None:
        raise ConfigError(f"goal: expected none, for episodes of {env.env_id} have no goal, got {list(goal)}")
    if goals.shape[1] != len(goal) or not np.allclose(goals, np.asarray(goal), rtol=1e-5, atol=1e-6):
        raise ConfigError(
            f"goal: expected an environment that takes the reset option 'goal', got {env.env_id}, which starts with "
            f"{goals[0].tolist()} instead of {list(goal)}"
        )


def measure_episodes(task: Task, episodes: FinishedEpisodes) -> dict[str, list[float | None]]:
    """All metrics of a task for each episode; None where a metric is undefined.

    Raises:
        ConfigError: the task measures other metrics than it declares, or not a number for each episode.
    """
    num = len(episodes.starts)
    measured = {} if task.measure is None else dict(task.measure(episodes))
    if unknown := sorted(set(measured) - set(task.metrics)):
        raise ConfigError(
            f"task {task.name!r}: measure: expected metrics of the task ({', '.join(task.metrics) or 'none'}), got "
            f"{', '.join(unknown)}"
        )
    found: dict[str, list[float | None]] = {}
    for name in task.metrics:
        values = measured.get(name, [None] * num)
        if len(values) != num:
            raise ConfigError(
                f"task {task.name!r}: measure: {name}: expected {num} values, one for each episode, got {len(values)}"
            )
        found[name] = [None if value is None or np.isnan(value) else float(value) for value in values]
    return found


def start_policy(policy: Any, observations: np.ndarray, goals: np.ndarray | None, ask: Ask) -> None:
    """Start episodes; only planners get constraints and guides."""
    if (ask.constraints or ask.guides or ask.stage) and hasattr(policy, "ask"):
        policy.ask(constraints=ask.constraints, guides=ask.guides, stage=ask.stage)
    policy.reset(observations, goals)

"""Begin an episode before a cluster does, so that what would fail in every worker fails here, in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from diffplan.config import EnvConfig
from diffplan.environments import get_episode_limit, make_vector_env
from diffplan.errors import ConfigError, DiffplanError, describe_error
from diffplan.evaluation.rollout import begin_episodes, start_policy
from diffplan.evaluation.scores import normalize_score
from diffplan.seeding import Stream, make_seed
from diffplan.tasks.contracts import MakePolicy, RolloutContext
from diffplan.tasks.registry import task_of


def rehearse_episode(
    env: EnvConfig,
    *,
    seed: int,
    stream: Stream = Stream.EVALUATION,
    goal: Sequence[float] | None = None,
    observation_dim: int | None = None,
    make_policy: MakePolicy | None = None,
) -> None:
    """Begin the first episode of an evaluation, and step it once.

    Args:
        env: the environment under a protocol.
        seed: seed of the evaluation.
        stream: random stream of its episodes.
        goal: values of the goal columns that every episode must reach, in place of the protocol's goal.
        observation_dim: size of the observations that the policy takes; None if that is not known.
        make_policy: the policy; None for one that is too slow to be tried.

    Raises:
        ConfigError: the environment cannot be made or stepped, its episodes may never end, its observations or actions
            are not vectors of the right size, or it refuses or ignores the goal; or the policy cannot act in it.
    """
    get_episode_limit(env)
    with _as_one_line(env):
        batch = make_vector_env(env, 1)
        try:
            begun = begin_episodes(env, batch, [0], seed, stream, goal)
            size = begun.observations.shape[-1]
            if begun.observations.ndim != 2:
                raise ConfigError(
                    f"env.env_id {env.env_id!r}: expected observations in a 1-d Box, got "
                    f"{batch.single_observation_space}"
                )
            if observation_dim not in (None, size):
                raise ConfigError(
                    f"env.env_id {env.env_id!r}: expected observations of size {observation_dim}, as the policy was "
                    f"trained with, got {size}; evaluate it in the environment of its data"
                )
            actions = batch.action_space.sample()
            if make_policy is not None:
                seeds = [make_seed(seed, stream, 0, 2)]
                context = RolloutContext(env, seeds, torch.Generator(), begun.action_low, begun.action_high)
                policy = make_policy(context)
                start_policy(policy, begun.observations, begun.ask.goals, begun.ask)
                actions = policy.act(begun.observations)
            batch.step(actions)
            normalize_score(0.0, task_of(env).references(env))
        finally:
            batch.close()


@contextlib.contextmanager
def _as_one_line(env: EnvConfig) -> Iterator[None]:
    """The code of an environment may raise anything."""
    try:
        yield
    except DiffplanError:
        raise
    except Exception as error:
        raise ConfigError(
            f"env.env_id {env.env_id!r}: expected that an episode begins, got {describe_error(error)[:300]}"
        ) from error

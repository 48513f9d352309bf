"""Policies to act with: one environment or a batch, with ten lines from import to a moving robot."""

import gymnasium
import numpy as np
import pytest
import torch

import diffplan
from diffplan.errors import PlanningError

POLICY = "pretrained:maze2d-umaze"


def test_a_policy_drives_one_environment_to_its_goal() -> None:
    env = gymnasium.make("diffplan/Maze2D-UMaze-v1")
    policy = diffplan.load_policy(POLICY)
    observation, info = env.reset(seed=3)
    policy.reset(observation, info["goal"])
    reached = False
    for _ in range(300):
        action = policy.act(observation)
        assert action.shape == (2,)
        assert action.dtype == np.float32
        observation, _, _, truncated, info = env.step(action)
        reached |= bool(info["success"])
        if reached or truncated:
            break
    assert reached
    assert policy.plans[0].horizon >= 2
    assert "maze2d-umaze" in repr(policy)


def test_a_batch_of_one_acts_as_one_alone_and_generators_decide_the_noise() -> None:
    observation, goal = np.array([3.0, 1.0, 0.0, 0.0]), np.array([1.0, 1.0])

    def first_action(observations: np.ndarray, seed: int) -> np.ndarray:
        policy = diffplan.load_policy(POLICY, generator=torch.Generator().manual_seed(seed))
        policy.reset(observations, goal)
        return policy.act(observations)

    alone, batch = first_action(observation, 1), first_action(observation[None], 1)
    assert np.array_equal(alone, batch[0])
    assert batch.shape == (1, 2)
    assert first_action(np.tile(observation, (3, 1)), 1).shape == (3, 2)
    policies = [diffplan.load_policy(POLICY, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    for policy in policies:
        policy.reset(observation, goal)
    first, second = (policy.plans[0].observations for policy in policies)
    assert first.shape != second.shape or not np.array_equal(first, second)


def test_misuse_is_one_clear_line() -> None:
    policy = diffplan.load_policy(POLICY)
    observation = np.array([3.0, 1.0, 0.0, 0.0])
    with pytest.raises(PlanningError, match="expected reset"):
        policy.act(observation)
    policy.reset(observation, np.array([1.0, 1.0]))
    with pytest.raises(PlanningError, match="as reset was given"):
        policy.act(observation[None])
    with pytest.raises(PlanningError, match="observations: expected shape"):
        policy.reset(observation[:3], np.array([1.0, 1.0]))

import dataclasses

import numpy as np
import pytest
import torch

from diffplan.config import EnvConfig
from diffplan.data.windows.normalization import Normalizer
from diffplan.environments import make_vector_env
from diffplan.errors import ConfigError
from diffplan.evaluation.policies import follow_clone, list_scripted
from diffplan.evaluation.protocol import apply_protocol
from diffplan.evaluation.rollout import evaluate_episodes
from diffplan.layout import Layout
from diffplan.networks.policy_network import PolicyNetwork
from diffplan.planning.cloned_policy import ClonedPolicy
from diffplan.seeding import Stream, make_seed
from diffplan.tasks.contracts import RolloutContext
from diffplan.tasks.maze2d.environment import get_maze
from diffplan.tasks.maze2d.waypoint import WaypointBehavior
from diffplan.tasks.registry import find_task

ENV = EnvConfig(env_id="diffplan/Maze2D-UMaze-v1")
MULTI2D = apply_protocol("multi2d", ENV)
SCRIPTED = list_scripted(find_task("maze2d"))


def test_the_waypoint_baseline_is_the_controller_without_noise():
    """Step by step by hand: the same controller, goals and seeds give the same returns."""
    results, recorded = evaluate_episodes(SCRIPTED["waypoint"], MULTI2D, range(6), seed=5, num_recorded=6)
    env = make_vector_env(MULTI2D, 6)
    observations, infos = env.reset(seed=[make_seed(5, Stream.EVALUATION, i, 0) for i in range(6)])
    behavior = WaypointBehavior(get_maze(ENV), goals=np.array(infos["goal"]))
    generators = [
        np.random.Generator(np.random.PCG64(make_seed(5, Stream.EVALUATION, episode, 2))) for episode in range(6)
    ]
    behavior.reset(observations, generators)
    returns = np.zeros(6)
    for _ in range(300):
        observations, rewards, *_ = env.step(behavior.act(observations))
        returns += rewards
    env.close()
    assert [result.undiscounted_return for result in results] == returns.tolist()
    assert all(result.success for result in results)
    for result, episode in zip(results, recorded, strict=True):
        assert episode.plan is None
        assert (result.horizon, result.plan_speed_error, result.num_plans, result.plan_seconds) == (None, None, 0, 0.0)


def test_the_waypoint_baseline_reaches_what_a_random_policy_does_not():
    waypoint, _ = evaluate_episodes(SCRIPTED["waypoint"], ENV, range(100), seed=0)
    uniform, _ = evaluate_episodes(SCRIPTED["random"], ENV, range(100), seed=0)
    # docs/results/maze2d_references.json, 300 episodes: waypoint 145, random 3.9
    assert np.mean([result.score for result in waypoint]) == pytest.approx(146, abs=10)
    assert np.mean([result.score for result in uniform]) == pytest.approx(4, abs=15)


@pytest.mark.parametrize("name", ["random", "waypoint"])
def test_an_episode_is_the_same_in_any_block(name):
    together, _ = evaluate_episodes(SCRIPTED[name], MULTI2D, range(5), seed=2)
    apart = [evaluate_episodes(SCRIPTED[name], MULTI2D, [i], seed=2)[0][0] for i in range(5)]
    assert together == apart
    assert together != evaluate_episodes(SCRIPTED[name], MULTI2D, range(5), seed=3)[0]


@pytest.mark.parametrize(
    ("name", "message"), [("waypoint", "expected an environment with a maze"), ("random", "expected bounded actions")]
)
def test_a_scripted_policy_says_what_it_lacks(name, message):
    unbounded = np.full(1, np.inf)
    context = RolloutContext(EnvConfig(env_id="Pendulum-v1"), [0], torch.Generator(), -unbounded, unbounded)
    with pytest.raises(ConfigError, match=message):
        SCRIPTED[name](context)


class Spring(PolicyNetwork):
    """Actions 0.4 (goal - position) in model space, or 3 where it is told no goal."""

    def __init__(self):
        torch.nn.Module.__init__(self)

    def forward(self, observations, goals):
        return torch.full((len(observations), 2), 3.0) if goals is None else 0.4 * (goals - observations[:, :2])


def test_a_clone_is_told_the_goal_and_kept_within_bounds():
    normalizer = Normalizer(np.float32([0, 0, 1, 1, 0, 0]), np.float32([2, 2, 5, 5, 1, 1]))
    low, high = np.full(2, -1.0), np.full(2, 1.0)
    context = RolloutContext(ENV, [0, 1], torch.Generator(), low, high)
    goals = np.array([[3.0, 1.0], [1.0, 4.0]])
    observations = np.array([[1.0, 1.0, 9.0, 9.0], [1.0, 1.0, 0.0, 0.0]])
    told = follow_clone(ClonedPolicy(Spring(), Layout(4, 2), normalizer, (0, 1)))(context)
    told.reset(observations, goals)
    # 2 * 0.4 * (goal - position) / 5
    np.testing.assert_allclose(told.act(observations), [[0.32, 0.0], [0.0, 0.48]], atol=1e-6)
    blind = follow_clone(ClonedPolicy(Spring(), Layout(4, 2), normalizer, ()))(context)
    blind.reset(observations, goals)
    actions = blind.act(observations)
    np.testing.assert_array_equal(actions, np.ones((2, 2)))
    assert actions.dtype == np.float32


def test_results_without_plans_are_plain_values():
    (result,), _ = evaluate_episodes(SCRIPTED["random"], ENV, range(1), seed=0)
    assert {type(value) for value in dataclasses.asdict(result).values()} <= {int, float, bool, list, dict, type(None)}
    assert {type(value) for value in result.metrics.values()} <= {float, type(None)}

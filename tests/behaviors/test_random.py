import numpy as np
import pytest

from diffplan.behaviors.random import RandomBehavior
from diffplan.behaviors.registry import make_behavior
from diffplan.config import EnvConfig
from diffplan.errors import ConfigError
from diffplan.tasks.contracts import BehaviorContext


def collect_actions(low, high, num_envs, num_steps):
    behavior = RandomBehavior(np.array(low), np.array(high))
    observations = np.zeros((num_envs, 4))
    behavior.reset(observations, [np.random.default_rng(i) for i in range(num_envs)])
    return np.array([behavior.act(observations) for _ in range(num_steps)])


def test_actions_fill_the_bounds_uniformly():
    actions = collect_actions([-1.0, 2.0], [1.0, 6.0], num_envs=4, num_steps=3000)
    assert actions.dtype == np.float32
    flat = actions.reshape(-1, 2)
    assert (flat >= [-1, 2]).all()
    assert (flat <= [1, 6]).all()
    np.testing.assert_allclose(flat.mean(axis=0), [0, 4], atol=0.05)
    np.testing.assert_allclose(flat.std(axis=0), [2 / 12**0.5, 4 / 12**0.5], rtol=0.03)


def test_no_action_repeats_over_more_steps_than_a_block_of_draws():
    actions = collect_actions([-1.0], [1.0], num_envs=2, num_steps=1500)
    assert len(np.unique(actions)) > 2980  # 3000 draws, of which few coincide in float32


def test_actions_of_an_environment_do_not_depend_on_the_others():
    many = collect_actions([-1.0, -1.0], [1.0, 1.0], num_envs=5, num_steps=600)
    few = collect_actions([-1.0, -1.0], [1.0, 1.0], num_envs=2, num_steps=600)
    np.testing.assert_array_equal(many[:, :2], few)


def test_unbounded_actions_are_refused():
    env = EnvConfig(env_id="Pendulum-v1")
    context = BehaviorContext(env, np.array([-1.0]), np.array([np.inf]), action_noise=0.0, max_goal_steps=10)
    with pytest.raises(ConfigError, match="'random' needs bounded actions"):
        make_behavior("random", context)

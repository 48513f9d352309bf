import gymnasium
import numpy as np
import pytest
import torch

from diffplan.config import EnvConfig
from diffplan.environments import make_simulator, make_vector_env
from diffplan.errors import ConfigError
from diffplan.evaluation.baselines.mppi import (
    MppiPolicy,
    MppiSettings,
    compute_weights,
    follow_mppi,
    shift_sequences,
)
from diffplan.tasks.contracts import RolloutContext

UMAZE = EnvConfig(env_id="diffplan/Maze2D-UMaze-v1")
OPEN = EnvConfig(env_id="diffplan/Maze2D-Open-v1", env_kwargs={"redraw_goal": True})
SMALL = MppiSettings(num_samples=16, horizon=20, steps_per_knot=5, steps_per_plan=5)


class QuadraticSimulator:
    """One step pays -(action - target)^2 per axis, with the target in the observation: what is best is known."""

    def __init__(self, num_envs):
        self.num_envs = num_envs
        self.actions = []

    def set_states(self, observations, goals):
        self.targets = observations.copy()
        self.actions = []

    def step(self, actions):
        self.actions.append(actions.copy())
        rewards = -((actions - self.targets) ** 2).sum(axis=1)
        return self.targets, rewards, np.zeros(self.num_envs)


def generators(num_envs, seed=0):
    return [np.random.default_rng([seed, i]) for i in range(num_envs)]


def quadratic_policy(settings, num_envs=2, bound=1.0):
    simulators = []

    def make_batch(size):
        simulators.append(QuadraticSimulator(size))
        return simulators[0]

    bounds = np.full(2, -bound), np.full(2, bound)
    return MppiPolicy(make_batch, settings, generators(num_envs), *bounds), simulators[0]


def context(env, num_envs, seed=0):
    return RolloutContext(env, list(range(seed, seed + num_envs)), torch.Generator(), np.full(2, -1.0), np.full(2, 1.0))


# --- the weights ---


def test_weights_are_the_softmax_of_returns_over_temperature_and_spread():
    returns = np.array([[0.0, 1.0, 2.0], [5.0, 5.0, 11.0]])
    expected = np.exp(returns / (0.5 * returns.std(axis=1, keepdims=True)))
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(compute_weights(returns, 0.5), expected, rtol=1e-12)


def test_a_temperature_towards_zero_leaves_the_best_and_one_towards_infinity_the_mean():
    returns = np.random.default_rng(0).normal(size=(5, 50))
    np.testing.assert_array_equal(compute_weights(returns, 1e-9), np.eye(50)[returns.argmax(axis=1)])
    np.testing.assert_allclose(compute_weights(returns, 1e9), np.full((5, 50), 0.02), rtol=1e-6)


def test_weights_do_not_depend_on_the_unit_of_the_reward():
    returns = np.random.default_rng(1).normal(size=(3, 20))
    np.testing.assert_allclose(compute_weights(1e-4 * returns - 7, 0.3), compute_weights(returns, 0.3), rtol=1e-6)


def test_samples_that_are_paid_alike_weigh_alike():
    np.testing.assert_array_equal(compute_weights(np.full((2, 4), 3.0), 0.1), np.full((2, 4), 0.25))


# --- a plan, where the answer is known ---


def test_the_coldest_plan_is_the_best_of_the_sequences_that_were_tried():
    settings = MppiSettings(num_samples=40, horizon=6, steps_per_knot=2, steps_per_plan=3, temperature=1e-9)
    policy, simulator = quadratic_policy(settings)
    targets = np.array([[0.3, -0.4], [-0.8, 0.1]])
    policy.reset(targets, np.zeros((2, 1)))
    actions = policy.act(targets)
    tried = np.stack(simulator.actions, axis=1).reshape(2, 40, 6, 2)
    assert (tried[:, 0] == 0).all()  # the sequence itself, without noise
    np.testing.assert_array_equal(tried[:, :, 0::2], tried[:, :, 1::2])  # noise is held for two steps
    costs = ((tried - targets[:, None, None]) ** 2).sum(axis=(2, 3))
    best = tried[np.arange(2), costs.argmin(axis=1)]
    np.testing.assert_array_equal(policy.sequences, best)
    np.testing.assert_array_equal(actions, best[:, 0])
    assert actions.dtype == np.float32


def test_a_plan_is_the_weighted_average_of_the_sequences_that_were_tried():
    settings = MppiSettings(num_samples=30, horizon=4, steps_per_knot=1, steps_per_plan=1, temperature=0.7)
    policy, simulator = quadratic_policy(settings)
    targets = np.array([[0.3, -0.4], [-0.8, 0.1]])
    policy.reset(targets, np.zeros((2, 1)))
    policy.act(targets)
    tried = np.stack(simulator.actions, axis=1).reshape(2, 30, 4, 2).astype(np.float64)
    weights = compute_weights(-((tried - targets[:, None, None]) ** 2).sum(axis=(2, 3)), 0.7)
    np.testing.assert_allclose(policy.sequences, np.einsum("es,esha->eha", weights, tried), atol=1e-6)


def test_iterations_come_to_the_optimum():
    settings = MppiSettings(
        num_samples=200, horizon=2, steps_per_knot=2, steps_per_plan=1, noise_std=0.3, num_iterations=30
    )
    policy, _ = quadratic_policy(settings)
    targets = np.array([[0.3, -0.4], [-0.8, 0.1]])
    policy.reset(targets, np.zeros((2, 1)))
    np.testing.assert_allclose(policy.act(targets), targets, atol=0.03)
    assert policy.num_plans.tolist() == [1, 1]


def test_samples_stay_within_the_bounds_of_the_actions():
    settings = MppiSettings(num_samples=30, horizon=4, steps_per_knot=1, steps_per_plan=1, noise_std=3.0)
    policy, simulator = quadratic_policy(settings, bound=0.5)
    policy.reset(np.ones((2, 2)), np.zeros((2, 1)))
    assert np.abs(policy.act(np.ones((2, 2)))).max() <= 0.5
    assert np.abs(simulator.actions).max() == 0.5


# --- between plans ---


def test_a_shifted_sequence_drops_what_was_done_and_holds_its_last_action():
    sequences = np.arange(10.0).reshape(1, 5, 2)
    np.testing.assert_array_equal(shift_sequences(sequences, 2)[0], [[4, 5], [6, 7], [8, 9], [8, 9], [8, 9]])
    np.testing.assert_array_equal(shift_sequences(sequences, 5)[0], [[8, 9]] * 5)


def test_a_sequence_is_followed_and_the_next_plan_starts_from_what_is_left():
    settings = MppiSettings(num_samples=8, horizon=6, steps_per_knot=1, steps_per_plan=2)
    policy, simulator = quadratic_policy(settings)
    observations = np.full((2, 2), 0.5)
    policy.reset(observations, np.zeros((2, 1)))
    acted = [policy.act(observations) for _ in range(2)]
    first = policy.sequences.copy()
    np.testing.assert_array_equal(np.stack(acted, axis=1), first[:, :2])
    assert policy.num_plans.tolist() == [1, 1]
    policy.act(observations)
    unperturbed = np.stack(simulator.actions, axis=1).reshape(2, 8, 6, 2)[:, 0]
    np.testing.assert_array_equal(unperturbed, shift_sequences(first, 2))
    assert policy.num_plans.tolist() == [2, 2]
    assert policy.plan_seconds > 0
    policy.reset(observations, np.zeros((2, 1)))
    assert not policy.sequences.any()
    assert policy.plan_seconds == 0
    assert policy.num_plans.tolist() == [0, 0]


# --- the simulator ---


@pytest.mark.parametrize("env_id", ["diffplan/Maze2D-UMaze-v1", "diffplan/Multi2D-Medium-Dense-v1"])
def test_the_simulator_is_the_environment_bit_for_bit(env_id):
    num_envs, dense_id = 4, env_id.removesuffix("-v1").removesuffix("-Dense") + "-Dense-v1"
    singles, dense = ([gymnasium.make(name) for _ in range(num_envs)] for name in (env_id, dense_id))
    simulator = make_simulator(EnvConfig(env_id=env_id), num_envs)
    random, num_contacts = np.random.default_rng(3), 0
    for _ in range(2):  # a simulator that was used before is as good as a new one
        starts = [single.reset(seed=int(random.integers(1000))) for single in singles]
        observations, goals = (np.stack([*rows]) for rows in zip(*((o, i["goal"]) for o, i in starts), strict=True))
        for i in range(num_envs):
            dense[i].reset(options={"observation": observations[i], "goal": goals[i]})
        simulator.set_states(observations, goals)
        for _ in range(20):
            actions = random.uniform(-2, 2, (num_envs, 2)).astype(np.float32)
            for _ in range(7):
                observations, rewards, dense_rewards = simulator.step(actions)
                for i in range(num_envs):
                    expected, reward, *_ = singles[i].step(actions[i])
                    np.testing.assert_array_equal(observations[i], expected)
                    assert (rewards[i], dense_rewards[i]) == (reward, dense[i].step(actions[i])[1])
                    num_contacts += singles[i].unwrapped.data.ncon
    assert num_contacts > 50


def test_an_environment_without_a_simulator_gives_one_line():
    with pytest.raises(ConfigError) as caught:
        make_simulator(EnvConfig(env_id="Pendulum-v1"), 2)
    assert str(caught.value) == "env.env_id 'Pendulum-v1': expected one with a simulator to plan in, got none"


# --- in the maze ---


def rollout(env, num_envs, settings, seed, num_steps, options=None):
    batch = make_vector_env(env, num_envs)
    observations, infos = batch.reset(seed=seed, options=options)
    policy = follow_mppi(settings)(context(env, num_envs, seed))
    policy.reset(observations, infos["goal"])
    trajectory, success = [], np.zeros(num_envs, dtype=bool)
    for _ in range(num_steps):
        observations, *_, infos = batch.step(policy.act(observations))
        trajectory.append(observations)
        success |= infos["success"]
    batch.close()
    return np.array(trajectory), success


def test_it_reaches_near_goals_of_the_open_maze_and_stays():
    settings = MppiSettings(num_samples=32, horizon=60, steps_per_plan=10)
    options = {"observation": [2.0, 1.5, 0.0, 0.0], "goal": [2.0, 3.5]}
    trajectory, success = rollout(OPEN, 4, settings, 0, 130, options)
    assert success.all()
    assert (np.linalg.norm(trajectory[-30:, :, :2] - [2.0, 3.5], axis=-1) < 0.5).all()


def test_a_plan_depends_on_the_generators_alone():
    one, _ = rollout(UMAZE, 3, SMALL, 5, 12)
    again, _ = rollout(UMAZE, 3, SMALL, 5, 12)
    other, _ = rollout(UMAZE, 3, SMALL, 6, 12)
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_an_episode_is_the_same_in_any_batch():
    together, _ = rollout(UMAZE, 3, SMALL, 5, 12)
    for i in range(3):  # environment i of a batch is seeded with seed + i
        alone, _ = rollout(UMAZE, 1, SMALL, 5 + i, 12)
        np.testing.assert_array_equal(together[:, [i]], alone)


# --- mistakes ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 1}, "mppi.num_samples: expected at least 2, got 1"),
        ({"horizon": 0}, "mppi.horizon: expected at least 1, got 0"),
        ({"temperature": 0.0}, "mppi.temperature: expected a finite number above 0, got 0.0"),
        ({"noise_std": np.inf}, "mppi.noise_std: expected a finite number above 0, got inf"),
        ({"horizon": 20, "steps_per_knot": 21}, "mppi.steps_per_knot: expected 1 to the horizon, 20, got 21"),
        (
            {"horizon": 20, "steps_per_knot": 5, "steps_per_plan": 0},
            "mppi.steps_per_plan: expected 1 to the horizon, 20, got 0",
        ),
        ({"num_iterations": 0}, "mppi.num_iterations: expected at least 1, got 0"),
        ({"dense_weight": -1.0}, "mppi.dense_weight: expected a finite number that is not negative, got -1.0"),
    ],
)
def test_bad_settings_are_answered_with_one_line(settings, message):
    with pytest.raises(ConfigError) as caught:
        MppiSettings(**settings)
    assert str(caught.value) == message


def test_as_many_observations_as_generators_are_asked_for():
    policy, _ = quadratic_policy(SMALL)
    with pytest.raises(ValueError, match="observations: expected 2 rows, got 3"):
        policy.reset(np.zeros((3, 2)), np.zeros((3, 1)))

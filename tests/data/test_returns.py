import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffplan.data.windows.returns import compute_returns_to_go


def sum_rewards(rewards, lengths, discount, terminated, penalty):
    """Returns-to-go by their definition."""
    returns, start = [], 0
    for length, ended in zip(lengths, terminated, strict=True):
        episode = [float(reward) for reward in rewards[start : start + length]]
        episode[-1] -= penalty if ended else 0.0
        for t in range(length):
            returns.append(sum(discount ** (k - t) * episode[k] for k in range(t, length)))
        start += length
    return np.array(returns)


def test_returns_of_two_episodes():
    returns = compute_returns_to_go(np.array([1.0, 2.0, 4.0, 8.0, 16.0]), np.array([3, 2]), 0.5)
    assert returns.dtype == np.float32
    np.testing.assert_array_equal(returns, [3.0, 4.0, 4.0, 16.0, 16.0])


def test_penalty_is_taken_off_the_last_reward_of_terminated_episodes():
    rewards, lengths = np.ones(6, np.float32), np.array([2, 1, 3])
    returns = compute_returns_to_go(rewards, lengths, 0.5, np.array([True, True, False]), 100.0)
    np.testing.assert_array_equal(returns, [-48.5, -99.0, -99.0, 1.75, 1.5, 1.0])
    np.testing.assert_array_equal(rewards, 1)
    np.testing.assert_array_equal(compute_returns_to_go(rewards, lengths, 1.0, None, 100.0), [2, 1, 1, 3, 2, 1])


@given(
    lengths=st.lists(st.integers(1, 40), max_size=12),
    discount=st.sampled_from([1e-3, 0.5, 0.9, 0.997, 1.0]),
    penalty=st.sampled_from([0.0, 1.0, 100.0]),
    dtype=st.sampled_from([np.float32, np.float64, np.int64]),
    seed=st.integers(0, 2**31),
)
def test_returns_are_the_sums_of_their_definition(lengths, discount, penalty, dtype, seed):
    generator = np.random.default_rng(seed)
    rewards = generator.normal(0, 5, sum(lengths)).astype(dtype)
    terminated = generator.random(len(lengths)) < 0.5
    returns = compute_returns_to_go(rewards, np.array(lengths, np.int32), discount, terminated, penalty)
    expected = sum_rewards(rewards, lengths, discount, terminated, penalty)
    assert returns.shape == (sum(lengths),)
    np.testing.assert_allclose(returns, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("discount", [0.9, 0.9999, 1.0])
@pytest.mark.parametrize("lengths", [[511, 3, 512, 513, 514, 1, 1100], [1500], [1, 700, 1]])
def test_long_episodes_are_summed_like_short_ones(lengths, discount):
    generator = np.random.default_rng(0)
    rewards, terminated = generator.normal(size=sum(lengths)), generator.random(len(lengths)) < 0.5
    returns = compute_returns_to_go(rewards, np.array(lengths, np.uint32), discount, terminated, 10.0)
    np.testing.assert_allclose(returns, sum_rewards(rewards, lengths, discount, terminated, 10.0), rtol=1e-6, atol=1e-5)


def test_precision_holds_over_a_million_steps():
    # 0.9 to the power of a million is 0 in float64; the geometric series is 10 nearly everywhere.
    returns = compute_returns_to_go(np.ones(1_000_000), np.array([1_000_000]), 0.9)
    steps_left = np.arange(1_000_000, 0, -1)
    np.testing.assert_allclose(returns, (1 - 0.9**steps_left) / 0.1, rtol=1e-6)
    undiscounted = compute_returns_to_go(np.full(1_000_000, 0.1), np.array([1_000_000]), 1.0)
    np.testing.assert_allclose(undiscounted, 0.1 * steps_left, rtol=1e-6)


@pytest.mark.parametrize("length", [3, 600])
def test_reward_that_is_not_finite_stays_in_its_episode(length):
    rewards = np.ones(3 * length)
    rewards[2 * length - 2] = np.nan
    returns = compute_returns_to_go(rewards, np.full(3, length), 1.0)
    expected = np.tile(np.arange(length, 0.0, -1), 3)
    expected[length : 2 * length - 1] = np.nan
    np.testing.assert_array_equal(returns, expected)


def test_millions_of_short_episodes_are_quick():
    lengths = np.full(2_000_000, 3)
    start = time.perf_counter()
    returns = compute_returns_to_go(np.ones(6_000_000, np.float32), lengths, 0.5)
    assert time.perf_counter() - start < 10  # a Python loop over episodes takes longer
    np.testing.assert_array_equal(returns.reshape(-1, 3).min(axis=0), [1.75, 1.5, 1.0])
    np.testing.assert_array_equal(returns.reshape(-1, 3).max(axis=0), [1.75, 1.5, 1.0])


def test_no_episodes_have_no_returns():
    assert compute_returns_to_go(np.zeros(0), [], 0.9).shape == (0,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": np.array([2, 2])}, "lengths: expected a sum of 5, the number of rewards, got 4"),
        ({"lengths": np.array([3, 3])}, "lengths: expected a sum of 5, the number of rewards, got 6"),
        ({"lengths": np.array([])}, "lengths: expected a sum of 5, the number of rewards, got 0"),
        ({"lengths": np.array([5, 0])}, "lengths: expected positive numbers, got 0"),
        ({"lengths": np.array([7, -2])}, "lengths: expected positive numbers, got -2"),
        ({"lengths": np.array([2.5, 2.5])}, "lengths: expected integers in one dimension, got float64"),
        ({"lengths": np.array([[5]])}, "lengths: expected integers in one dimension, got int64"),
        ({"rewards": np.ones((5, 1))}, r"rewards: expected one dimension, got shape \(5, 1\)"),
        ({"discount": 0.0}, r"discount: expected a number in \(0, 1\], got 0.0"),
        ({"discount": 1.001}, r"discount: expected a number in \(0, 1\], got 1.001"),
        ({"discount": float("nan")}, r"discount: expected a number in \(0, 1\], got nan"),
        ({"termination_penalty": -1.0}, "termination_penalty: expected a finite number >= 0, got -1.0"),
        ({"termination_penalty": float("inf")}, "termination_penalty: expected a finite number >= 0, got inf"),
        ({"terminated": np.array([True])}, r"terminated: expected shape \(2,\), as lengths, got \(1,\)"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    arguments = {"rewards": np.ones(5), "lengths": np.array([3, 2]), "discount": 0.9}
    compute_returns_to_go(**arguments)
    with pytest.raises(ValueError, match=message):
        compute_returns_to_go(**{**arguments, **changes})

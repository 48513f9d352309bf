"""What stands behind `?` of a policy."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffplan.behaviors.collection import UnitCollector, make_manifest
from diffplan.behaviors.policy_file import make_policy
from diffplan.behaviors.policy_options import PolicyOptions, split_policy
from diffplan.behaviors.registry import make_behavior, parse_mixture
from diffplan.config import CollectionConfig, EnvConfig
from diffplan.errors import ConfigError
from diffplan.tasks.contracts import BehaviorContext
from diffplan.tasks.task import Task

PENDULUM = EnvConfig(env_id="Pendulum-v1")
CONTEXT = BehaviorContext(PENDULUM, np.array([-2.0]), np.array([2.0]), action_noise=0.0, max_goal_steps=50)


def save_constant(path, value=1.0, *, width=3, **further):
    """A policy that always acts the same, beside its noise."""
    arrays = {"w0": np.zeros((1, width)), "b0": np.array([value]), "act": "relu", "out": "clip", **further}
    np.savez(path, **arrays)
    return f"policy:{path}"


def save_perceptron(path, **further):
    draw = np.random.default_rng(2).normal
    arrays = {"w0": draw(size=(6, 3)), "b0": draw(size=6), "w1": draw(size=(1, 6)), "b1": draw(size=1)}
    np.savez(path, **arrays, act="tanh", out="tanh", log_std=np.array([-1.0]), **further)
    return f"policy:{path}"


def act(name, num_envs=4000, steps=1, width=3, context=CONTEXT):
    policy = make_policy(name, context)
    observations = np.ones((num_envs, width))
    policy.reset(observations, [np.random.default_rng([3, i]) for i in range(num_envs)])
    return np.stack([policy.act(observations)[:, 0] for _ in range(steps)])


def test_options_are_read():
    assert split_policy("policy:a/b.npz") == ("a/b.npz", PolicyOptions())
    path, options = split_policy(
        "policy:sac.npz?deterministic&noise=0.1&scale=0.3..1&scale_steps=100&skip=1&activation=relu&norm=c:d.npz"
    )
    assert path == "sac.npz"
    assert options == PolicyOptions(True, 0.1, (0.3, 1.0), 100, 1, "relu", "c:d.npz")
    assert split_policy("policy:a.npz?scale=.5")[1].scale == (0.5, 0.5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nois=0.1", ["got 'nois'", "Did you mean 'noise'?", "scale_steps"]),
        ("", ["expected one of", "got ''"]),
        ("noise", ["noise=S", "such as noise=0.1", "got 'noise'"]),
        ("noise=-1", ["noise=S"]),
        ("noise=nan", ["noise=S"]),
        ("noise=inf", ["noise=S"]),
        ("scale=1..0", ["0 <= A <= B", "'scale=1..0'"]),
        ("scale=1..", ["0 <= A <= B"]),
        ("scale=-1", ["0 <= A <= B"]),
        ("scale=a..b", ["0 <= A <= B"]),
        ("scale=0..1&scale_steps=0", ["scale_steps=N"]),
        ("scale=0..1&scale_steps=1.5", ["scale_steps=N"]),
        ("scale_steps=5", ["beside a range", "no range"]),
        ("scale=0.5&scale_steps=5", ["beside a range"]),
        ("skip=-1", ["skip=N"]),
        ("skip=one", ["skip=N"]),
        ("activation=gelu", ["relu, tanh", "gelu"]),
        ("norm=", ["norm=FILE"]),
        ("deterministic=1", ["without a value"]),
        ("noise=1&noise=2", ["noise twice"]),
    ],
)
def test_wrong_options_are_one_clear_line_before_any_file_is_read(text, words):
    with pytest.raises(ConfigError) as caught:
        make_manifest(PENDULUM, CollectionConfig(behavior=f"policy:none.npz?{text}"))
    assert "\n" not in str(caught.value)
    for word in ("collection.behavior", f"none.npz?{text}", *words):
        assert word in str(caught.value)


def test_names_of_a_mixture_keep_their_options():
    text = "policy:a.npz?noise=0.1:0.3, policy:b.npz?scale=0.5..1&skip=2:0.5,policy:a.npz:0.2"
    assert parse_mixture(text, Task(name="any")) == pytest.approx(
        {"policy:a.npz?noise=0.1": 0.3, "policy:b.npz?scale=0.5..1&skip=2": 0.5, "policy:a.npz": 0.2}
    )


def test_deterministic_leaves_out_the_noise_of_the_policy(tmp_path):
    for further in ({"log_std": np.zeros(1)}, {"log_std_w": np.zeros((1, 3)), "log_std_b": np.zeros(1)}):
        name = save_constant(tmp_path / "a.npz", 0.5, **further)
        assert act(name).std() > 0.5
        np.testing.assert_array_equal(act(f"{name}?deterministic"), 0.5)


def test_noise_is_in_halves_of_the_range_and_clipped(tmp_path):
    name = save_constant(tmp_path / "a.npz", 1.0)
    found = act(f"{name}?noise=0.1", steps=3)
    assert found.mean() == pytest.approx(1.0, abs=0.01)
    assert found.std() == pytest.approx(0.2, abs=0.01)
    assert abs(np.corrcoef(found[0], found[1])[0, 1]) < 0.1
    expected = 1 + 0.2 * np.random.default_rng([3, 7]).standard_normal((512, 1))[:3, 0]
    np.testing.assert_allclose(found[:, 7], expected, rtol=1e-6)
    loud = act(f"{name}?noise=5")
    assert (loud.min(), loud.max()) == (-2.0, 2.0)
    assert ((loud == 2) | (loud == -2)).mean() > 0.5
    unbounded = dataclasses.replace(CONTEXT, action_high=np.array([np.inf]))
    with pytest.raises(ConfigError, match="bounded actions for noise"):
        make_policy(f"{name}?noise=0.1", unbounded)
    make_policy(f"{name}?scale=0.5", unbounded)


def test_actions_are_scaled_after_they_are_squashed(tmp_path):
    name = save_constant(tmp_path / "a.npz", 5.0)  # clipped to 2
    np.testing.assert_allclose(act(f"{name}?scale=0.25", steps=2), 0.5)
    drawn = act(f"{name}?scale=0.3..0.9", steps=3) / 2
    np.testing.assert_array_equal(drawn[0], drawn[2])  # for the whole episode
    assert (drawn.min(), drawn.max()) == pytest.approx((0.3, 0.9), abs=0.002)
    assert np.quantile(drawn[0], [0.25, 0.5, 0.75]) == pytest.approx([0.45, 0.6, 0.75], abs=0.02)
    np.testing.assert_allclose(drawn[0, 11], np.random.default_rng([3, 11]).uniform(0.3, 0.9), rtol=1e-6)


def test_factors_are_drawn_again_at_random_times(tmp_path):
    name = save_constant(tmp_path / "a.npz", 1.0)
    found = act(f"{name}?scale=0..1&scale_steps=20", num_envs=300, steps=400)
    changed = np.diff(found, axis=0) != 0
    assert changed.mean() == pytest.approx(1 / 20, abs=0.003)
    assert np.diff(np.flatnonzero(changed[:, 0])).std() > 8  # geometric, and at other steps in other environments
    assert not np.array_equal(changed[:, 0], changed[:, 1])
    assert np.quantile(found[-1], [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.1)
    every = act(f"{name}?scale=0..1&scale_steps=1", num_envs=50, steps=50)
    assert (np.diff(every, axis=0) != 0).all()


def test_skipped_columns_are_the_first(tmp_path):
    np.savez(tmp_path / "a.npz", w0=np.array([[1.0, 10.0]]), b0=np.zeros(1), act="relu", out="clip")
    policy = make_policy(f"policy:{tmp_path}/a.npz?skip=2", CONTEXT)
    observations = np.array([[9.0, 9.0, 0.5, 0.05], [9.0, 9.0, 0.5, -0.15]])
    policy.reset(observations, [np.random.default_rng(0)] * 2)
    np.testing.assert_allclose(policy.act(observations)[:, 0], [1.0, -1.0], rtol=1e-6)
    # One wider than what is left: the time.
    policy = make_policy(f"policy:{tmp_path}/a.npz?skip=3", CONTEXT)
    policy.reset(observations, [np.random.default_rng(0)] * 2)
    np.testing.assert_allclose(policy.act(np.full((2, 4), -9.0)), np.ones((2, 1)), rtol=1e-6)
    np.testing.assert_allclose(policy.act(np.full((2, 4), -9.5)), np.full((2, 1), 10 * 0.98 - 9.5), rtol=1e-5)
    for skip, words in {0: r"as wide as the observations \(4\)", 4: "skip below the 4 observation columns"}.items():
        policy = make_policy(f"policy:{tmp_path}/a.npz?skip={skip}", CONTEXT)
        with pytest.raises(ConfigError, match=words):
            policy.reset(observations, [np.random.default_rng(0)] * 2)


def test_activation_of_a_file_can_be_replaced(tmp_path):
    np.savez(
        tmp_path / "a.npz", w0=np.array([[1.0]]), b0=np.zeros(1), w1=np.ones((1, 1)), b1=np.zeros(1), act="tanh",
        out="clip",
    )  # fmt: skip
    assert act(f"policy:{tmp_path}/a.npz", 1, width=1)[0, 0] == pytest.approx(np.tanh(1))
    assert act(f"policy:{tmp_path}/a.npz?activation=relu", 1, width=1)[0, 0] == pytest.approx(1)


def test_statistics_come_from_another_file(tmp_path):
    np.savez(tmp_path / "a.npz", w0=np.array([[1.0]]), b0=np.zeros(1), act="relu", out="clip")
    statistics = {"obs_mean": np.array([0.5]), "obs_var": np.array([3.0]), "obs_eps": 1.0}
    np.savez(tmp_path / "norm.npz", **statistics, w0=np.zeros((1, 1)))
    name = f"policy:{tmp_path}/a.npz?norm={tmp_path}/norm.npz"
    assert act(name, 1, width=1)[0, 0] == pytest.approx(0.25)
    np.savez(tmp_path / "norm.npz", **statistics, obs_clip=0.1)
    assert act(name, 1, width=1)[0, 0] == pytest.approx(0.1)
    np.savez(tmp_path / "norm.npz", obs_mean=np.zeros(1))
    with pytest.raises(ConfigError, match=r"norm\.npz: expected arrays obs_mean and obs_var, got obs_mean"):
        make_policy(name, CONTEXT)
    (tmp_path / "norm.npz").write_text("damaged")
    with pytest.raises(ConfigError, match=r"expected statistics of observations in .*norm\.npz, got none"):
        make_policy(name, CONTEXT)
    np.savez(tmp_path / "norm.npz", **statistics)
    own = save_perceptron(tmp_path / "own.npz", obs_mean=np.zeros(3), obs_var=np.ones(3))
    with pytest.raises(ConfigError, match=r"own\.npz: expected no norm beside"):
        make_policy(f"{own}?norm={tmp_path}/norm.npz", CONTEXT)


OPTIONS = st.lists(
    st.sampled_from(["deterministic", "noise=0.2", "scale=0.2..0.8&scale_steps=7", "scale=0.5"]),
    unique_by=lambda option: option[:5],
)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_perceptron(tmp_path_factory.mktemp("policy") / "a.npz")


@settings(max_examples=12, deadline=None)
@given(options=OPTIONS, unit_size=st.integers(1, 5), switch_steps=st.sampled_from([None, 1, 6]))
def test_an_episode_is_the_same_in_any_unit(policy, options, unit_size, switch_steps):
    name = policy + ("?" + "&".join(options) if options else "")
    text = name if switch_steps is None else f"{name}:0.6,random:0.4"
    config = CollectionConfig(
        behavior=text, switch_steps=switch_steps, episode_steps=30, num_steps=150, episodes_per_unit=5, seed=4
    )
    together = UnitCollector(PENDULUM, config).collect(0)
    collector = UnitCollector(PENDULUM, dataclasses.replace(config, episodes_per_unit=unit_size))
    apart = [episode for unit in range(-(-5 // unit_size)) for episode in collector.collect(unit)][:5]
    for one, other in zip(together, apart, strict=True):
        assert (one.seed, one.behavior) == (other.seed, text)
        # Products of matrices of other sizes may differ in the last bit.
        np.testing.assert_allclose(one.actions, other.actions, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(one.observations, other.observations, rtol=1e-4, atol=1e-4)


def test_a_policy_without_options_acts_as_one_with_options_that_change_nothing(policy):
    np.testing.assert_array_equal(act(policy, 20, 5), act(f"{policy}?scale=1", 20, 5))


def test_mixtures_of_one_file_with_different_options(policy):
    behavior = make_behavior(f"{policy}?scale=0:0.5,{policy}:0.5", CONTEXT)
    observations = np.ones((200, 3))
    behavior.reset(observations, [np.random.default_rng(i) for i in range(200)])
    assert (behavior.act(observations) == 0).mean() == pytest.approx(0.5, abs=0.1)

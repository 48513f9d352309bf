"""`policy:FILE` against a computation of its own."""

import dataclasses

import numpy as np
import pytest

from diffplan.behaviors.collection import UnitCollector, complete_collection, make_manifest
from diffplan.behaviors.policy_file import PolicyFileBehavior
from diffplan.cluster.collect.coordinator import open_manifest
from diffplan.config import CollectionConfig, EnvConfig
from diffplan.data.format.writer import create_dataset
from diffplan.errors import ConfigError, DataError
from diffplan.seeding import Stream, make_generator
from diffplan.storage.opening import open_store
from diffplan.tasks.contracts import BehaviorContext

PENDULUM = EnvConfig(env_id="Pendulum-v1")
STEPS = 40


def make_arrays(*, observation_dim=3, action_dim=1, seed=0, **changes):
    """Two hidden layers, and everything that a file may say."""
    draw = np.random.default_rng(seed).normal
    arrays = {
        "w0": draw(size=(8, observation_dim)), "b0": draw(size=8),
        "w1": draw(size=(6, 8)) / 3, "b1": draw(size=6),
        "w2": draw(size=(action_dim, 6)) / 3, "b2": draw(size=action_dim),
        "act": np.array("tanh"), "out": np.array("tanh"),
        "log_std_w": draw(size=(action_dim, 6)) / 3, "log_std_b": draw(size=action_dim) - 1,
        "obs_mean": draw(size=observation_dim), "obs_var": np.exp(draw(size=observation_dim)),
        "obs_eps": np.array(1e-3), "obs_clip": np.array(0.8),
        **changes,
    }  # fmt: skip
    return {name: array for name, array in arrays.items() if array is not None}


PLAIN = {name: None for name in ("log_std_w", "log_std_b", "obs_mean", "obs_var", "obs_eps", "obs_clip")}


def save(path, arrays):
    np.savez(path, **arrays)
    return f"policy:{path}"


def collect(behavior, env=PENDULUM, **changes):
    config = CollectionConfig(behavior=behavior, episode_steps=STEPS, num_steps=4 * STEPS, episodes_per_unit=4, seed=9)
    return UnitCollector(env, dataclasses.replace(config, **changes)).collect(0)


def compute_actions(arrays, inputs, noise, low=-2.0, high=2.0):
    """What the documentation says, for inputs and noise of one episode."""
    x = inputs
    if "obs_mean" in arrays:
        x = (x - arrays["obs_mean"]) / np.sqrt(arrays["obs_var"] + arrays.get("obs_eps", 1e-8))
        limit = arrays.get("obs_clip", np.inf)
        x = np.minimum(np.maximum(x, -limit), limit)
    activate = {"tanh": np.tanh, "relu": lambda h: h * (h > 0)}[str(arrays["act"])]
    for layer in "01":
        x = activate(np.einsum("oi,ti->to", arrays[f"w{layer}"], x) + arrays[f"b{layer}"])
    mean = np.einsum("oi,ti->to", arrays["w2"], x) + arrays["b2"]
    log_std = np.full_like(mean, -np.inf)
    if "log_std" in arrays:
        log_std = arrays["log_std"] + 0 * mean
    if "log_std_w" in arrays:
        raw = np.einsum("oi,ti->to", arrays["log_std_w"], x) + arrays["log_std_b"]
        log_std = np.minimum(np.maximum(raw, -20), 2)
    drawn = mean + np.exp(log_std) * noise
    if str(arrays["out"]) == "tanh":
        drawn = low + (high - low) * (np.tanh(drawn) + 1) / 2
    return np.minimum(np.maximum(drawn, low), high)


def draw_noise(episode):
    """Each episode's own generator, as for every other behavior."""
    return make_generator(9, Stream.COLLECTION, episode.episode_index, 1).standard_normal((512, 1))[: len(episode)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"act": np.array("relu"), "out": np.array("clip")},
        {"log_std_w": None, "log_std_b": None, "log_std": np.array([-0.5])},
        {"obs_eps": None, "obs_clip": None},
        {"log_std_b": np.array([9.0])},  # above the range that it is clipped to
        PLAIN,
        {"w0": np.float32(np.eye(8, 3)), "b0": np.zeros(8, np.float32)},
    ],
    ids=["all", "relu-clip", "one-std", "default-eps", "clipped-std", "plain", "float32"],
)
def test_actions_are_those_of_an_independent_computation(changes, tmp_path):
    arrays = make_arrays(**changes)
    for episode in collect(save(tmp_path / "policy.npz", arrays)):
        expected = compute_actions(arrays, episode.observations[:-1].astype(np.float64), draw_noise(episode))
        np.testing.assert_allclose(episode.actions, expected, rtol=1e-5, atol=1e-6)
        assert np.ptp(episode.actions) > 0.1


def test_an_input_that_is_one_wider_is_the_time_left(tmp_path):
    arrays = make_arrays(observation_dim=4)
    for episode in collect(save(tmp_path / "policy.npz", arrays)):
        left = 1 - np.arange(STEPS) / STEPS
        inputs = np.column_stack([episode.observations[:-1], left])
        expected = compute_actions(arrays, inputs, draw_noise(episode))
        np.testing.assert_allclose(episode.actions, expected, rtol=1e-5, atol=1e-6)


def test_noise_of_an_episode_is_its_own_whatever_it_is_collected_with(tmp_path):
    policy = save(tmp_path / "policy.npz", make_arrays())
    together, apart = collect(policy), [collect(policy, episodes_per_unit=1)[0], *collect(policy, episodes_per_unit=2)]
    for episode in apart:
        # Products of matrices of other sizes may differ in the last bit.
        np.testing.assert_allclose(episode.actions, together[episode.episode_index].actions, rtol=1e-4, atol=1e-5)
    again = collect(policy)
    for one, other in zip(together, again, strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)
    assert not np.allclose(together[0].actions, together[1].actions)
    assert not np.allclose(together[0].actions, collect(policy, seed=10)[0].actions)


def test_bounds_that_differ_are_filled():
    arrays = make_arrays(observation_dim=2, action_dim=2, **PLAIN)
    context = BehaviorContext(PENDULUM, np.array([-1.0, 0.5]), np.array([3.0, 0.6]), action_noise=0, max_goal_steps=9)
    observations = np.random.default_rng(1).normal(scale=20, size=(500, 2))
    actions = {}
    for out in ("tanh", "clip"):
        behavior = PolicyFileBehavior({**arrays, "out": np.array(out)}, context)
        behavior.reset(observations, [np.random.default_rng(0)] * 500)
        actions[out] = behavior.act(observations)
        assert actions[out].dtype == np.float32
        assert behavior.columns() == {}
        expected = compute_actions(
            {**arrays, "out": np.array(out)}, observations, 0.0, context.action_low, context.action_high
        )
        np.testing.assert_allclose(actions[out], expected, rtol=1e-5)
    assert ((actions["tanh"] > [-1.0, 0.5]) & (actions["tanh"] < [3.0, 0.6])).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"w1": None}, ["expected an array w1", "docs/tasks.md"]),
        ({"b2": None}, ["expected an array b2"]),
        ({"act": None}, ["expected an array act"]),
        ({"obs_var": None}, ["expected an array obs_var"]),
        ({"log_std_b": None}, ["expected an array log_std_b"]),
        ({"w0": None, "w1": None, "w2": None}, ["expected an array w0"]),
        ({"act": np.array("gelu")}, ["act relu or tanh", "gelu"]),
        ({"out": np.array(1.0)}, ["out tanh or clip", "1.0"]),
        ({"w0": np.zeros((8, 5))}, ["w0", "as wide as the observations (3), or one wider, got 5"]),
        ({"w0": np.zeros(8)}, ["w0", "got shape (8,)"]),
        ({"w1": np.zeros((6, 7))}, ["w1", "expected shape (6, 8)", "got (6, 7)"]),
        ({"b1": np.zeros((6, 1))}, ["b1", "expected shape (6,)", "got (6, 1)"]),
        ({"w2": np.zeros((2, 6)), "b2": np.zeros(2)}, ["w2", "for 1 actions", "got (2, 6)"]),
        ({"log_std": np.zeros(2)}, ["log_std", "expected shape (1,)"]),
        ({"log_std_w": np.zeros((6, 1))}, ["log_std_w", "expected shape (1, 6)"]),
        ({"obs_mean": np.zeros(4)}, ["obs_mean", "expected shape (3,)", "got (4,)"]),
        ({"obs_clip": np.zeros(3)}, ["obs_clip", "expected shape ()"]),
        ({"w1": np.full((6, 8), np.nan)}, ["w1", "expected finite numbers"]),
        ({"b0": np.array(["a"] * 8)}, ["b0", "expected finite numbers"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_arrays_that_do_not_fit_are_one_clear_line(changes, words, tmp_path):
    if "w0" in changes and changes["w0"] is not None:
        changes = {**changes, "obs_mean": None, "obs_var": None}
    behavior = save(tmp_path / "policy.npz", make_arrays(**changes))
    with pytest.raises(ConfigError) as caught:
        make_manifest(PENDULUM, CollectionConfig(behavior=behavior))
    assert "\n" not in str(caught.value)
    for word in ["collection.behavior", "policy.npz", *words]:
        assert word in str(caught.value)


def write_object_arrays(path):
    np.savez(path, w0=np.array([{"pickled": True}], dtype=object))


def write_no_archive(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def write_half(path):
    np.savez(path, **make_arrays())
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize(
    "write",
    [
        write_object_arrays,
        write_no_archive,
        write_half,
        lambda path: path.write_text("text"),
        lambda path: path.mkdir(),
    ],
    ids=["pickled", "array", "half", "text", "directory"],
)
def test_what_is_no_policy_is_one_clear_line(write, tmp_path):
    write(tmp_path / "policy.npz")
    for path in (tmp_path / "policy.npz", tmp_path / "none.npz"):
        with pytest.raises(ConfigError, match=r"collection\.behavior: expected a policy in .*\.npz") as caught:
            make_manifest(PENDULUM, CollectionConfig(behavior=f"policy:{path}"))
        assert "\n" not in str(caught.value)


def test_actions_without_bounds_are_not_squashed():
    context = BehaviorContext(PENDULUM, np.array([-np.inf]), np.array([2.0]), action_noise=0, max_goal_steps=9)
    with pytest.raises(ConfigError, match="bounded actions for out tanh"):
        PolicyFileBehavior(make_arrays(), context)
    PolicyFileBehavior(make_arrays(out=np.array("clip")), context)


def test_a_dataset_is_not_gone_on_with_by_another_policy(tmp_path):
    """A path says nothing of what is in the file, so the content is recorded too."""
    behavior = save(tmp_path / "policy.npz", make_arrays())
    collection = CollectionConfig(behavior=behavior, episode_steps=STEPS, num_steps=4 * STEPS, episodes_per_unit=4)
    manifest = create_dataset(tmp_path / "data", make_manifest(PENDULUM, collection))
    store = open_store(tmp_path / "data")
    env, collection = complete_collection(PENDULUM, collection)
    assert open_manifest(store, env, collection, resume=True) == manifest
    save(tmp_path / "policy.npz", make_arrays(seed=1))
    with pytest.raises(DataError, match=r"begun with another policy in .*policy\.npz than is there now") as caught:
        open_manifest(store, env, collection, resume=True)
    assert "\n" not in str(caught.value)

"""The batches of Gymnasium's robots, against Gymnasium's own environments, to the last bit."""

import os
import pickle
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from diffplan.behaviors.collection import UnitCollector
from diffplan.config import CollectionConfig, EnvConfig
from diffplan.environments import make_vector_env
from diffplan.errors import ConfigError

NAMES = [f"{robot}-v{version}" for robot in ("Hopper", "Walker2d", "HalfCheetah") for version in (4, 5)]
FALLING = [name for name in NAMES if "Cheetah" not in name]
WEIGHTS = {"forward_reward_weight": 0.7, "ctrl_cost_weight": 0.3}
ALL_KWARGS = [
    *[(name, {}) for name in NAMES],
    *[(name, {"exclude_current_positions_from_observation": False, **WEIGHTS}) for name in NAMES],
    *[(name, {"reset_noise_scale": 0.2}) for name in NAMES],
    *[(name, {"terminate_when_unhealthy": False, "healthy_reward": 2.5}) for name in FALLING],
    *[(name, {"healthy_z_range": (0.9, 1.3), "healthy_angle_range": (-0.1, 0.3)}) for name in FALLING],
    *[(name, {"healthy_state_range": (-2.0, 4.0)}) for name in FALLING if "Hopper" in name],
    ("Walker2d-v5", {"xml_file": "walker2d.xml", "frame_skip": 3}),
]


def make_single(name, **kwargs):
    """Gymnasium's own; made of its specification, for its id of v4 alone brings a warning."""
    return gymnasium.make(gymnasium.spec(name), **kwargs)


def make_batch(name, num_envs, autoreset_mode=AutoresetMode.DISABLED, **kwargs):
    return gymnasium.make_vec(gymnasium.spec(f"diffplan/{name}"), num_envs, autoreset_mode=autoreset_mode, **kwargs)


def draw_actions(batch, num_steps, hold, dtype=np.float32, seed=0):
    """Actions that are held for some steps, up to a fifth beyond their bounds."""
    space = batch.single_action_space
    blocks = np.random.default_rng(seed).uniform(
        1.2 * space.low, 1.2 * space.high, (-(-num_steps // hold), batch.num_envs, *space.shape)
    )
    return np.repeat(blocks, hold, axis=0)[:num_steps].astype(dtype)


def assert_equals_singles(batch, singles, all_actions, seed=3):
    """Step both through whole episodes, and restart those that end; returns how many ended."""
    observations, infos = batch.reset(seed=seed)
    assert observations.dtype == np.float64
    for i, single in enumerate(singles):
        observation, info = single.reset(seed=seed + i)
        np.testing.assert_array_equal(observations[i], observation)
        assert {name: values[i] for name, values in infos.items()} == info
    num_ended = 0
    for actions in all_actions:
        observations, rewards, terminations, truncations, infos = batch.step(actions)
        assert (rewards.dtype, terminations.dtype, truncations.dtype) == (np.float64, bool, bool)
        for i, single in enumerate(singles):
            observation, reward, terminated, truncated, info = single.step(actions[i])
            np.testing.assert_array_equal(observations[i], observation)
            assert (rewards[i], terminations[i], truncations[i]) == (reward, terminated, truncated)
            assert {name: values[i] for name, values in infos.items()} == info
            assert {name: values.dtype for name, values in infos.items()} == {
                name: np.asarray(value).dtype for name, value in info.items()
            }
        ended = terminations | truncations
        if ended.any():
            before = observations
            observations, infos = batch.reset(options={"reset_mask": ended})
            np.testing.assert_array_equal(observations[~ended], before[~ended])
            for i in np.flatnonzero(ended):
                observation, info = singles[i].reset()
                np.testing.assert_array_equal(observations[i], observation)
                assert {name: values[i] for name, values in infos.items()} == info
        num_ended += ended.sum()
    return num_ended


@pytest.mark.parametrize(("name", "kwargs"), ALL_KWARGS, ids=lambda value: str(value))
def test_batch_equals_gymnasiums_bit_for_bit(name, kwargs):
    num_envs, num_steps = 3, 150
    batch = make_batch(name, num_envs, max_episode_steps=60, **kwargs)
    singles = [make_single(name, max_episode_steps=60, **kwargs) for _ in range(num_envs)]
    assert batch.single_observation_space == singles[0].observation_space
    assert batch.single_action_space == singles[0].action_space
    assert batch.dt == singles[0].unwrapped.dt
    assert assert_equals_singles(batch, singles, draw_actions(batch, num_steps, hold=6)) >= num_envs
    batch.close()


@pytest.mark.parametrize("name", NAMES)
def test_whole_episodes_equal_gymnasiums_bit_for_bit(name):
    """To the registered limit, with an action for each step."""
    kwargs = {} if "Cheetah" in name else {"terminate_when_unhealthy": False}
    batch, singles = make_batch(name, 2, **kwargs), [make_single(name, **kwargs) for _ in range(2)]
    assert assert_equals_singles(batch, singles, draw_actions(batch, 1010, hold=1)) == 2


@pytest.mark.parametrize("version", [4, 5])
def test_a_target_speed_pays_minus_the_distance_from_it(version):
    name, kwargs = f"HalfCheetah-v{version}", {"target_speed": 0.4, "ctrl_cost_weight": 0.3}
    batch = make_batch(name, 3, max_episode_steps=40, **kwargs)
    singles = [gymnasium.make(f"diffplan/{name}", max_episode_steps=40, **kwargs) for _ in range(3)]
    assert assert_equals_singles(batch, singles, draw_actions(batch, 100, hold=6)) >= 3
    batch.reset(seed=1)
    (actions,) = draw_actions(batch, 1, hold=1)
    _, rewards, _, _, infos = batch.step(actions)
    distances = np.abs(infos["x_velocity"] - 0.4)
    np.testing.assert_allclose(rewards, -distances - 0.3 * np.square(actions).sum(axis=1), rtol=1e-6)
    assert pickle.loads(pickle.dumps(singles[0].unwrapped)).target_speed == 0.4
    with pytest.raises(ValueError, match="target_speed: expected a finite number, got nan"):
        gymnasium.make(f"diffplan/{name}", target_speed=float("nan"))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["Hopper-v4", "HalfCheetah-v5"])
def test_costs_are_added_up_as_in_single_environments(name, dtype):
    """In the type of the actions, whatever their order in memory and the size of the batch."""
    num_envs = 70
    batch, single = make_batch(name, num_envs), make_single(name)
    batch.reset(seed=0)
    (actions,) = draw_actions(batch, 1, hold=1, dtype=dtype)
    rewards = batch.step(np.asfortranarray(actions))[1]
    for i in range(num_envs):
        single.reset(seed=i)
        assert single.step(actions[i])[1] == rewards[i]


@pytest.mark.parametrize("name", NAMES)
def test_an_environment_does_not_depend_on_the_size_of_its_batch(name):
    large, small = make_batch(name, 9, num_threads=2), make_batch(name, 1)
    actions = draw_actions(large, 80, hold=4)
    for i in (0, 8):
        large.reset(seed=5)
        small.reset(seed=5 + i)
        for step_actions in actions:
            *ours, infos = large.step(step_actions)
            *theirs, their_infos = small.step(step_actions[i : i + 1])
            for one, other in zip([*ours, *infos.values()], [*theirs, *their_infos.values()], strict=True):
                np.testing.assert_array_equal(one[i], other[0])


@pytest.mark.parametrize("name", ["Hopper-v4", "Walker2d-v5", "HalfCheetah-v4"])
def test_autoreset_equals_gymnasiums(name):
    batch = make_batch(name, 4, AutoresetMode.NEXT_STEP, max_episode_steps=30)
    sync = SyncVectorEnv([lambda: make_single(name, max_episode_steps=30)] * 4)
    np.testing.assert_array_equal(batch.reset(seed=1)[0], sync.reset(seed=1)[0])
    num_ended = 0
    for actions in draw_actions(batch, 120, hold=5):
        *ours, infos = batch.step(actions)
        *theirs, their_infos = sync.step(actions)
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(infos["x_velocity"], their_infos.get("x_velocity", np.zeros(4)))
        num_ended += (ours[2] | ours[3]).sum()
    assert num_ended >= 12


@pytest.mark.parametrize("name", NAMES)
def test_stepping_some_leaves_the_others_as_they_are(name):
    whole, parts = make_batch(name, 5), make_batch(name, 5)
    whole.reset(seed=2)
    parts.reset(seed=2)
    for actions in draw_actions(whole, 30, hold=3):
        *together, infos = whole.step(actions)
        for indices in (np.array([1, 4]), np.array([0, 2, 3])):
            *some, some_infos = parts.step_some(indices, actions[indices])
            for one, other in zip([*together, *infos.values()], [*some, *some_infos.values()], strict=True):
                np.testing.assert_array_equal(one[indices], other)


def test_seeds_start_only_the_environments_of_the_mask():
    batch, other = make_batch("Hopper-v5", 3), make_batch("Hopper-v5", 3)
    batch.reset(seed=0)
    other.reset(seed=0)
    mask = np.array([False, True, False])
    observations, _ = batch.reset(seed=[7, 8, None], options={"reset_mask": mask})
    np.testing.assert_array_equal(observations[1], make_single("Hopper-v5").reset(seed=8)[0])
    np.testing.assert_array_equal(batch.reset()[0][~mask], other.reset()[0][~mask])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: make_batch("Hopper-v4", 0), "num_envs: expected at least 1, got 0"),
        (lambda: make_batch("Hopper-v4", 1, render_mode="rgb_array"), "render_mode: a batch is not drawn"),
        (lambda: make_batch("Hopper-v4", 1, AutoresetMode.SAME_STEP), "expected NEXT_STEP or DISABLED"),
        (lambda: make_batch("Hopper-v4", 2).reset(seed=[1]), "seed: expected 2 seeds, got 1"),
        (lambda: make_batch("Hopper-v4", 2).reset(options={"speed": 1}), r"expected 'reset_mask', got \['speed'\]"),
        (lambda: make_batch("Hopper-v4", 2).reset(options={"reset_mask": np.ones(3, bool)}), "reset_mask: expected"),
        (lambda: make_batch("Hopper-v4", 2).step(np.zeros((2, 4))), r"actions: expected shape \[2, 3\], got \[2, 4\]"),
        (
            lambda: make_batch("Hopper-v4", 2, AutoresetMode.NEXT_STEP).step_some(np.array([0]), np.zeros((1, 3))),
            "autoreset_mode: expected DISABLED",
        ),
    ],
)
def test_slips_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_an_unknown_argument_is_refused_in_one_line():
    env = EnvConfig(env_id="diffplan/Hopper-v4", env_kwargs={"gravity": 5.0})
    with pytest.raises(ConfigError, match=r"diffplan/Hopper-v4.*gravity"):
        make_vector_env(env, 2)


@pytest.mark.parametrize("name", ["Hopper-v4", "HalfCheetah-v5"])
def test_data_are_the_same_as_from_gymnasiums_environments(name):
    collection = CollectionConfig(num_steps=1, episode_steps=40, episodes_per_unit=5)
    ours = UnitCollector(EnvConfig(env_id=f"diffplan/{name}"), collection).collect(0)
    theirs = UnitCollector(EnvConfig(env_id=name), collection).collect(0)
    for one, other in zip(ours, theirs, strict=True):
        for array in ("observations", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(one, array), getattr(other, array))
        assert (one.terminated, one.truncated) == (other.terminated, other.truncated)


def test_single_environments_are_quiet_and_drawn_without_a_screen(tmp_path):
    """MuJoCo's warning about Gymnasium's model of HalfCheetah goes to the terminal and to a file otherwise."""
    script = """
import gymnasium
for name in ("HalfCheetah-v4", "HalfCheetah-v5", "Hopper-v4"):
    env = gymnasium.make(gymnasium.spec(f"diffplan/{name}"), render_mode="rgb_array", width=64, height=48)
    env.reset(seed=0)
    assert env.render().shape == (48, 64, 3)
    assert env.render().std() > 5
    env.close()
    gymnasium.make_vec(gymnasium.spec(f"diffplan/{name}"), 2).close()
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MUJOCO_GL", "PYOPENGL_PLATFORM")}
    command = [sys.executable, "-c", script]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert (ran.stdout, ran.stderr) == ("", "")
    assert not list(tmp_path.iterdir())

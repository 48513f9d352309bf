import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from diffplan_envs.maze2d_vector import Maze2DVectorEnv


def held_actions(seed, num_steps, num_envs, hold=7):
    """Full pushes held for some steps, so that balls hit walls often."""
    generator = np.random.default_rng(seed)
    blocks = generator.uniform(-2, 2, (-(-num_steps // hold), num_envs, 2))
    return np.repeat(blocks, hold, axis=0)[:num_steps].astype(np.float32)


@pytest.mark.parametrize("reward_type", ["sparse", "dense"])
@pytest.mark.parametrize("family", ["Maze2D", "Multi2D"])
def test_batch_equals_single_environments_bit_for_bit(family, reward_type):
    num_envs, num_steps, seed = 5, 300, 11
    env_id = f"diffplan/{family}-UMaze" + ("-Dense" if reward_type == "dense" else "") + "-v1"
    batch = gymnasium.make_vec(env_id, num_envs)
    singles = [gymnasium.make(env_id) for _ in range(num_envs)]
    observations, infos = batch.reset(seed=seed)
    num_contacts = 0
    for i, single in enumerate(singles):
        observation, info = single.reset(seed=seed + i)
        np.testing.assert_array_equal(observations[i], observation)
        np.testing.assert_array_equal(infos["goal"][i], info["goal"])
        assert infos["success"][i] == info["success"]
    for actions in held_actions(seed, num_steps, num_envs):
        observations, rewards, terminations, truncations, infos = batch.step(actions)
        for i, single in enumerate(singles):
            observation, reward, terminated, truncated, info = single.step(actions[i])
            np.testing.assert_array_equal(observations[i], observation)
            np.testing.assert_array_equal(infos["goal"][i], info["goal"])
            assert (rewards[i], terminations[i], truncations[i]) == (reward, terminated, truncated)
            assert infos["success"][i] == info["success"]
            num_contacts += single.unwrapped.data.ncon
    assert truncations.all()  # the registered limit holds for batches too
    assert num_contacts > 100  # otherwise walls were not part of the comparison


def test_masked_reset_equals_resetting_those_singles_only():
    num_envs = 4
    batch = gymnasium.make_vec("diffplan/Multi2D-Medium-v1", num_envs)
    singles = [gymnasium.make("diffplan/Multi2D-Medium-v1") for _ in range(num_envs)]
    batch.reset(seed=2)
    for i, single in enumerate(singles):
        single.reset(seed=2 + i)
    mask = np.array([True, False, True, False])
    for step, actions in enumerate(held_actions(0, 120, num_envs)):
        if step == 60:
            observations, infos = batch.reset(options={"reset_mask": mask})
            for i in np.flatnonzero(mask):
                observation, info = singles[i].reset()
                np.testing.assert_array_equal(observations[i], observation)
                np.testing.assert_array_equal(infos["goal"][i], info["goal"])
        observations, rewards, *_ = batch.step(actions)
        for i, single in enumerate(singles):
            observation, reward, *_ = single.step(actions[i])
            np.testing.assert_array_equal(observations[i], observation)
            assert rewards[i] == reward


def assert_equals_sync(seed, num_envs, num_steps, limit):
    env_id = "diffplan/Multi2D-UMaze-v1"
    batch = gymnasium.make_vec(env_id, num_envs, max_episode_steps=limit)
    sync = SyncVectorEnv([lambda: gymnasium.make(env_id, max_episode_steps=limit)] * num_envs)
    assert sync.metadata["autoreset_mode"] is batch.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    mine, my_infos = batch.reset(seed=seed)
    theirs, their_infos = sync.reset(seed=seed)
    np.testing.assert_array_equal(mine, theirs)
    for actions in held_actions(seed, num_steps, num_envs):
        *mine, my_infos = batch.step(actions)
        *theirs, their_infos = sync.step(actions)
        for own, other in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(own, other)
        for name in ("goal", "success"):
            np.testing.assert_array_equal(my_infos[name], their_infos[name])


def test_autoreset_equals_gymnasiums_sync_vector_env_over_several_episodes():
    assert_equals_sync(seed=4, num_envs=3, num_steps=200, limit=45)


@settings(max_examples=8)
@given(seed=st.integers(0, 2**31), num_envs=st.integers(1, 6), limit=st.integers(1, 12))
def test_autoreset_equals_gymnasiums_for_any_seed_size_and_limit(seed, num_envs, limit):
    assert_equals_sync(seed, num_envs, num_steps=30, limit=limit)


def test_environments_with_different_clocks_are_truncated_apart():
    batch = gymnasium.make_vec("diffplan/Maze2D-UMaze-v1", 2, max_episode_steps=10, autoreset_mode="Disabled")
    batch.reset(seed=0)
    ends = []
    for step in range(14):
        if step == 4:
            batch.reset(options={"reset_mask": np.array([False, True])})
        ends.append(batch.step(np.zeros((2, 2), dtype=np.float32))[3])
    assert np.argmax(ends, axis=0).tolist() == [9, 13]


def test_number_of_threads_changes_nothing():
    one, two = (Maze2DVectorEnv(8, "medium", num_threads=n) for n in (1, 2))
    one.reset(seed=0)
    two.reset(seed=0)
    for actions in held_actions(3, 60, 8):
        np.testing.assert_array_equal(one.step(actions)[0], two.step(actions)[0])


def test_disabled_autoreset_goes_on_from_where_the_ball_is():
    batch = gymnasium.make_vec(
        "diffplan/Maze2D-UMaze-v1", 1, max_episode_steps=3, autoreset_mode=AutoresetMode.DISABLED
    )
    batch.reset(seed=0, options={"observation": [3, 1, 0, 0]})
    for _ in range(6):
        observations, *_ = batch.step(np.zeros((1, 2), dtype=np.float32))
    np.testing.assert_array_equal(observations, [[3, 1, 0, 0]])


def test_options_may_be_one_row_for_all_or_one_for_each():
    batch = gymnasium.make_vec("diffplan/Maze2D-UMaze-v1", 2)
    observations, infos = batch.reset(options={"observation": [[1, 1, 0, 0], [3, 1, 0, 0]], "goal": [3, 3]})
    np.testing.assert_array_equal(observations, [[1, 1, 0, 0], [3, 1, 0, 0]])
    np.testing.assert_array_equal(infos["goal"], [[3, 3], [3, 3]])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"observation": [0.0, 0.0, 0.0, 0.0]}, "free cell"),
        ({"observation": [1.0, 1.0, 0.0]}, "4 finite numbers"),
        ({"observation": 1.0}, "observation"),
        ({"goal": np.ones((3, 2))}, "goal"),
        ({"gaol": 1.0}, "expected 'observation' and 'goal'"),
        ({"reset_mask": [1, 0]}, r"expected bool\[2\]"),
        ({"reset_mask": np.array([True])}, r"expected bool\[2\]"),
    ],
)
def test_bad_option_is_refused_and_changes_no_state(options, complaint):
    batch = gymnasium.make_vec("diffplan/Maze2D-UMaze-v1", 2)
    batch.reset(seed=0, options={"observation": [3, 1, 0, 0]})
    with pytest.raises(ValueError, match=complaint) as caught:
        batch.reset(options=options)
    assert "\n" not in str(caught.value)
    observations, *_ = batch.step(np.zeros((2, 2), dtype=np.float32))
    np.testing.assert_array_equal(observations, [[3, 1, 0, 0]] * 2)


@pytest.mark.parametrize(
    ("kwargs", "complaint"),
    [
        ({"num_envs": 0}, "num_envs: expected at least 1"),
        ({"num_envs": 2, "render_mode": "rgb_array"}, "render_mode"),
        ({"num_envs": 2, "autoreset_mode": AutoresetMode.SAME_STEP}, "NEXT_STEP or DISABLED"),
        ({"num_envs": 2, "maze": "nowhere"}, "maze: expected one of"),
    ],
)
def test_bad_argument_is_refused(kwargs, complaint):
    with pytest.raises(ValueError, match=complaint):
        Maze2DVectorEnv(**{"maze": "umaze", **kwargs})


def test_wrong_number_of_seeds_is_refused():
    batch = gymnasium.make_vec("diffplan/Maze2D-UMaze-v1", 2)
    with pytest.raises(ValueError, match="expected 2 seeds, got 3"):
        batch.reset(seed=[1, 2, 3])


def test_stepping_some_leaves_the_others_as_they_are():
    env, same = (
        gymnasium.make_vec("diffplan/Multi2D-UMaze-v1", 4, max_episode_steps=3, autoreset_mode="Disabled")
        for _ in range(2)
    )
    (before, _), _ = env.reset(seed=5), same.reset(seed=5)
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 2))
    some = np.array([1, 3])
    observations, rewards, terminations, truncations, infos = env.step_some(some, actions[some])
    expected = same.step(actions)
    for got, whole in ((observations, expected[0]), (rewards, expected[1]), (truncations, expected[3])):
        np.testing.assert_array_equal(got, whole[some])
    np.testing.assert_array_equal(infos["goal"], expected[4]["goal"][some])
    np.testing.assert_array_equal(infos["success"], expected[4]["success"][some])
    assert not terminations.any()
    observations, *_ = env.step_some(np.array([0, 2]), actions[[0, 2]])  # later, and yet the same
    np.testing.assert_array_equal(observations, expected[0][[0, 2]])
    for _ in range(2):
        *_, truncations, _ = env.step_some(some, actions[some])
    assert truncations.all()  # each has come to the end of its own episode
    *_, truncations, _ = env.step_some(np.arange(4)[:3], actions[:3])
    assert truncations.tolist() == [False, True, False]
    assert before.shape == (4, 4)
    automatic = gymnasium.make_vec("diffplan/Multi2D-UMaze-v1", 2)
    with pytest.raises(ValueError, match="autoreset_mode: expected DISABLED"):
        automatic.step_some(np.array([0]), actions[:1])

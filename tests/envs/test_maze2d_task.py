import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from scipy import stats


def reset_many(env, num_resets):
    observations, goals = [], []
    for i in range(num_resets):
        observation, info = env.reset(seed=0 if i == 0 else None)
        observations.append(observation)
        goals.append(info["goal"])
    return np.array(observations), np.array(goals)


def test_start_is_a_free_cell_plus_uniform_noise_at_gaussian_velocity():
    env = gymnasium.make("diffplan/Maze2D-Medium-v1")
    observations, _ = reset_many(env, 4000)
    cells = np.rint(observations[:, :2])
    noise = (observations[:, :2] - cells).ravel()
    assert np.abs(noise).max() <= 0.1
    assert stats.kstest(noise, stats.uniform(-0.1, 0.2).cdf).pvalue > 1e-3
    assert stats.kstest(observations[:, 2:].ravel(), stats.norm(0, 0.1).cdf).pvalue > 1e-3
    found, counts = np.unique(cells, axis=0, return_counts=True)
    free = env.unwrapped.maze.free_cells
    assert {tuple(c) for c in found.astype(int)} == {tuple(c) for c in free}
    assert stats.chisquare(counts).pvalue > 1e-3


def test_reset_is_deterministic_under_a_seed_and_moves_on_without_one():
    env, other = gymnasium.make("diffplan/Multi2D-Large-v1"), gymnasium.make("diffplan/Multi2D-Large-v1")
    first, info = env.reset(seed=5)
    again, other_info = other.reset(seed=5)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(info["goal"], other_info["goal"])
    following, _ = env.reset()
    assert (following != first).any()
    np.testing.assert_array_equal(following, other.reset()[0])
    assert (env.reset(seed=6)[0] != first).any()


def test_maze2d_keeps_the_goal_and_multi2d_redraws_it():
    _, goals = reset_many(gymnasium.make("diffplan/Maze2D-Large-v1"), 50)
    np.testing.assert_array_equal(goals, np.tile([7.0, 9.0], (50, 1)))
    env = gymnasium.make("diffplan/Multi2D-Large-v1")
    _, goals = reset_many(env, 3000)
    noise = (goals - np.rint(goals)).ravel()
    assert np.abs(noise).max() <= 0.1
    assert stats.kstest(noise, stats.uniform(-0.1, 0.2).cdf).pvalue > 1e-3
    _, counts = np.unique(np.rint(goals), axis=0, return_counts=True)
    assert len(counts) == 46
    assert stats.chisquare(counts).pvalue > 1e-3


def test_options_set_the_exact_start_and_goal():
    env = gymnasium.make("diffplan/Multi2D-Large-v1")
    observation, info = env.reset(options={"observation": [7.1, 9.05, 0.5, -0.25], "goal": [1.01, 1.02]})
    np.testing.assert_array_equal(observation, [7.1, 9.05, 0.5, -0.25])
    np.testing.assert_array_equal(info["goal"], [1.01, 1.02])
    assert info["success"] is False
    _, _, _, _, info = env.step(np.zeros(2, dtype=np.float32))
    np.testing.assert_array_equal(info["goal"], [1.01, 1.02])


def test_fixed_goal_returns_after_an_episode_with_another():
    env = gymnasium.make("diffplan/Maze2D-UMaze-v1")
    env.reset(options={"goal": [3, 3]})
    np.testing.assert_array_equal(env.reset()[1]["goal"], [1, 1])


def test_options_do_not_shift_the_random_numbers_that_follow():
    env, other = gymnasium.make("diffplan/Multi2D-Large-v1"), gymnasium.make("diffplan/Multi2D-Large-v1")
    env.reset(seed=3, options={"observation": [1, 1, 0, 0], "goal": [1, 1]})
    other.reset(seed=3)
    np.testing.assert_array_equal(env.reset()[0], other.reset()[0])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"observation": [0.0, 0.0, 0.0, 0.0]}, r"'observation'.*free cell.*wall cell \(0, 0\)"),
        ({"goal": [2.0, 1.0]}, r"'goal'.*free cell.*wall cell \(2, 1\)"),
        ({"goal": [99.0, 1.0]}, "'goal'.*free cell"),
        ({"observation": [np.nan, 1.0, 0.0, 0.0]}, "'observation'.*finite"),
        ({"observation": [1.0, 1.0, 0.0, np.inf]}, "'observation'.*finite"),
        ({"observation": [1.0, 1.0]}, "'observation'.*4 finite numbers"),
        ({"goal": [[1.0, 1.0]]}, "'goal'.*2 finite numbers"),
        ({"gaol": [1.0, 1.0]}, r"expected 'observation' and 'goal', got \['gaol'\]"),
    ],
)
def test_bad_option_is_refused_in_one_line(options, complaint):
    env = gymnasium.make("diffplan/Maze2D-UMaze-v1")
    with pytest.raises(ValueError, match=complaint) as caught:
        env.reset(options=options)
    assert "\n" not in str(caught.value)


def test_unknown_reward_type_is_refused():
    with pytest.raises(ValueError, match="reward_type: expected one of"):
        gymnasium.make("diffplan/Maze2D-v1", maze="umaze", reward_type="shaped")


@pytest.mark.parametrize(
    ("distance", "paid"), [(0.5, 1.0), (np.nextafter(0.5, 1), 0.0), (np.nextafter(0.5, 0), 1.0), (0.0, 1.0), (2.0, 0.0)]
)
def test_sparse_reward_is_paid_up_to_exactly_half_a_unit(distance, paid):
    # The goal lies at 0 so that the distance is exact; a ball at rest without force stays where it is.
    env = gymnasium.make("diffplan/Maze2D-v1", maze="######/#OOOO#/#OOOO#/######").unwrapped
    env.reset(options={"observation": [1.0, distance + 0.5, 0, 0], "goal": [1.0, 0.5]})
    if distance + 0.5 - 0.5 != distance:  # rounding of the sum: check the rule itself
        reward, success = env.task.compute_reward(np.array([0.0, distance]), np.zeros(2))
    else:
        _, reward, _, _, info = env.step(np.zeros(2, dtype=np.float32))
        success = info["success"]
    assert (float(reward), bool(success)) == (paid, paid == 1.0)


def test_dense_reward_is_exp_of_minus_the_distance_after_the_step():
    env = gymnasium.make("diffplan/Maze2D-Open-Dense-v1")
    env.reset(seed=0, options={"goal": [3.0, 5.0]})
    for _ in range(20):
        observation, reward, *_ = env.step(np.array([0.3, -0.7], dtype=np.float32))
        assert reward == pytest.approx(np.exp(-np.hypot(observation[0] - 3.0, observation[1] - 5.0)), abs=1e-14)


@pytest.mark.parametrize(("name", "limit"), [("Open", 150), ("UMaze", 300), ("Medium", 600), ("Large", 800)])
@pytest.mark.parametrize("family", ["Maze2D", "Multi2D"])
def test_episode_is_truncated_at_the_limit_and_never_terminated(family, name, limit):
    env = gymnasium.make(f"diffplan/{family}-{name}-v1")
    _, info = env.reset(seed=0)
    env.reset(options={"observation": [*info["goal"], 0, 0], "goal": info["goal"]})  # at the goal all the time
    total = 0.0
    for step in range(1, limit + 1):
        _, reward, terminated, truncated, _ = env.step(np.zeros(2, dtype=np.float32))
        assert not terminated
        assert truncated == (step == limit)
        total += reward
    assert total == limit


@pytest.mark.parametrize(
    ("name", "references"),
    [
        ("UMaze", (23.85, 161.86)),
        ("Medium", (13.13, 277.39)),
        ("Large", (6.7, 273.99)),
        ("Eval-UMaze", (36.63, 141.4)),
        ("Eval-Medium", (13.07, 204.93)),
        ("Eval-Large", (16.4, 302.22)),
        ("UMaze-Dense", (68.537689, 193.66285642381482)),
        ("Medium-Dense", (44.264742, 297.4552547777125)),
        ("Large-Dense", (30.569041, 303.4857382709002)),
    ],
)
def test_reference_returns_are_those_of_d4rl(name, references):
    for family in ("Maze2D", "Multi2D"):
        assert gymnasium.make(f"diffplan/{family}-{name}-v1").unwrapped.reference_returns == references


def test_an_own_layout_has_no_reference_returns_but_a_known_one_has():
    def references(maze):
        return gymnasium.make("diffplan/Maze2D-v1", maze=maze).unwrapped.reference_returns

    assert references("####/#OG#/####") is None
    assert references("#####/#GOO#/###O#/#OOO#/#####") == (23.85, 161.86)


def test_any_layout_can_be_made_and_a_bad_one_is_refused():
    env = gymnasium.make("diffplan/Maze2D-v1", maze="####/#OG#/####")
    np.testing.assert_array_equal(env.reset(seed=0)[1]["goal"], [1, 2])
    with pytest.raises(ValueError, match="closed"):
        gymnasium.make("diffplan/Maze2D-v1", maze="####/#OG#/#OO#")


@pytest.mark.parametrize("env_id", ["diffplan/Maze2D-UMaze-v1", "diffplan/Multi2D-Large-Dense-v1"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_gymnasiums_checker_finds_nothing(env_id):
    check_env(gymnasium.make(env_id).unwrapped, skip_render_check=True)


def test_returned_arrays_are_not_views_of_the_state():
    env = gymnasium.make("diffplan/Maze2D-UMaze-v1").unwrapped
    observation, info = env.reset(seed=0)
    kept, goal = observation.copy(), info["goal"].copy()
    following, *_ = env.step(np.ones(2, dtype=np.float32))
    np.testing.assert_array_equal(observation, kept)
    info["goal"][:] = 99
    following[:] = 99
    observation, *_, info = env.step(np.ones(2, dtype=np.float32))
    np.testing.assert_array_equal(info["goal"], goal)
    assert np.abs(observation).max() < 10


def test_installed_package_registers_itself_without_an_import(tmp_path):
    script = (
        "import gymnasium, sys; assert 'diffplan_envs.maze2d' not in sys.modules;"
        "env = gymnasium.make('diffplan/Maze2D-Large-v1'); print(env.reset(seed=0)[1]['goal'].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[7.0, 9.0]"


def test_starting_the_interpreter_imports_neither_gymnasium_nor_mujoco(tmp_path):
    script = "import sys; print([m for m in ('gymnasium', 'mujoco', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

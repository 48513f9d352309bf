import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffplan.config import EnvConfig
from diffplan.environments import make_env, make_vector_env
from diffplan.tasks.maze2d.environment import get_limit_returns, get_maze
from diffplan.tasks.maze2d.waypoint import WaypointBehavior
from diffplan_envs.maze import Maze, make_maze
from diffplan_envs.maze_limits import (
    SPEED_GAIN,
    SPEED_KEPT,
    TOP_ADVANCE,
    StateLattice,
    limit_returns,
    limit_steps,
)

CORRIDOR = "###########/#OOOOOOOOO#/###########"
HALL = "###########/#OOOOOOOOO#/#OOOOOOOOO#/#OOOOOOOOO#/###########"


def full_force(num_steps: int, speed: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Advances and speeds along an axis after 1, 2... steps of full force, by D4RL's own rule."""
    advances, speeds, advance = [], [], 0.0
    for _ in range(num_steps):
        speed = SPEED_KEPT * min(speed, 5.0) + SPEED_GAIN
        advance += 0.01 * speed
        advances.append(advance)
        speeds.append(speed)
    return np.array(advances), np.array(speeds)


def fewest_open_steps(offset: np.ndarray, num_steps: int = 400) -> int:
    """Steps outside a goal that nothing is in the way of: at step t a ball at rest can be anywhere in a square."""
    reach = full_force(num_steps)[0]
    gap = np.maximum(np.abs(offset)[None] - reach[:, None], 0.0)
    return int((np.linalg.norm(gap, axis=1) > 0.5).argmin())


def limit(maze: str, start: list[float], goal: list[float], **kwargs: int) -> float:
    observations = np.array([[*start, 0.0, 0.0] if len(start) == 2 else start])
    return float(limit_steps(make_maze(maze), observations, np.array([goal]), **kwargs)[0])


def test_full_force_is_what_mujoco_makes_of_it():
    env = make_env(EnvConfig(env_id="diffplan/Maze2D-v1", env_kwargs={"maze": HALL}))
    env.reset(seed=0, options={"observation": [1.8, 1.0, 0.0, 0.0]})
    observed = np.array([env.step(np.array([0.0, 1.0]))[0] for _ in range(60)])
    env.close()
    advances, speeds = full_force(60)
    np.testing.assert_allclose(observed[:, 1] - 1.0, advances, atol=1e-9)
    np.testing.assert_allclose(observed[:, 3], speeds, atol=1e-9)
    assert np.diff(advances).max() == pytest.approx(TOP_ADVANCE, abs=1e-12)


@pytest.mark.parametrize("goal", [[1.8, 8.3], [1.8, 2.2], [2.5, 8.3], [2.6, 3.1]])
def test_with_nothing_in_the_way_it_is_the_closed_form(goal: list[float]):
    start = [1.8, 1.0]
    exact = fewest_open_steps(np.array(goal) - start)
    assert limit(HALL, start, goal) == pytest.approx(exact, abs=max(1.5, 0.02 * exact))


def test_finer_lattices_say_the_same():
    maze = make_maze("umaze")
    generator = np.random.default_rng(0)
    starts = maze.free_cells[generator.integers(7, size=30)] + generator.uniform(-0.1, 0.1, (30, 2))
    observations, goals = np.concatenate([starts, np.zeros((30, 2))], axis=1), np.tile(maze.goal_cell, (30, 1))
    coarse, fine = (limit_steps(maze, observations, goals, num_speeds=k) for k in (7, 9))
    assert coarse.mean() == pytest.approx(fine.mean(), abs=0.5)
    np.testing.assert_allclose(coarse, fine, atol=2.5)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=5)
def test_the_limit_is_below_that_of_the_same_ball_in_the_open(seed: int):
    maze = make_maze("umaze")
    generator = np.random.default_rng(seed)
    starts = maze.free_cells[generator.integers(7, size=5)] + generator.uniform(-0.1, 0.1, (5, 2))
    goal = maze.free_cells[generator.integers(7)] + generator.uniform(-0.1, 0.1, 2)
    steps = limit_steps(maze, np.concatenate([starts, np.zeros((5, 2))], axis=1), np.tile(goal, (5, 1)))
    exact = np.array([fewest_open_steps(goal - start) for start in starts])
    assert (steps >= exact - 1.5).all()
    assert (steps[np.linalg.norm(starts - goal, axis=1) < 0.3] == 0).all()


@given(st.lists(st.floats(0.6, 7.5), min_size=2, max_size=10))
@settings(max_examples=8)
def test_further_away_takes_no_fewer_steps(distances: list[float]):
    starts = np.array([[0.8, 8.6 - distance, 0.0, 0.0] for distance in sorted(distances)])
    steps = limit_steps(make_maze(CORRIDOR), starts, np.tile([0.8, 8.6], (len(starts), 1)))
    assert (np.diff(steps) >= -1e-9).all()


def test_speed_towards_the_goal_helps_and_speed_away_hurts():
    starts = np.array([[0.8, 4.0, 0.0, speed] for speed in (3.0, 0.0, -3.0)])
    towards, rest, away = limit_steps(make_maze(CORRIDOR), starts, np.tile([0.8, 8.3], (3, 1)))
    assert towards < rest < away
    # 3 units per second more at the start: what full force needs to gain them, less the way made meanwhile.
    reach, boosted = full_force(200)[0], full_force(200, 3.0)[0]
    assert rest - towards == pytest.approx((reach < 3.8).sum() - (boosted < 3.8).sum(), abs=1.5)


def test_a_way_through_the_circle_that_must_leave_it_again_is_paid_for_both_times():
    # At full speed beside the goal: the ball leaves the circle and has to come back.
    assert limit(CORRIDOR, [0.8, 5.0, 0.0, 5.0], [0.8, 4.9]) > 5
    assert limit(CORRIDOR, [0.8, 4.5, 0.0, 5.0], [0.8, 4.9]) == pytest.approx(0, abs=1.0)


def test_turning_the_maze_over_changes_little():
    maze = make_maze("umaze")
    turned = Maze("/".join("".join(column) for column in zip(*maze.rows, strict=True)))
    observations = np.array([[3.0, 1.0, 0.1, -0.2], [3.05, 2.9, 0.0, 0.1], [2.0, 3.0, -0.1, 0.0]])
    goals = np.array([[1.0, 1.0]] * 3)
    steps = limit_steps(maze, observations, goals)
    other = limit_steps(turned, observations[:, [1, 0, 3, 2]], goals[:, ::-1])
    np.testing.assert_allclose(steps, other, atol=1e-9)


def test_episodes_together_or_alone_have_the_same_limit_up_to_the_lattice():
    maze = make_maze("umaze")
    observations = np.array([[3.0, 1.0, 0.0, 0.0], [1.0, 3.0, 0.0, 0.0], [1.02, 1.9, 0.0, 0.0]])
    goals = np.tile(maze.goal_cell, (3, 1))
    together = limit_steps(maze, observations, goals)
    again = limit_steps(maze, observations[::-1], goals)
    np.testing.assert_array_equal(together, again[::-1])
    alone = [limit_steps(maze, o[None] + 1e-9, g[None])[0] for o, g in zip(observations, goals, strict=True)]
    np.testing.assert_allclose(together, alone, atol=0.5)


def test_where_no_way_leads_the_limit_is_no_return():
    maze = make_maze("#####/#O#O#/#####")
    observations, goals = np.array([[1.0, 1.0, 0, 0], [1.0, 3.0, 0, 0]]), np.array([[1.0, 3.0], [1.0, 3.0]])
    assert limit_steps(maze, observations, goals).tolist() == [np.inf, 0.0]
    assert limit_returns(maze, observations, goals, 100).tolist() == [0.0, 100.0]


def test_lattices_never_let_the_ball_leap_between_walls_that_touch():
    region = np.array([[False] * 4, [False, True, False, False], [False, False, True, False], [False] * 4])
    lattice = StateLattice(Maze("####/#O##/##O#/####"), 6, region)
    *_, last = lattice.expand(np.array([0.8, 0.8]))
    reached = np.unpackbits(lattice.to_bytes(last[6][6]), bitorder="little", count=lattice.is_free.size)
    there = lattice.find_nearby(np.array([[1.8, 1.8, 0.0, 0.0]])).places
    here = lattice.find_nearby(np.array([[0.8, 0.8, 0.0, 0.0]])).places
    assert reached[here].all()
    assert not reached[there].any()


@pytest.mark.parametrize("family", ["Maze2D", "Multi2D"])
def test_no_waypoint_controller_beats_it(family: str):
    config = EnvConfig(env_id=f"diffplan/{family}-UMaze-v1")
    find_limits = get_limit_returns(config)
    assert find_limits is not None
    num = 64 if family == "Maze2D" else 10
    env = make_vector_env(config, num)
    observations, infos = env.reset(seed=list(range(num)))
    limits = find_limits(observations, infos["goal"], 300)
    behavior = WaypointBehavior(get_maze(config), goals=infos["goal"])
    behavior.reset(observations, [np.random.default_rng(i) for i in range(num)])
    returns = np.zeros(num)
    for _ in range(300):
        observations, rewards, _, _, _ = env.step(behavior.act(observations))
        returns += rewards
    env.close()
    assert (returns <= limits + 2.0).all()
    assert 5 < (limits - returns).mean() < 60


def test_bad_calls_are_refused():
    maze = make_maze("umaze")
    with pytest.raises(ValueError, match=r"expected observations \[num, 4\]"):
        limit_steps(maze, np.zeros((2, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="num_speeds: expected at least 6, got 3"):
        limit_steps(maze, np.array([[1.0, 1.0, 0, 0]]), np.array([[1.0, 1.0]]), num_speeds=3)
    with pytest.raises(ValueError, match="got one in a wall"):
        limit_steps(maze, np.array([[2.0, 1.0, 0, 0]]), np.array([[1.0, 1.0]]))


def test_other_rewards_and_environments_have_no_limit():
    assert get_limit_returns(EnvConfig(env_id="diffplan/Maze2D-UMaze-Dense-v1")) is None
    assert get_limit_returns(EnvConfig(env_id="Pendulum-v1")) is None

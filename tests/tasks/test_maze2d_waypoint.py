from collections import deque

import numpy as np
import pytest

from diffplan.config import EnvConfig
from diffplan.environments import make_vector_env
from diffplan.tasks.maze2d.waypoint import WaypointBehavior
from diffplan_envs.maze import Maze, make_maze


def generators(num_envs, seed=0):
    return [np.random.default_rng([seed, i]) for i in range(num_envs)]


def start(behavior, positions, seed=0):
    observations = np.concatenate([np.asarray(positions, dtype=float), np.zeros((len(positions), 2))], axis=1)
    behavior.reset(observations, generators(len(positions), seed))
    return observations


def walk(behavior, maze, start_cell, goal_cell):
    """Put the ball on each waypoint in turn; the waypoints, one for each cell of the path.

    They are read off the actions: a ball in the middle of where a waypoint may lie, [cell - 0.2, cell], is pushed
    without saturation, and one at any other cell is not.
    """
    cell, path = np.array(start_cell), []
    while True:
        candidates = [cell + move for move in ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0))]
        free = [c for c in candidates if not maze.walls[tuple(c)]]
        found = {}
        for candidate in free:
            guess = candidate - 0.1
            action = behavior.act(np.array([[*guess, 0.0, 0.0]]))[0].astype(float)
            # A waypoint of another cell is at least 0.8 away on some axis and saturates the action.
            if (np.abs(action) < 1 - 1e-9).all() or (tuple(candidate) == tuple(goal_cell) and (action == 1).all()):
                found[tuple(candidate)] = guess + action / 10
        assert len(found) == 1, (cell, found)
        ((name, waypoint),) = found.items()
        path.append(waypoint)
        cell = np.array(name)
        if name == tuple(goal_cell):
            return np.array(path)
        for _ in range(2):  # the first visit moved far, so only the second is slow
            behavior.act(np.array([[*waypoint, 0.0, 0.0]]))


def shortest_distance(maze, source, target):
    """Breadth-first search over the characters of the layout."""
    distance, queue = {tuple(source): 0}, deque([tuple(source)])
    while queue:
        i, j = queue.popleft()
        for cell in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
            if maze.rows[cell[0]][cell[1]] != "#" and cell not in distance:
                distance[cell] = distance[i, j] + 1
                queue.append(cell)
    return distance[tuple(target)]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["umaze", "medium", "large"])
def test_path_is_a_shortest_one_through_free_cells_with_all_waypoints_but_the_last_shifted(name, seed):
    maze = make_maze(name)
    generator = np.random.default_rng(seed)
    source, target = maze.free_cells[generator.choice(len(maze.free_cells), 2, replace=False)]
    behavior = WaypointBehavior(maze, goals=np.array([target], dtype=float))
    start(behavior, [source], seed)
    waypoints = walk(behavior, maze, source, target)
    assert len(waypoints) == shortest_distance(maze, source, target)
    cells = np.ceil(waypoints - 1e-6).astype(int)
    shifts = cells - waypoints
    np.testing.assert_allclose(waypoints[-1], target, atol=1e-6)
    assert (shifts[:-1] >= -1e-6).all()
    assert (shifts[:-1] <= 0.2).all()
    assert len(np.unique(shifts[:-1])) == shifts[:-1].size  # each coordinate of each waypoint has its own
    steps = np.abs(np.diff([source, *cells], axis=0)).sum(axis=1)
    assert (steps == 1).all()
    assert all(maze.rows[i][j] != "#" for i, j in cells)


def test_first_best_move_wins_in_the_order_of_d4rl():
    # D4RL's order is up (0, -1), down (0, +1), left (-1, 0), right (+1, 0).
    maze = make_maze("open")
    for source, target, expected in [
        ((1, 1), (3, 3), [(1, 2), (1, 3), (2, 3), (3, 3)]),
        ((3, 3), (1, 1), [(3, 2), (3, 1), (2, 1), (1, 1)]),
    ]:
        behavior = WaypointBehavior(maze, goals=np.array([target], dtype=float))
        start(behavior, [source])
        waypoints = walk(behavior, maze, source, target)
        assert [tuple(c) for c in np.ceil(waypoints - 1e-6).astype(int)] == expected


def test_shifts_are_uniform_up_to_a_fifth():
    maze = make_maze("large")
    behavior = WaypointBehavior(maze, goals=np.tile([1.0, 3.0], (4000, 1)))
    start(behavior, np.tile([1.0, 1.0], (4000, 1)))
    # At (1, 1.9) a waypoint in [0.8, 1] x [1.8, 2] is at most 0.1 away on the second axis.
    guess = np.tile([0.9, 1.9, 0.0, 0.0], (4000, 1))
    shifts = np.array([1.0, 2.0]) - (guess[:, :2] + behavior.act(guess) / 10)
    assert shifts.min() > -1e-6
    assert shifts.max() < 0.2 + 1e-6
    np.testing.assert_allclose(shifts.mean(axis=0), 0.1, atol=0.005)
    np.testing.assert_allclose(shifts.var(axis=0), 0.2**2 / 12, rtol=0.05)
    assert abs(np.corrcoef(shifts.T)[0, 1]) < 0.05


def test_action_is_ten_times_the_error_minus_the_velocity_clipped():
    # At its goal's cell the only waypoint is the goal itself, unshifted.
    behavior = WaypointBehavior(make_maze("umaze"), goals=np.tile([1.0, 1.0], (3, 1)))
    start(behavior, np.tile([1.0, 1.0], (3, 1)))
    actions = behavior.act(np.array([[1.05, 0.98, 0.2, -0.1], [1.3, 0.5, 0.0, 0.0], [1.0, 1.02, -3.0, 0.5]]))
    np.testing.assert_allclose(actions, [[-0.7, 0.3], [-1.0, 1.0], [1.0, -0.7]], atol=1e-6)
    assert actions.dtype == np.float32


def test_waypoint_is_not_done_while_the_ball_moves_fast():
    maze = make_maze("umaze")
    behavior = WaypointBehavior(maze, goals=np.array([[1.0, 3.0]]))
    start(behavior, [(1.0, 1.0)])
    guess = np.array([[0.9, 1.9, 0.0, 0.0]])
    waypoint = guess[0, :2] + behavior.act(guess)[0] / 10
    at_waypoint = np.array([[*waypoint, 0.0, 0.0]])
    aside = at_waypoint + np.array([0.0, -0.15, 0.0, 0.0])
    for _ in range(3):  # there and back by 0.15 in each step, 0.1 being the limit
        behavior.act(aside)
        np.testing.assert_allclose(behavior.act(at_waypoint), 0, atol=1e-5)
    behavior.act(at_waypoint)
    assert behavior.act(at_waypoint)[0, 1] == 1.0  # now on to the next


def test_noise_is_added_before_the_clip_with_the_given_deviation():
    num_envs = 3000
    maze = make_maze("umaze")
    goals = np.tile([1.0, 1.0], (num_envs, 1))
    behavior = WaypointBehavior(maze, action_noise=0.2, goals=goals)
    observations = start(behavior, np.tile([1.0, 1.0], (num_envs, 1)))
    noise = behavior.act(observations)
    assert noise.std() == pytest.approx(0.2, rel=0.05)
    assert noise.mean() == pytest.approx(0.0, abs=0.01)
    far = observations + np.array([0.5, 0.5, 0, 0])
    assert np.abs(behavior.act(far)).max() <= 1.0


def make_batch(maze, num_envs):
    env = make_vector_env(EnvConfig(env_id="diffplan/Maze2D-v1", env_kwargs={"maze": maze}), num_envs)
    return env, env.reset(seed=0)[0]


def test_goals_are_free_cells_and_a_new_one_comes_when_the_old_is_reached():
    maze = make_maze("medium")
    env, observations = make_batch("medium", 8)
    behavior = WaypointBehavior(maze, max_goal_steps=10_000)
    behavior.reset(observations, generators(8))
    free = {tuple(c) for c in maze.free_cells}
    previous, num_solved = None, np.zeros(8, dtype=int)
    for _ in range(1500):
        actions = behavior.act(observations)
        goals = behavior.columns()["goal"].copy()
        assert {tuple(g) for g in goals.astype(int)} <= free
        if previous is not None:
            changed = (goals != previous).any(axis=1)
            distances = np.linalg.norm(observations[:, :2] - previous, axis=1)
            assert (distances[changed] < 0.1).all()
            num_solved += changed
        previous = goals
        observations, *_ = env.step(actions)
    assert (num_solved >= 3).all()


def test_goal_is_given_up_after_the_limit():
    behavior = WaypointBehavior(make_maze("large"), max_goal_steps=20)
    observations = start(behavior, np.tile([3.0, 3.0], (30, 1)))
    observations[:, :2] += [0.0, 0.3]  # held where no cell's goal is within 0.1
    histories = []
    for _ in range(45):
        behavior.act(observations)
        histories.append(behavior.columns()["goal"].copy())
    changes = np.flatnonzero((np.diff(histories, axis=0) != 0).any(axis=(1, 2))) + 1
    assert changes.tolist() == [20, 40]


def test_fixed_goals_are_reached_and_kept():
    maze = make_maze("umaze")
    env, observations = make_batch("umaze", 12)
    goals = np.array([[1.05, 0.98], [3.0, 1.0], [2.0, 3.0]] * 4)
    behavior = WaypointBehavior(maze, max_goal_steps=50, goals=goals)
    behavior.reset(observations, generators(12))
    for _ in range(500):
        observations, *_ = env.step(behavior.act(observations))
        np.testing.assert_array_equal(behavior.columns()["goal"], np.rint(goals))
    # It stays at the cell of the goal, as D4RL's controller does.
    assert np.linalg.norm(observations[:, :2] - np.rint(goals), axis=1).max() < 0.05
    assert np.abs(observations[:, 2:]).max() < 0.05


def test_start_that_rounds_to_a_wall_counts_as_the_cell_that_holds_it():
    maze = make_maze("umaze")
    position = np.array([2.45, 1.0])  # rounds to wall (2, 1), lies in cell (3, 1)
    assert maze.is_free(position)
    behavior = WaypointBehavior(maze, goals=np.array([[3.0, 3.0]]))
    start(behavior, [position])
    waypoints = walk(behavior, maze, (3, 1), (3, 3))
    assert [tuple(c) for c in np.ceil(waypoints - 1e-6).astype(int)] == [(3, 2), (3, 3)]


def test_unreachable_goal_is_refused():
    maze = Maze("#####/#O#G#/#####")
    behavior = WaypointBehavior(maze, goals=np.array([[1.0, 3.0]]))
    with pytest.raises(ValueError, match=r"expected a way from cell .* to cell"):
        start(behavior, [(1.0, 1.0)])


def test_observations_are_left_as_they_are():
    behavior = WaypointBehavior(make_maze("umaze"), action_noise=0.5)
    observations = start(behavior, [(1.0, 1.0), (3.0, 1.0)])
    kept = observations.copy()
    behavior.act(observations)
    np.testing.assert_array_equal(observations, kept)

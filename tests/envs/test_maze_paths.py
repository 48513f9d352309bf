from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffplan.config import EnvConfig
from diffplan.environments import make_env, make_vector_env
from diffplan.tasks.maze2d.environment import get_shortest_path_lengths, get_touches_wall
from diffplan_envs.maze import BALL_RADIUS, Maze, make_maze
from diffplan_envs.maze_paths import CONTACT_MARGIN, MazePaths, make_maze_paths

MAZES = ["open", "umaze", "medium"]


def draw_positions(maze: Maze, seed: int, num: int) -> np.ndarray:
    """Positions where the ball fits, float64[num, 2]."""
    generator = np.random.default_rng(seed)
    cells = maze.free_cells[generator.integers(len(maze.free_cells), size=num)]
    return cells - 0.2 + generator.uniform(-0.4, 0.4, (num, 2))


def length(maze: str | Maze, start: list[float], goal: list[float], goal_radius: float = 0.0) -> float:
    paths = make_maze_paths(make_maze(maze))
    return float(paths.shortest_lengths(np.array([start]), np.array([goal]), goal_radius)[0])


def test_a_goal_in_sight_is_as_far_as_the_straight_line():
    assert length("open", [0.8, 0.8], [2.8, 4.6]) == pytest.approx(np.hypot(2.0, 3.8), abs=1e-12)
    assert length("open", [0.8, 0.8], [2.8, 4.6], 0.5) == pytest.approx(np.hypot(2.0, 3.8) - 0.5, abs=1e-12)


def test_around_one_corner_it_is_two_tangents_and_an_arc():
    # The corner of an L at (1.3, 1.3) of the observation's frame; the start and the goal lie mirrored on its two legs.
    maze = "####/#OO#/##O#/####"
    start, goal, corner = np.array([0.8, 0.8]), np.array([1.8, 1.8]), np.array([1.3, 1.3])
    arm = np.hypot(*(start - corner))
    tangent = np.sqrt(arm**2 - BALL_RADIUS**2)
    arc = BALL_RADIUS * (np.pi - 2 * np.arccos(BALL_RADIUS / arm))
    assert length(maze, start.tolist(), goal.tolist()) == pytest.approx(2 * tangent + arc, abs=3e-4)
    assert length(maze, start.tolist(), goal.tolist()) <= 2 * tangent + arc


def test_the_u_of_umaze_takes_two_corners():
    # Along two sides of the wall's end, whose corners with the radius are quarter circles.
    found = length("umaze", [2.8, 1.8], [0.8, 1.8])
    arms = 2 * np.sqrt((2.3 - 1.8) ** 2 + (2.8 - 2.3) ** 2 - BALL_RADIUS**2)
    turn = np.pi / 4 + np.arcsin(BALL_RADIUS / np.hypot(0.5, 0.5))
    assert found == pytest.approx(arms + 1.0 + 2 * BALL_RADIUS * turn, abs=1e-3)


def test_walls_that_touch_at_a_corner_let_nothing_through():
    assert length("####/#O##/##O#/####", [0.8, 0.8], [1.8, 1.8]) == np.inf


def test_to_a_circle_it_is_never_longer_than_to_its_middle_cut_at_the_circle():
    paths = make_maze_paths(make_maze("umaze"))
    starts, goals = draw_positions(paths.maze, 0, 200), draw_positions(paths.maze, 1, 200)
    to_goal = paths.shortest_lengths(starts, goals)
    to_circle = paths.shortest_lengths(starts, goals, 0.5)
    outside = np.linalg.norm(starts - goals, axis=1) > 0.5
    assert (to_circle[~outside] == 0).all()
    assert (to_circle <= to_goal - 0.5 + 1e-9)[outside].all()
    assert (to_circle >= np.linalg.norm(starts - goals, axis=1) - 0.5 - 1e-9).all()


@pytest.mark.parametrize("name", MAZES)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_lengths_are_a_metric_no_shorter_than_the_straight_line(name: str, seed: int):
    paths = make_maze_paths(make_maze(name))
    a, b, c = (draw_positions(paths.maze, seed ^ k, 4) for k in (0, 1, 2))
    lengths = paths.shortest_lengths(a, b)
    assert (lengths >= np.linalg.norm(a - b, axis=1) - 1e-9).all()
    np.testing.assert_allclose(paths.shortest_lengths(b, a), lengths, rtol=0, atol=1e-9)
    assert (paths.shortest_lengths(a, c) <= lengths + paths.shortest_lengths(b, c) + 1e-9).all()
    assert np.isfinite(lengths).all()
    np.testing.assert_allclose(paths.shortest_lengths(a, a), 0.0, atol=1e-9)


@pytest.mark.parametrize("name", MAZES)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_lengths_are_straight_lines_just_where_every_point_in_between_is_clear(name: str, seed: int):
    paths = make_maze_paths(make_maze(name))
    a, b = draw_positions(paths.maze, seed, 8), draw_positions(paths.maze, seed ^ 1, 8)
    between = a[:, None] + np.linspace(0, 1, 400)[None, :, None] * (b - a)[:, None]
    clearance = paths.clearances(between).min(axis=1)
    straight = np.linalg.norm(a - b, axis=1)
    lengths = paths.shortest_lengths(a, b)
    np.testing.assert_allclose(lengths[clearance >= BALL_RADIUS], straight[clearance >= BALL_RADIUS], atol=1e-9)
    blocked = clearance < 0.98 * BALL_RADIUS
    assert (lengths[blocked] > straight[blocked]).all()


def test_turning_the_maze_over_changes_no_length():
    maze = make_maze("medium")
    turned = Maze("/".join("".join(column) for column in zip(*maze.rows, strict=True)))
    a, b = draw_positions(maze, 3, 30), draw_positions(maze, 4, 30)
    lengths = MazePaths(maze).shortest_lengths(a, b, 0.5)
    np.testing.assert_allclose(MazePaths(turned).shortest_lengths(a[:, ::-1], b[:, ::-1], 0.5), lengths, atol=1e-9)


def test_a_ball_pressed_into_a_wall_counts_as_beside_it():
    assert length("open", [0.36, 0.8], [0.4, 0.8]) == pytest.approx(0.0, abs=1e-9)
    assert length("open", [0.36, 0.35], [2.0, 0.4]) == pytest.approx(1.6, abs=1e-9)


def test_positions_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"starts, goals: expected two of \[num, 2\]"):
        make_maze_paths(make_maze("open")).shortest_lengths(np.zeros((3, 4)), np.zeros((3, 2)))


def test_a_ball_touches_a_wall_from_the_step_on_which_mujoco_stops_it():
    touches_wall = get_touches_wall(EnvConfig(env_id="diffplan/Maze2D-UMaze-v1"))
    assert touches_wall is not None
    env = make_vector_env(EnvConfig(env_id="diffplan/Maze2D-UMaze-v1"), 2)
    starts = np.array([[3.0, 1.0, 0.0, 5.0], [3.0, 1.0, 0.0, 0.0]])
    observations = [env.reset(seed=[0, 1], options={"observation": starts})[0]]
    for _ in range(60):
        observations.append(env.step(np.array([[0.0, 1.0], [0.0, 0.0]]))[0])
    env.close()
    touches = touches_wall(np.stack(observations))
    assert touches.shape == (61, 2)
    assert not touches[:, 1].any()
    speeds = np.stack(observations)[:, 0, 3]
    first = next(step for step, (before, after) in enumerate(pairwise(speeds)) if after < before - 1.0)
    assert touches[first, 0]
    assert not touches[: first - 1, 0].any()
    assert touches[-10:, 0].any()  # pressed on the wall


@pytest.mark.parametrize("name", MAZES)
def test_a_ball_touches_a_wall_just_where_the_clearance_is_small(name: str):
    paths = make_maze_paths(make_maze(name))
    size = np.array(paths.maze.walls.shape)
    positions = np.random.default_rng(0).uniform(-4.0, size + 4.0, (20, 1000, 2))  # beyond the maze too
    expected = paths.clearances(positions) <= BALL_RADIUS + CONTACT_MARGIN
    assert 0.05 < expected.mean() < 0.5
    assert (paths.touches_wall(positions) == expected).all()
    assert paths.touches_wall(positions[0, 0]) == expected[0, 0]


def test_lengths_travelled_in_the_environment_are_never_shorter():
    config = EnvConfig(env_id="diffplan/Multi2D-UMaze-v1")
    shortest_path_lengths = get_shortest_path_lengths(config)
    assert shortest_path_lengths is not None
    env = make_env(config)
    generator = np.random.default_rng(0)
    num_reached = 0
    for seed in range(20):
        observation, info = env.reset(seed=seed)
        starts, goals, travelled, reached = observation[None], info["goal"][None], 0.0, info["success"]
        for _ in range(300):
            action = np.clip(2 * (info["goal"] - observation[:2]) + generator.normal(size=2), -1, 1)
            before = observation
            observation, _, _, _, info = env.step(action)
            travelled += 0.0 if reached else float(np.linalg.norm(observation[:2] - before[:2]))
            reached = reached or info["success"]
        if reached:
            num_reached += 1
            assert shortest_path_lengths(starts, goals)[0] <= travelled + 1e-3
    env.close()
    assert num_reached >= 5


def test_environments_without_walls_have_none_of_it():
    config = EnvConfig(env_id="Pendulum-v1")
    assert get_shortest_path_lengths(config) is None
    assert get_touches_wall(config) is None

"""The physics against numbers derived by hand from D4RL's constants, not from the implementation.

MuJoCo's Euler integrator takes joint damping implicitly: with mass m, damping d, gear g and step h, a free ball obeys
m (v' - v) / h = g u - d v', that is v' = v + h (g u - d v) / (m + h d), and then x' = x + h v'.
"""

import math

import gymnasium
import numpy as np
import pytest

MASS = 4 / 3 * math.pi * 0.1**3 * 1000
GEAR, DAMPING, STEP = 100.0, 1.0, 0.01


def make_env(maze="open", **kwargs):
    return gymnasium.make("diffplan/Maze2D-v1", maze=maze, max_episode_steps=10_000, **kwargs)


def start(env, position, velocity=(0.0, 0.0)):
    return env.reset(options={"observation": [*position, *velocity]})[0]


def push(env, action, num_steps):
    return np.array([env.step(np.array(action, dtype=np.float32))[0] for _ in range(num_steps)])


def test_mass_is_that_of_a_ball_of_radius_a_tenth():
    assert pytest.approx(4.18879, abs=1e-5) == MASS
    assert make_env().unwrapped.model.body("ball").mass[0] == pytest.approx(MASS, rel=1e-12)


def test_free_ball_follows_the_closed_form():
    env = make_env("#" * 12 + "/" + ("#" + "O" * 10 + "#/") * 10 + "#" * 12)
    observation = start(env, (5.0, 5.0), (0.3, -0.2))
    position, velocity = observation[:2].copy(), observation[2:].copy()
    generator = np.random.default_rng(0)
    for _ in range(60):
        action = generator.uniform(-1, 1, 2).astype(np.float32)
        observation = env.step(action)[0]
        velocity = velocity + STEP * (GEAR * action.astype(np.float64) - DAMPING * velocity) / (MASS + STEP * DAMPING)
        position = position + STEP * velocity
        np.testing.assert_allclose(observation, [*position, *velocity], rtol=0, atol=1e-12)


def test_first_step_at_full_force_gains_h_times_gear_over_mass():
    env = make_env()
    start(env, (2.0, 2.0))
    observation = push(env, (1, 0), 1)[0]
    assert observation[2] == pytest.approx(STEP * GEAR / (MASS + STEP * DAMPING), abs=1e-14)
    assert observation[2] == pytest.approx(0.2387, rel=3e-3)  # D4RL's 0.239 per step, less the damping


def test_full_force_reaches_the_speed_limit_after_about_21_steps():
    env = make_env("####/" + "#GO#/" * 9 + "####")
    start(env, (1.0, 1.0))
    speeds = push(env, (1, 0), 22)[:, 2]
    # v_n = (g / d) (1 - r^n) with r = m / (m + h d), without a limit
    expected = GEAR / DAMPING * (1 - (MASS / (MASS + STEP * DAMPING)) ** np.arange(1, 23))
    np.testing.assert_allclose(speeds, expected, rtol=0, atol=1e-11)
    assert speeds[20] < 5.0 < speeds[21]


def test_speed_is_clipped_before_each_step_so_that_5_226_is_the_fastest_seen():
    env = make_env("####/" + "#GO#/" * 12 + "####")
    start(env, (1.0, 1.0))
    speeds = push(env, (1, 0), 100)[:, 2]
    fastest = 5.0 + STEP * (GEAR - DAMPING * 5.0) / (MASS + STEP * DAMPING)
    assert fastest == pytest.approx(5.226255, abs=1e-6)
    assert speeds.max() == pytest.approx(fastest, abs=1e-12)


def test_a_faster_start_is_clipped_too():
    env = make_env()
    start(env, (2.0, 2.0), (9.0, 0.0))
    speed = push(env, (0, 0), 1)[0, 2]
    assert speed == pytest.approx(5.0 * MASS / (MASS + STEP * DAMPING), abs=1e-12)


def test_actions_beyond_the_bounds_are_clipped():
    env = make_env().unwrapped
    start(env, (2.0, 2.0))
    beyond = env.step(np.array([7.0, -7.0], dtype=np.float32))[0]
    start(env, (2.0, 2.0))
    at_bound = env.step(np.array([1.0, -1.0], dtype=np.float32))[0]
    np.testing.assert_array_equal(beyond, at_bound)


@pytest.mark.parametrize(
    ("action", "axis", "wall"),
    # Wall rows 0 and 4, wall columns 0 and 6 of the open maze; a ball touches wall w at w + 0.4 and at w - 0.8.
    [((-1, 0), 0, 0 + 0.4), ((1, 0), 0, 4 - 0.8), ((0, -1), 1, 0 + 0.4), ((0, 1), 1, 6 - 0.8)],
)
def test_ball_stops_at_each_wall(action, axis, wall):
    env = make_env()
    start(env, (2.0, 2.0))
    path = push(env, action, 400)
    overshoot = (path[:, axis] - wall) * np.sign(action[axis])
    assert overshoot.max() < 0.05  # full impact: MuJoCo's contacts are soft
    assert abs(overshoot[-1]) < 2e-3  # at rest, held by full force: D4RL's margin of 0.002
    assert abs(path[-1, 2 + axis]) < 1e-6
    # The other axis feels nothing.
    assert (path[:, 1 - axis] == 2.0).all()


def test_contacts_have_the_margin_of_d4rl():
    env = make_env().unwrapped
    start(env, (2.0, 5.2))
    env.step(np.zeros(2, dtype=np.float32))
    assert [contact.includemargin for contact in env.data.contact] == [pytest.approx(0.002)]


def test_corridor_is_symmetric_about_the_cell_centre_at_minus_a_fifth():
    # One free row of cells: the ball, pushed up and then down, rests equally far from i - 0.2.
    env = make_env("#####/#OOG#/#####")
    start(env, (0.8, 1.8))
    low = push(env, (-1, 0), 300)[-1, 0]
    start(env, (0.8, 1.8))
    high = push(env, (1, 0), 300)[-1, 0]
    assert (low + high) / 2 == pytest.approx(1 - 0.2, abs=1e-6)
    assert (high - low) / 2 == pytest.approx(0.4, abs=2e-3)


def test_ball_slides_along_a_wall_without_friction():
    env = make_env("####/" + "#GO#/" * 12 + "####")
    # Within the span [0.3, 1.3) of one wall cell: at a seam, a pressed ball catches on the next box, as in D4RL.
    start(env, (0.6, 0.402))
    pressed = push(env, (1, -1), 18)
    assert np.abs(pressed[:, 1] - 0.4).max() < 0.01
    start(env, (0.6, 1.3))
    free = push(env, (1, 0), 18)
    assert free[-1, 0] > 0.9
    np.testing.assert_allclose(pressed[:, [0, 2]], free[:, [0, 2]], rtol=0, atol=1e-9)


def test_a_ball_never_enters_a_wall_under_random_pushes():
    env = make_env("large")
    maze = env.unwrapped.maze
    generator = np.random.default_rng(1)
    env.reset(seed=1)
    for _ in range(150):
        path = push(env, generator.choice([-1.0, 1.0], 2), 20)
        assert maze.is_free(path[:, :2]).all()

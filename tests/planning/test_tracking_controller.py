import numpy as np
import pytest

from diffplan.config import EnvConfig
from diffplan.errors import PlanningError
from diffplan.planning.control.controllers import TrackingController
from diffplan.types import Plan

ENV = EnvConfig(env_id="any", position_columns=(0, 1), velocity_columns=(2, 3), step_seconds=0.01)


def make_plan(rows, stride=2):
    return Plan(np.array(rows, dtype=np.float32), None, stride, 0.0, True)


# x goes 0, 2, 3 with velocities 4, 2, 6; y stays at 1.
PLAN = make_plan([[0, 1, 4, 0], [2, 1, 2, 0], [3, 1, 6, 0]])
STILL = make_plan([[5, 5, 0, 0], [5, 5, 0, 0]])
# x and vx of the plan one environment step ahead at each step: interpolated, then the end, then rest.
TARGETS = [(1.0, 3.0), (2.0, 2.0), (2.5, 4.0), (3.0, 6.0), (3.0, 0.0), (3.0, 0.0)]


def make_controller(position_gain=10.0, velocity_gain=0.5, bound=1000.0):
    return TrackingController(ENV, position_gain, velocity_gain, -bound, bound)


def test_action_is_the_formula_at_every_step_of_a_hand_made_plan():
    controller = make_controller()
    controller.reset([PLAN])
    observation = np.array([[0.5, 0.9, 1.0, -2.0]])
    for x, vx in TARGETS:
        expected = [10 * (x - 0.5) + 0.5 * (vx - 1.0), 10 * (1 - 0.9) + 0.5 * (0 + 2.0)]
        action = controller.act(observation)
        assert action.dtype == np.float32
        np.testing.assert_allclose(action, [expected], rtol=1e-6)


def test_end_of_the_plan_is_held_at_rest():
    controller = make_controller()
    controller.reset([PLAN])
    for _ in range(50):
        action = controller.act(np.array([[3.0, 1.0, 0.0, 0.0]]))
    np.testing.assert_array_equal(action, [[0.0, 0.0]])


def test_actions_are_clipped_to_their_bounds():
    controller = TrackingController(ENV, 10.0, 1.0, np.array([-1.0, -np.inf]), np.array([2.0, 0.25]))
    controller.reset([PLAN])
    for observation, expected in [([-9.0, 9.0, 0, 0], [2.0, -80.0]), ([9.0, -9.0, 0, 0], [-1.0, 0.25])]:
        np.testing.assert_allclose(controller.act(np.array([observation])), [expected])


def test_each_environment_follows_its_own_plan():
    controller = make_controller()
    controller.reset([STILL, PLAN])
    observations = np.array([[5.0, 5.0, 0, 0], [0.5, 1.0, 1.0, 0.0]])
    np.testing.assert_allclose(controller.act(observations), [[0, 0], [6.0, 0]], atol=1e-6)
    assert controller.remaining_env_steps().tolist() == [1, 3]


def test_new_plan_starts_from_its_first_step_and_leaves_the_others_alone():
    controller = make_controller()
    controller.reset([PLAN, PLAN])
    observations = np.array([[0.5, 1.0, 1.0, 0.0]] * 2)
    controller.act(observations)
    controller.replace(1, PLAN)
    for (x0, v0), (x1, v1) in zip(TARGETS[1:], TARGETS[:-1], strict=True):
        expected = [10 * (x - 0.5) + 0.5 * (v - 1.0) for x, v in ((x0, v0), (x1, v1))]
        np.testing.assert_allclose(controller.act(observations)[:, 0], expected, rtol=1e-6)


def test_remaining_steps_count_down_to_zero():
    controller = make_controller()
    controller.reset([PLAN])
    remaining = [controller.remaining_env_steps()[0]]
    for _ in range(6):
        controller.act(np.zeros((1, 4)))
        remaining.append(controller.remaining_env_steps()[0])
    assert remaining == [4, 3, 2, 1, 0, 0, 0]


def test_deviation_is_the_distance_to_the_plan_now():
    controller = make_controller()
    controller.reset([PLAN])
    expected_x = [0.0, 1.0, 2.0, 2.5, 3.0, 3.0]
    for x in expected_x:
        assert controller.deviations(np.array([[x + 3.0, 1.0 - 4.0, 9.0, 9.0]])) == pytest.approx([5.0])
        controller.act(np.zeros((1, 4)))


def test_columns_are_those_of_the_environment():
    env = EnvConfig(env_id="any", position_columns=(3,), velocity_columns=(1,), step_seconds=0.01)
    controller = TrackingController(env, 2.0, 3.0, -100.0, 100.0)
    controller.reset([make_plan([[0, 5, 0, 1], [0, 5, 0, 2]], stride=1)])
    np.testing.assert_allclose(controller.act(np.array([[7.0, 4.0, 7.0, 1.5]])), [[2 * 0.5 + 3 * 1.0]])


def test_at_twice_the_pace_a_plan_takes_half_the_time_with_twice_the_velocities():
    controller = TrackingController(ENV, 10.0, 0.5, -1000.0, 1000.0, pace=2.0)
    controller.reset([PLAN])
    assert controller.count_env_steps(PLAN) == controller.remaining_env_steps()[0] == 2
    observation = np.array([[0.5, 0.9, 1.0, -2.0]])
    # Every other place of the plan, with its velocity doubled; then rest.
    for elapsed, (x, vx) in zip((2, 4, 6), [(2.0, 4.0), (3.0, 12.0), (3.0, 0.0)], strict=True):
        expected = [10 * (x - 0.5) + 0.5 * (vx - 1.0), 10 * (1 - 0.9) + 0.5 * (0 + 2.0)]
        np.testing.assert_allclose(controller.act(observation), [expected], rtol=1e-6)
        assert controller.elapsed_env_steps().tolist() == [elapsed]


@pytest.mark.parametrize(("pace", "steps"), [(0.5, 8), (0.7, 6), (1.0, 4), (1.1, 4), (1.5, 3), (9.0, 1)])
def test_a_plan_is_followed_to_its_end_at_any_pace(pace, steps):
    controller = TrackingController(ENV, 1.0, 0.0, -1000.0, 1000.0, pace=pace)
    controller.reset([PLAN])
    assert controller.count_env_steps(PLAN) == steps
    xs = [controller.act(np.zeros((1, 4)))[0, 0] for _ in range(steps + 2)]
    assert xs == sorted(xs)
    assert (xs[steps - 2] < 3.0) if steps > 1 else True
    np.testing.assert_allclose(xs[steps - 1 :], 3.0)


def test_actions_that_are_none_for_each_position_are_refused_in_one_line():
    with pytest.raises(PlanningError, match=r"for each of the 2 env\.position_columns, and .* has 3") as caught:
        TrackingController(ENV, 1.0, 1.0, np.full(3, -0.4), np.full(3, 2.0))
    assert "\n" not in str(caught.value)

"""Planning and acting where the roles of the observation's columns are not, or not all, known."""

import numpy as np
import pytest
from straight_line_planner import CONFIG, make_untrained_planner, seeded, stack
from toy_motion import make_homing_planner

from diffplan.config import EnvConfig, with_overrides
from diffplan.errors import ConfigError, PlanningError
from diffplan.planning.companions.support import Support
from diffplan.planning.constraints import Bounds, Fixed
from diffplan.planning.control.controllers import PlanFollower, TrackingController
from diffplan.planning.control.policy import PlanningPolicy
from diffplan.planning.control.registry import ControllerContext, make_controller
from diffplan.planning.planner import with_support
from diffplan.types import Plan

OBSERVATIONS = np.array([[1.1, 1.03, 0.3, -0.2], [3.07, 2.9, -1.0, 4.9]])
GOALS = np.array([[3.0, 1.1], [1.01, 0.97]], dtype=np.float32)
UNKNOWN = {"env.position_columns": [], "env.velocity_columns": [], "env.step_seconds": None}
WITHOUT_VELOCITIES = {"env.velocity_columns": [], "env.step_seconds": None}


def make_planner(overrides, **settings):
    config = with_overrides(CONFIG, overrides)
    return make_untrained_planner(config, with_overrides(config.planning, settings))


def assert_refused(planner, message, goals=None, constraints=()):
    with pytest.raises(PlanningError, match=message) as caught:
        planner.plan(OBSERVATIONS, goals, seeded(), constraints=constraints)
    assert "\n" not in str(caught.value)


def test_goals_that_the_model_does_not_fix_only_guide():
    planner = make_planner({"windows.goal_columns": []}, **{"sampling.temperature": 0.0})
    plain, scored = (
        planner.plan(OBSERVATIONS, GOALS, seeded(), guides=guides) for guides in (None, ["goal_distance()"])
    )
    assert not np.isin(stack(plain)[:, -1, :2], GOALS).any()
    policy = PlanningPolicy(planner, seeded())
    policy.reset(OBSERVATIONS, GOALS)
    for _ in range(60):  # no plan arrives, so each that ends is followed by a new one
        policy.act(OBSERVATIONS)
    assert (policy.num_plans > 1).all()
    assert all(plan.guide_score < 0 for plan in scored)


def test_what_needs_a_role_that_is_not_known_is_refused_in_one_line():
    goalless = make_planner({"env.goal_columns": []})
    assert_refused(goalless, r"goals: expected none, for this model knows no goal columns", GOALS)
    unknown = make_planner(UNKNOWN)
    timed = [Fixed([1.0], columns=(0,), seconds=0.1)]
    assert_refused(unknown, r"got seconds, but how long a step takes is not known", GOALS, timed)
    assert_refused(unknown, r"Fixed: expected columns, for no positions are known", GOALS, [Fixed([1.0], step=1)])
    assert_refused(unknown, r"Bounds: expected columns, for no positions are known", GOALS, [Bounds(0.0, 1.0)])
    with pytest.raises(PlanningError, match=r"guide: expected known seconds of a step"):
        make_planner(WITHOUT_VELOCITIES).plan(OBSERVATIONS, GOALS, seeded(), guides=["speed_limit(1.0)"])


def test_goals_of_an_environment_are_left_aside_by_a_model_without():
    policy = PlanningPolicy(make_planner({"env.goal_columns": []}), seeded())
    policy.reset(OBSERVATIONS, GOALS)
    assert policy.act(OBSERVATIONS).shape == (2, 2)


def test_without_velocities_every_plan_is_consistent_and_ways_are_straight():
    planner = make_planner(WITHOUT_VELOCITIES, **{"horizon.max_speed_error": 0.0, "horizon.max_departure": 0.01})
    plans = planner.plan(OBSERVATIONS, GOALS, seeded())
    assert [(plan.consistent, plan.speed_error, plan.departure) for plan in plans] == [(True, None, None)] * 2
    assert {plan.horizon for plan in plans} == {min(planner.settings.horizon.tried)}
    corner = Support(np.array([[1.1, 1.03]]))
    for plan in with_support(planner, corner).plan(OBSERVATIONS, GOALS, seeded()):
        steps = plan.observations[:, :2].astype(np.float64)
        shares = np.linspace(0, 1, 5)[:, None, None]
        points = (steps[:-1] + shares * np.diff(steps, axis=0)).reshape(-1, 2)
        assert plan.departure == pytest.approx(np.linalg.norm(points - [1.1, 1.03], axis=1).max(), rel=1e-5)


def test_tracking_without_velocities_follows_positions():
    env = EnvConfig(env_id="any", position_columns=(1,))
    controller = TrackingController(env, 2.0, 5.0, -10.0, 10.0, "hermite")
    controller.reset([Plan(np.array([[0, 0], [9, 1], [9, 2]], np.float32), None, 2, 0.0, True)])
    actions = [float(controller.act(np.array([[7.0, 0.25]]))[0, 0]) for _ in range(5)]
    assert actions == pytest.approx([2 * (x - 0.25) for x in (0.5, 1.0, 1.5, 2.0, 2.0)])
    assert controller.deviations(np.array([[0.0, 0.5]])).tolist() == [1.5]


def test_nothing_can_be_tracked_without_positions():
    with pytest.raises(
        PlanningError, match=r"tracking needs env.position_columns, and none are known of toy"
    ) as caught:
        PlanningPolicy(make_homing_planner(settings=with_overrides(CONFIG.planning, {"horizon.min": 8})), seeded())
    assert "\n" not in str(caught.value)


class Half(PlanFollower):
    """Goes half of the way to the next planned observation."""

    def __init__(self, context):
        super().__init__(context.env, context.action_low, context.action_high)

    def compute_actions(self, observations, targets, envs):
        return 0.5 * (targets - observations)[:, :2]


@pytest.mark.parametrize("name", ["half", "test_roles:Half"])
def test_a_controller_of_ones_own_follows_plans(name):
    planner = make_homing_planner()
    settings = with_overrides(planner.settings, {"controller": name})
    policy = PlanningPolicy(make_homing_planner(settings=settings), seeded(), -0.05, 0.05, controllers={"half": Half})
    start = np.array([[0.5, -1.0]])
    policy.reset(start)
    np.testing.assert_allclose(policy.act(start), [[-0.05, 0.05]], rtol=1e-5)
    np.testing.assert_allclose(policy.act(policy.plans[0].observations[1:2] + 0.01), [[-0.045, 0.05]], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("trackin", r"planning.controller: expected one of action_head, actions, half, .* Did you mean 'tracking'\?"),
        ("test_roles:Quarter", r"planning.controller: expected 'Quarter' in test_roles"),
        ("test_roles:GOALS", r"expected a class or a function of a ControllerContext at test_roles:GOALS, got ndarray"),
        ("test_roles:is_no_controller", r"expected a controller from test_roles:is_no_controller, got int without"),
    ],
)
def test_what_is_no_controller_is_refused_in_one_line(name, message):
    context = ControllerContext(CONFIG.env, CONFIG.planning)
    with pytest.raises(ConfigError, match=message) as caught:
        make_controller(name, context, {"half": Half})
    assert "\n" not in str(caught.value)


def is_no_controller(context):
    return 3

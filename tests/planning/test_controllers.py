"""Controllers beside the tracking one, and which of them a planner's settings name."""

from dataclasses import replace

import numpy as np
import pytest
from double_integrator import SECONDS, accelerate, find_actions
from straight_line_planner import CONFIG, make_untrained_planner

from diffplan.config import EnvConfig, with_overrides
from diffplan.errors import ConfigError, PlanningError
from diffplan.planning.control.controllers import ActionController, InverseDynamicsController, TrackingController
from diffplan.planning.control.registry import ControllerContext, make_controller
from diffplan.planning.control.target_controller import TargetController
from diffplan.planning.planner import Planner
from diffplan.types import Plan

ENV = EnvConfig(env_id="any", position_columns=(0, 1), velocity_columns=(2, 3), step_seconds=SECONDS)


def make_driven_plan(stride, num_steps=8, seed=0):
    """A plan that the double integrator can follow exactly, its accelerations constant over each step."""
    actions = np.random.default_rng(seed).uniform(-3, 3, (num_steps, 2))
    state = np.array([[1.0, 2.0, 0.5, -0.5]])
    rows = [state[0]]
    for action in actions:
        for _ in range(stride):
            state = accelerate(state, action[None])
        rows.append(state[0])
    planned = np.concatenate([actions, actions[-1:]]).astype(np.float32)
    return Plan(np.array(rows, dtype=np.float32), planned, stride, 0.0, True)


def drive(controller, observations, num_env_steps):
    """Observations and actions of environments that a controller steers."""
    rows, actions = [observations], []
    for _ in range(num_env_steps):
        actions.append(controller.act(rows[-1]))
        rows.append(accelerate(rows[-1], actions[-1]))
    return np.stack(rows), np.stack(actions)


@pytest.mark.parametrize("stride", [1, 4])
def test_inverse_dynamics_follow_a_plan_that_can_be_followed(stride):
    plans = [make_driven_plan(stride, seed=0), make_driven_plan(stride, seed=1)]
    controller = InverseDynamicsController(ENV, find_actions, -100.0, 100.0, "hermite")
    controller.reset(plans)
    starts = np.stack([plan.observations[0] for plan in plans]).astype(np.float64)
    rows, actions = drive(controller, starts, 8 * stride)
    for i, plan in enumerate(plans):
        np.testing.assert_allclose(rows[::stride, i, :2], plan.observations[:, :2], atol=2e-4)
        if stride == 1:
            np.testing.assert_allclose(rows[:, i, :2], plan.observations[:, :2], atol=2e-5)
    assert actions.dtype == np.float32
    assert controller.remaining_env_steps().tolist() == [0, 0]
    assert controller.elapsed_env_steps().tolist() == [8 * stride] * 2


def test_inverse_dynamics_are_told_where_the_plan_is_a_step_ahead():
    asked = []

    def predict(observations, next_observations):
        asked.append((observations.copy(), next_observations.copy()))
        return np.array([[5.0, -0.25]])

    plan = Plan(np.float32([[0, 0, 1, 0], [2, 0, 1, 0]]), None, 2, 0.0, True)
    controller = InverseDynamicsController(ENV, predict, np.array([-1.0, -1.0]), np.array([1.0, 1.0]))
    controller.reset([plan])
    here = np.array([[0.5, 0.5, 0.0, 0.0]])
    for _ in range(4):
        np.testing.assert_array_equal(controller.act(here), np.float32([[1.0, -0.25]]))  # clipped
    np.testing.assert_array_equal([observations[0] for observations, _ in asked], np.repeat(here, 4, axis=0))
    # Halfway, the end, and then the end at rest.
    expected = [[1, 0, 1, 0], [2, 0, 1, 0], [2, 0, 0, 0], [2, 0, 0, 0]]
    np.testing.assert_allclose([target[0] for _, target in asked], expected)


@pytest.mark.parametrize("stride", [1, 3])
def test_planned_actions_are_executed_step_by_step_and_the_last_one_after_the_end(stride):
    plan = make_driven_plan(stride, num_steps=4)
    controller = ActionController(ENV, -100.0, 100.0)
    controller.reset([plan])
    rows, actions = drive(controller, plan.observations[:1].astype(np.float64), 4 * stride + 5)
    expected = np.concatenate([np.repeat(plan.actions[:-1], stride, axis=0), np.repeat(plan.actions[-1:], 5, axis=0)])
    np.testing.assert_array_equal(actions[:, 0], expected)
    np.testing.assert_allclose(rows[: 4 * stride + 1 : stride, 0], plan.observations, atol=1e-4)


def test_planned_actions_are_clipped_and_each_environment_has_its_own():
    plans = [make_driven_plan(2, seed=0), make_driven_plan(2, seed=1)]
    controller = ActionController(ENV, -0.5, np.array([0.5, 0.25]))
    controller.reset(plans)
    still = np.zeros((2, 4))
    found = controller.act(still)
    np.testing.assert_array_equal(found, [np.clip(plan.actions[0], -0.5, [0.5, 0.25]) for plan in plans])
    for _ in range(3):
        controller.act(still)
    controller.replace(1, plans[0])
    assert controller.elapsed_env_steps().tolist() == [4, 0]
    found = controller.act(still)
    np.testing.assert_array_equal(found, [np.clip(plans[0].actions[k], -0.5, [0.5, 0.25]) for k in (2, 0)])


def test_plans_without_actions_cannot_be_executed_so():
    controller = ActionController(ENV)
    controller.reset([replace(make_driven_plan(1), actions=None)])
    with pytest.raises(ValueError, match="expected planned actions"):
        controller.act(np.zeros((1, 4)))


def test_elapsed_steps_do_not_end_with_the_plan():
    controller = TrackingController(ENV, 1.0, 1.0)
    controller.reset([make_driven_plan(1, num_steps=2)])
    for _ in range(7):
        controller.act(np.zeros((1, 4)))
    assert controller.elapsed_env_steps().tolist() == [7]
    assert controller.remaining_env_steps().tolist() == [0]


def test_tracking_can_follow_the_cubics_between_steps():
    # From rest to rest: the cubic is a smooth step, whose speed is highest halfway.
    plan = Plan(np.float32([[0, 0, 0, 0], [1, 0, 0, 0]]), None, 4, 0.0, True)
    found = {}
    for interpolation in ("linear", "hermite"):
        controller = TrackingController(ENV, 1.0, 0.0, -100.0, 100.0, interpolation)
        controller.reset([plan])
        found[interpolation] = [float(controller.act(np.zeros((1, 4)))[0, 0]) for _ in range(5)]
    assert found["linear"] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert found["hermite"] == pytest.approx([s * s * (3 - 2 * s) for s in (0.25, 0.5, 0.75, 1.0, 1.0)])
    controller = TrackingController(ENV, 0.0, 1.0, -100.0, 100.0, "hermite")
    controller.reset([plan])
    speeds = [float(controller.act(np.zeros((1, 4)))[0, 0]) for _ in range(5)]
    assert speeds == pytest.approx([6 * s * (1 - s) / (4 * SECONDS) for s in (0.25, 0.5, 0.75, 1.0, 1.0)], abs=1e-5)


def make_planner_with(controller, action_dim=0, **settings):
    config = with_overrides(CONFIG, {"windows.columns": "actions_observations" if action_dim else "observations"})
    plain = make_untrained_planner(config, action_dim=action_dim)
    return Planner(
        config,
        plain.model.layout,
        plain.model.denoiser,
        plain.model.normalizer,
        with_overrides(CONFIG.planning, {"controller": controller, **settings}),
        inverse_dynamics=find_actions,
    )


def make_named(planner, low=-1.0, high=1.0, controllers=None):
    """The controller that a planner's settings name."""
    context = ControllerContext(planner.config.env, planner.settings, planner.inverse_dynamics, low, high)
    return make_controller(planner.settings.controller.kind, context, controllers)


def test_settings_name_the_controller():
    plan = replace(make_driven_plan(2), actions=np.full((9, 2), 0.3, dtype=np.float32))
    here = plan.observations[:1].astype(np.float64) + 0.01

    def act(planner):
        controller = make_named(planner, np.array([-1.0, -0.125]), np.array([1.0, 0.125]))
        controller.reset([plan])
        return controller, controller.act(here)

    controller, found = act(
        make_planner_with("tracking", **{"controller.position_gain": 0.7, "controller.velocity_gain": 0.2})
    )
    assert isinstance(controller, TrackingController)
    by_hand = TrackingController(ENV, 0.7, 0.2, [-1.0, -0.125], [1.0, 0.125])
    by_hand.reset([plan])
    np.testing.assert_array_equal(found, by_hand.act(here))

    controller, found = act(make_planner_with("actions", action_dim=2))
    assert isinstance(controller, ActionController)
    np.testing.assert_array_equal(found, np.float32([[0.3, 0.125]]))

    controller, found = act(make_planner_with("inverse_dynamics"))
    assert isinstance(controller, InverseDynamicsController)
    assert np.abs(found).max() <= 1


@pytest.mark.parametrize("controller", ["tracking", "inverse_dynamics"])
def test_interpolation_is_that_of_the_settings(controller):
    plan = make_driven_plan(4)

    def act(interpolation):
        made = make_named(make_planner_with(controller, **{"controller.interpolation": interpolation}), -1e9, 1e9)
        made.reset([plan])
        return made.act(plan.observations[:1].astype(np.float64))

    assert np.abs(act("linear") - act("hermite")).max() > 1e-3


def test_the_pace_is_that_of_the_settings_and_planned_actions_have_none():
    plan = make_driven_plan(4)
    for controller in ("tracking", "inverse_dynamics"):
        made = make_named(make_planner_with(controller, **{"controller.pace": 2.0}), -1e9, 1e9)
        assert made.count_env_steps(plan) == -(-(plan.horizon - 1) * plan.stride // 2)
    for name in ("pace", "max_lag"):
        with pytest.raises(ConfigError, match=f"controller.{name}: expected a field of controller actions, got one of"):
            make_planner_with("actions", action_dim=2, **{f"controller.{name}": 0.5})


def test_targets_are_the_planned_values_one_step_ahead_within_the_bounds():
    observations = np.float32([[0, 5, 9, 1], [1, 6, 9, 0], [4, 8, 9, 0]])
    plans = [Plan(observations, None, 2, None, True), Plan(observations + 1, None, 2, None, True)]
    controller = TargetController(ENV, (3, 0), np.array([0.0, -1.0]), np.array([1.0, 3.0]))
    controller.reset(plans)
    found = [controller.act(np.full((2, 4), 100.0)) for _ in range(4)]
    first = [[0.5, 0.5], [0.0, 1.0], [0.0, 2.5], [0.0, 3.0]]  # flags and positions, halfway between steps and at them
    np.testing.assert_allclose([each[0] for each in found], first)
    np.testing.assert_allclose([each[1] for each in found], [[1.0, 1.5], [1.0, 2.0], [1.0, 3.0], [1.0, 3.0]])
    assert controller.has_ended(np.array([0, 1])).all()
    assert not controller.can_hold


def test_targets_need_a_column_for_each_column_of_an_action():
    planner = make_planner_with("targets", **{"controller.columns": (0, 1)})
    controller = make_named(planner, np.array([-1.0, -1.0]), np.array([1.0, 1.0]))
    assert isinstance(controller, TargetController)
    with pytest.raises(PlanningError, match=r"expected 3 observation columns, one for each column .* got \[0, 1\]"):
        make_named(planner, np.full(3, -1.0), np.full(3, 1.0))
    for columns in ((), (0, 4)):
        with pytest.raises(PlanningError, match=r"controller.columns: expected an observation column from 0 to 3"):
            make_planner_with("targets", **{"controller.columns": columns})
    with pytest.raises(ConfigError, match=r"controller.columns: expected observation columns, counted from 0"):
        make_planner_with("targets", **{"controller.columns": (-1,)})

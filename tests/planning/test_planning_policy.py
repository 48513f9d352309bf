from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from straight_line_planner import CONFIG, make_untrained_planner

from diffplan.planning.policy import MIN_STEPS_BETWEEN_PLANS, STRICTNESS_FACTOR, PlanningPolicy
from diffplan.types import Plan

AT_REST = np.array([[1.0, 1.0, 0.0, 0.0]])
GOAL = np.array([[4.0, 1.0]])


def make_plan(horizon, x=1.0, consistent=True):
    """A plan that rests at x, 1."""
    return Plan(np.tile(np.float32([x, 1, 0, 0]), (horizon, 1)), None, 5, 0.0, consistent)


class ScriptedPlanner:
    """Hands out plans of a script, and keeps what it was asked for."""

    def __init__(self, *script, **settings):
        self.config = SimpleNamespace(env=CONFIG.env)
        self.settings = replace(CONFIG.planning, **{"max_deviation": 0.0, "max_speed_error": 8.0, **settings})
        self.script = list(script)
        self.asked = []

    def plan(self, observations, goals, generator, *, max_speed_errors):
        self.asked.append((observations.copy(), goals.copy(), max_speed_errors.copy()))
        return [self.script.pop(0) for _ in observations]


def run(policy, num_steps, observations=AT_REST):
    return [policy.act(observations) for _ in range(num_steps)]


def make_policy(planner):
    return PlanningPolicy(planner, torch.Generator().manual_seed(0))


def test_one_plan_is_enough_without_replanning():
    planner = ScriptedPlanner(make_plan(4))
    policy = make_policy(planner)
    policy.reset(AT_REST, GOAL)
    run(policy, 60, observations=AT_REST + 3.0)
    assert policy.num_plans.tolist() == [1]
    np.testing.assert_array_equal(planner.asked[0][0], AT_REST)
    np.testing.assert_array_equal(planner.asked[0][1], GOAL)
    assert planner.asked[0][2].tolist() == [8.0]


def test_replanning_changes_over_only_to_a_consistent_plan_that_arrives_sooner():
    first = make_plan(20)  # 95 steps
    # At step 10, 85 steps remain: 17 plan steps are no sooner. At 20, 75: 14 are. At 30, 60: inconsistent.
    same, sooner, bold = make_plan(18), make_plan(15), make_plan(4, consistent=False)
    planner = ScriptedPlanner(first, same, sooner, bold, replan_interval=10)
    policy = make_policy(planner)
    policy.reset(AT_REST, GOAL)
    followed = []
    for _ in range(31):
        run(policy, 1)
        followed.append(policy.plans[0])
    assert all(plan is first for plan in followed[:20])
    assert all(plan is sooner for plan in followed[20:])
    assert policy.num_plans.tolist() == [4]


def test_replanning_ends_with_the_plan():
    planner = ScriptedPlanner(make_plan(3), *[make_plan(50)] * 2, replan_interval=4)  # 10 steps, asked at 4 and 8
    policy = make_policy(planner)
    policy.reset(AT_REST, GOAL)
    run(policy, 40)
    assert policy.num_plans.tolist() == [3]


def test_only_environments_still_under_way_are_replanned():
    planner = ScriptedPlanner(make_plan(2), make_plan(10), make_plan(3), replan_interval=10)
    policy = make_policy(planner)
    policy.reset(np.repeat(AT_REST, 2, axis=0), np.array([[1.0, 1.0], [2.0, 2.0]]))
    run(policy, 11, np.array([AT_REST[0], AT_REST[0] + 1]))
    assert policy.num_plans.tolist() == [1, 2]
    np.testing.assert_array_equal(planner.asked[1][0], AT_REST + 1)
    np.testing.assert_array_equal(planner.asked[1][1], [[2.0, 2.0]])
    assert [plan.horizon for plan in policy.plans] == [2, 3]


def test_deviation_makes_a_new_and_stricter_plan_even_if_it_is_later():
    longer, longest = make_plan(30), make_plan(40)
    planner = ScriptedPlanner(make_plan(4), longer, longest, max_deviation=0.5)
    policy = make_policy(planner)
    policy.reset(AT_REST, GOAL)
    away = AT_REST + np.array([0.6, 0, 0, 0])
    run(policy, MIN_STEPS_BETWEEN_PLANS, away)
    assert policy.num_plans.tolist() == [1]  # a new plan is given some time
    run(policy, 1, away)
    assert policy.plans[0] is longer
    np.testing.assert_array_equal(planner.asked[1][0], away)
    run(policy, MIN_STEPS_BETWEEN_PLANS, away)
    assert policy.plans[0] is longest
    limits = [limit.item() for _, _, limit in planner.asked]
    assert limits == pytest.approx([8.0, 8.0 * STRICTNESS_FACTOR, 8.0 * STRICTNESS_FACTOR**2])
    assert STRICTNESS_FACTOR < 1


def test_deviation_within_the_limit_is_tolerated():
    planner = ScriptedPlanner(make_plan(4), max_deviation=0.5)
    policy = make_policy(planner)
    policy.reset(AT_REST, GOAL)
    run(policy, 50, AT_REST + np.array([0.4, 0, 0, 0]))
    assert policy.num_plans.tolist() == [1]


def test_deviation_concerns_only_the_environment_that_deviates():
    planner = ScriptedPlanner(make_plan(4), make_plan(4), make_plan(9), max_deviation=0.5)
    policy = make_policy(planner)
    policy.reset(np.repeat(AT_REST, 2, axis=0), np.repeat(GOAL, 2, axis=0))
    run(policy, MIN_STEPS_BETWEEN_PLANS + 1, np.array([AT_REST[0], AT_REST[0] + 1]))
    assert policy.num_plans.tolist() == [1, 2]
    assert [plan.horizon for plan in policy.plans] == [4, 9]
    assert len(planner.asked[1][0]) == 1


def test_new_episode_forgets_the_one_before():
    planner = ScriptedPlanner(make_plan(4), make_plan(5), make_plan(6), max_deviation=0.5)
    policy = make_policy(planner)
    policy.reset(AT_REST, GOAL)
    run(policy, MIN_STEPS_BETWEEN_PLANS + 1, AT_REST + 1)
    policy.reset(AT_REST, GOAL)
    assert policy.num_plans.tolist() == [1]
    assert planner.asked[-1][2].tolist() == [8.0]
    assert policy.plans[0].horizon == 6


def test_actions_are_the_controllers_with_the_gains_of_the_settings():
    planner = ScriptedPlanner(make_plan(4, x=1.5), position_gain=0.8, velocity_gain=0.25)
    policy = make_policy(planner)
    policy.reset(AT_REST, GOAL)
    (action,) = run(policy, 1, np.array([[1.0, 1.0, 0.4, -0.4]]))
    np.testing.assert_allclose(action, [[0.8 * 0.5 - 0.25 * 0.4, 0.25 * 0.4]], rtol=1e-6)
    (action,) = run(policy, 1, np.array([[9.0, -9.0, 0.0, 0.0]]))
    np.testing.assert_array_equal(action, [[-1.0, 1.0]])


def test_policy_follows_from_its_generator():
    settings = replace(CONFIG.planning, replan_interval=5, max_deviation=0.2, num_candidates=2)
    observations = np.array([[1.0, 1.0, 0.0, 0.0], [3.0, 3.0, 1.0, 0.0]])
    goals = np.array([[3.0, 1.0], [1.0, 1.0]])

    def act(seed):
        policy = PlanningPolicy(make_untrained_planner(settings=settings), torch.Generator().manual_seed(seed))
        policy.reset(observations, goals)
        return np.stack(run(policy, 30, observations)), policy.num_plans

    (first, num_plans), (same, _), (other, _) = act(1), act(1), act(2)
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)
    assert (num_plans > 2).all()


def test_planning_time_is_counted_over_all_plans():
    planner = make_untrained_planner()
    policy = make_policy(planner)
    policy.reset(np.repeat(AT_REST, 3, axis=0), np.repeat(GOAL, 3, axis=0))
    assert policy.num_plans.tolist() == [1, 1, 1]
    assert 0 < policy.plan_seconds < 30

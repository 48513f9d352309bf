import numpy as np
import pytest
import torch
from straight_line_planner import CONFIG, make_untrained_planner

from diffplan.config import with_overrides
from diffplan.planning.constraints import Fixed
from diffplan.planning.control.policy import MAX_WAIT, PlanningPolicy
from diffplan.planning.control.replanning import MAX_WAIT_OF_PLANS, MIN_STEPS_BETWEEN_PLANS, STRICTNESS_FACTOR
from diffplan.tasks.contracts import Ask
from diffplan.types import Plan

AT_REST = np.array([[1.0, 1.0, 0.0, 0.0]])
GOAL = np.array([[4.0, 1.0]])


def make_plan(horizon, x=1.0, consistent=True):
    """A plan that rests at x, 1."""
    return Plan(np.tile(np.float32([x, 1, 0, 0]), (horizon, 1)), None, 5, 0.0, consistent)


SETTINGS = with_overrides(CONFIG.planning, {"replanning.max_deviation": 0.0, "horizon.max_speed_error": 8.0})


class ScriptedPlanner:
    """Hands out plans of a script, and keeps what it was asked for."""

    def __init__(self, *script, **settings):
        self.config = CONFIG
        self.inverse_dynamics = None
        self.settings = with_overrides(SETTINGS, settings)
        self.script = list(script)
        self.asked = []
        self.max_horizons = []

    def plan(self, observations, goals, generator, *, max_speed_errors):
        self.asked.append((observations.copy(), None if goals is None else goals.copy(), max_speed_errors.copy()))
        return [self.script.pop(0) for _ in observations]

    def plan_within(self, observations, goals, generator, max_horizons, *, max_speed_errors):
        self.max_horizons.append(max_horizons.tolist())
        return self.plan(observations, goals, generator, max_speed_errors=max_speed_errors)


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


@pytest.mark.parametrize("pace", [1.0, 1.25])
def test_replanning_changes_over_to_plans_that_arrive_sooner(pace):
    first, sooner = make_plan(20), make_plan(15)  # the first takes 95 / pace steps
    planner = ScriptedPlanner(first, None, sooner, None, **{"replanning.interval": 10, "controller.pace": pace})
    policy = make_policy(planner)
    policy.reset(AT_REST, GOAL)
    followed = []
    for _ in range(31):
        run(policy, 1)
        followed.append(policy.plans[0])
    assert all(plan is first for plan in followed[:20])
    assert all(plan is sooner for plan in followed[20:])
    assert policy.num_plans.tolist() == [4]
    counted = policy._controller.count_env_steps
    for (longest,), remaining in zip(
        planner.max_horizons, (95 / pace - 10, 95 / pace - 20, 70 / pace - 10), strict=True
    ):
        assert counted(make_plan(longest)) < remaining <= counted(make_plan(longest + 1))


def test_replanning_ends_with_the_plan():
    planner = ScriptedPlanner(make_plan(3), None, None, **{"replanning.interval": 4})  # 10 steps, asked at 4 and 8
    policy = make_policy(planner)
    policy.reset(AT_REST, GOAL)
    run(policy, 40)
    assert planner.max_horizons == [[2], [1]]


def test_only_environments_still_under_way_are_replanned():
    planner = ScriptedPlanner(make_plan(2), make_plan(10), make_plan(3), **{"replanning.interval": 10})
    policy = make_policy(planner)
    policy.reset(np.repeat(AT_REST, 2, axis=0), np.array([[1.0, 1.0], [2.0, 2.0]]))
    run(policy, 11, np.array([AT_REST[0], AT_REST[0] + 1]))
    assert policy.num_plans.tolist() == [1, 2]
    np.testing.assert_array_equal(planner.asked[1][0], AT_REST + 1)
    np.testing.assert_array_equal(planner.asked[1][1], [[2.0, 2.0]])
    assert [plan.horizon for plan in policy.plans] == [2, 3]


def test_deviation_makes_a_new_and_stricter_plan_even_if_it_is_later():
    longer, longest = make_plan(30), make_plan(40)
    planner = ScriptedPlanner(make_plan(4), longer, longest, **{"replanning.max_deviation": 0.5})
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


def make_way(horizon):
    """A plan along the first axis, a tenth in each of its steps of five."""
    xs = 1 + 0.1 * np.arange(horizon, dtype=np.float32)
    return Plan(np.stack([xs, np.ones(horizon), np.zeros(horizon), np.zeros(horizon)], 1), None, 5, 0.0, True)


def test_a_plan_waits_for_a_position_that_is_late_and_then_goes_on():
    planner = ScriptedPlanner(make_way(41), **{"controller.max_lag": 0.25})  # 200 steps
    policy = make_policy(planner)
    policy.reset(AT_REST, GOAL)
    run(policy, 13)  # until the plan is 0.26 ahead
    controller = policy._controller
    assert controller.elapsed_env_steps().tolist() == [13]
    run(policy, MAX_WAIT_OF_PLANS - 1)
    assert controller.elapsed_env_steps().tolist() == [13]
    run(policy, 5, AT_REST + np.array([0.2, 0, 0, 0]))
    assert controller.elapsed_env_steps().tolist() == [18]
    assert controller.waited_env_steps(np.arange(1)).tolist() == [0]
    assert policy.num_plans.tolist() == [1]


def test_a_plan_that_waits_for_long_is_given_up_for_a_stricter_one():
    planner = ScriptedPlanner(make_way(41), make_way(30), **{"controller.max_lag": 0.25})
    policy = make_policy(planner)
    policy.reset(AT_REST, GOAL)
    run(policy, 13 + MAX_WAIT_OF_PLANS)
    assert policy.num_plans.tolist() == [1]
    run(policy, 1)
    assert policy.num_plans.tolist() == [2]
    assert policy.plans[0].horizon == 30
    assert [limit.item() for _, _, limit in planner.asked] == pytest.approx([8.0, 8.0 * STRICTNESS_FACTOR])
    assert policy._controller.waited_env_steps(np.arange(1)).tolist() == [0]


def test_a_plan_waits_only_for_its_own_environment():
    planner = ScriptedPlanner(make_way(41), make_way(41), **{"controller.max_lag": 0.25})
    policy = make_policy(planner)
    policy.reset(np.repeat(AT_REST, 2, axis=0), np.repeat(GOAL, 2, axis=0))
    run(policy, 20, np.array([AT_REST[0], AT_REST[0] + np.array([0.2, 0, 0, 0])]))
    assert policy._controller.elapsed_env_steps().tolist() == [13, 20]


def test_deviation_within_the_limit_is_tolerated():
    planner = ScriptedPlanner(make_plan(4), **{"replanning.max_deviation": 0.5})
    policy = make_policy(planner)
    policy.reset(AT_REST, GOAL)
    run(policy, 50, AT_REST + np.array([0.4, 0, 0, 0]))
    assert policy.num_plans.tolist() == [1]


def test_deviation_concerns_only_the_environment_that_deviates():
    planner = ScriptedPlanner(make_plan(4), make_plan(4), make_plan(9), **{"replanning.max_deviation": 0.5})
    policy = make_policy(planner)
    policy.reset(np.repeat(AT_REST, 2, axis=0), np.repeat(GOAL, 2, axis=0))
    run(policy, MIN_STEPS_BETWEEN_PLANS + 1, np.array([AT_REST[0], AT_REST[0] + 1]))
    assert policy.num_plans.tolist() == [1, 2]
    assert [plan.horizon for plan in policy.plans] == [4, 9]
    assert len(planner.asked[1][0]) == 1


def test_new_episode_forgets_the_one_before():
    planner = ScriptedPlanner(make_plan(4), make_plan(5), make_plan(6), **{"replanning.max_deviation": 0.5})
    policy = make_policy(planner)
    policy.reset(AT_REST, GOAL)
    run(policy, MIN_STEPS_BETWEEN_PLANS + 1, AT_REST + 1)
    policy.reset(AT_REST, GOAL)
    assert policy.num_plans.tolist() == [1]
    assert planner.asked[-1][2].tolist() == [8.0]
    assert policy.plans[0].horizon == 6


def test_actions_are_the_controllers_with_the_gains_of_the_settings():
    planner = ScriptedPlanner(
        make_plan(4, x=1.5), **{"controller.position_gain": 0.8, "controller.velocity_gain": 0.25}
    )
    policy = make_policy(planner)
    policy.reset(AT_REST, GOAL)
    (action,) = run(policy, 1, np.array([[1.0, 1.0, 0.4, -0.4]]))
    np.testing.assert_allclose(action, [[0.8 * 0.5 - 0.25 * 0.4, 0.25 * 0.4]], rtol=1e-6)
    (action,) = run(policy, 1, np.array([[9.0, -9.0, 0.0, 0.0]]))
    np.testing.assert_array_equal(action, [[-1.0, 1.0]])


def test_policy_follows_from_its_generator():
    settings = with_overrides(
        CONFIG.planning, {"replanning.interval": 5, "replanning.max_deviation": 0.2, "selection.num_candidates": 2}
    )
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


def run_some(policy, num_steps, observations):
    """Run environments, each for its own number of steps; which were stepped in each call."""
    left, stepped = np.array(num_steps), []
    while (left > 0).any():
        ready, actions = policy.act_some(observations, left > 0)
        assert len(actions) == len(ready) > 0
        left[ready] -= 1
        stepped.append(ready.tolist())
    return stepped


def test_environments_that_need_a_plan_wait_for_others_that_do():
    first, second, recovered = make_plan(40), make_plan(40, x=3.0), [make_plan(41), make_plan(42, x=3.0)]
    planner = ScriptedPlanner(first, second, make_plan(40, x=5.0), *recovered, **{"replanning.max_deviation": 0.5})
    policy = make_policy(planner)
    policy.reset(np.repeat(AT_REST, 3, axis=0), np.repeat(GOAL, 3, axis=0))
    near, away = np.array([[1.0, 1, 0, 0], [3.0, 1, 0, 0], [5.0, 1, 0, 0]]), np.array([1.0, 0, 0, 0])
    assert all(ready.tolist() == [0, 1, 2] for ready, _ in (policy.act_some(near, np.ones(3, bool)) for _ in range(15)))
    near[0] += away
    for _ in range(20):
        ready, actions = policy.act_some(near, np.ones(3, dtype=bool))
        assert ready.tolist() == [1, 2]
        assert actions.shape == (2, 2)
    near[1] += away
    ready, _ = policy.act_some(near, np.ones(3, dtype=bool))
    assert ready.tolist() == [2]
    assert len(planner.asked) == 1
    ready, _ = policy.act_some(near, np.array([True, True, False]))  # nobody is left to wait for
    assert ready.tolist() == [0, 1]
    assert [len(asked[0]) for asked in planner.asked] == [3, 2]
    np.testing.assert_array_equal(planner.asked[1][0], near[:2])
    assert policy.plans[:2] == recovered
    assert policy.num_plans.tolist() == [2, 2, 1]


def test_nobody_waits_for_long():
    planner = ScriptedPlanner(make_plan(40), make_plan(40), make_plan(40), **{"replanning.max_deviation": 0.5})
    policy = make_policy(planner)
    policy.reset(np.repeat(AT_REST, 2, axis=0), np.repeat(GOAL, 2, axis=0))
    observations = np.array([AT_REST[0], AT_REST[0] + 1])
    stepped = run_some(policy, [300, MIN_STEPS_BETWEEN_PLANS + 1], observations)
    assert len(planner.asked) == 2
    assert stepped.index([0, 1], MIN_STEPS_BETWEEN_PLANS) == MIN_STEPS_BETWEEN_PLANS + MAX_WAIT


@pytest.mark.parametrize(
    "settings", [{"replanning.max_deviation": 0.2}, {"replanning.interval": 7}, {"replanning": "receding"}]
)
def test_an_environment_alone_acts_the_same_whether_it_may_wait_or_not(settings):
    base = with_overrides(CONFIG.planning, {"replanning.max_deviation": 0.3, "horizon.max_speed_error": 1e9})
    settings = with_overrides(base, {"replanning.interval": 10, **settings})
    actions = []
    for some in (True, False):
        policy = make_policy(make_untrained_planner(settings=settings))
        policy.reset(AT_REST, GOAL)
        if some:
            actions.append([policy.act_some(AT_REST, np.ones(1, dtype=bool))[1] for _ in range(40)])
        else:
            actions.append(run(policy, 40))
        assert policy.num_plans[0] > 2
    np.testing.assert_array_equal(*actions)


def test_each_plan_is_asked_for_what_its_stage_chooses():
    """Plans end at different times; each is made for what is asked of it then, with the settings' own guides."""
    asked = []

    class StagedPlanner(ScriptedPlanner):
        def plan(self, observations, goals, generator, *, max_speed_errors, constraints=(), guides=None):
            asked.append((observations[:, 0].tolist(), [c.values for c in constraints], goals.tolist(), guides))
            return [make_plan(3, x=x) for x in observations[:, 0]]

    def choose(observations, envs):
        return Ask(
            goals=np.stack([envs + 10.0, envs * 1.0], axis=1),
            constraints=(Fixed(10 * observations[:, :1], columns=(0,), step=1),),
            guides=("smoothness()",) if envs[0] else (),
        )

    planner = StagedPlanner(**{"replanning.kind": "receding", "replanning.interval": 2})
    policy = make_policy(planner)
    policy.ask(stage=choose)
    starts = np.array([[1.0, 1, 0, 0], [2.0, 1, 0, 0]])
    policy.reset(starts, np.repeat(GOAL, 2, axis=0))
    running = np.ones(2, dtype=bool)
    assert len(asked) == 1
    assert (asked[0][0], asked[0][1][0].tolist()) == ([1.0, 2.0], [[10.0], [20.0]])
    assert asked[0][2:] == ([[10.0, 0.0], [11.0, 1.0]], None)
    policy.act(starts)
    later = starts.copy()
    for _ in range(MAX_WAIT + 3):  # only the second environment goes on
        later[1, 0] = 7.0
        policy.act_some(later, running & [False, True])
    assert asked[1][0] == [7.0]
    assert asked[1][1][0].tolist() == [[70.0]]
    assert asked[1][3] == ["smoothness()"]

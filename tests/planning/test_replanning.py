"""Rules of replanning: when a new plan is made, what it starts from, and what is done at the end of one."""

import numpy as np
import pytest
import torch
from double_integrator import Cubics, accelerate
from straight_line_planner import CONFIG, NORMALIZER, make_untrained_planner
from test_planning_policy import AT_REST, GOAL, ScriptedPlanner, make_plan, make_policy, run
from toy_motion import CONFIG as TOY
from toy_motion import HORIZON, SHRINK, make_homing_planner, move

from diffplan.config import with_overrides
from diffplan.diffusion.denoiser import Denoiser
from diffplan.errors import PlanningError
from diffplan.layout import Layout
from diffplan.planning.constraints import Bounds, Fixed
from diffplan.planning.control.policy import PlanningPolicy
from diffplan.planning.planner import Planner
from diffplan.types import Plan

FROM_SCRATCH = {"replanning": "receding"}
WARM = {"replanning": "receding", "replanning.warm_start": 0.3}


def make_acting_plan(horizon, stride=1):
    """A plan whose actions count its steps, for observations of one column."""
    steps = np.arange(horizon, dtype=np.float32)[:, None]
    return Plan(np.zeros((horizon, 4), dtype=np.float32), np.repeat(steps, 2, axis=1) / 100, stride, 0.0, True)


class ScriptedReplanner(ScriptedPlanner):
    """Plans from warm starts by a script too."""

    def __init__(self, *script, warm=(), **settings):
        super().__init__(*script, **{**WARM, **settings})
        self.warm_script = list(warm)
        self.asked_warm = []

    def replan(self, previous, elapsed, observations, goals, generator, *, warm_start, max_speed_errors):
        self.asked_warm.append((list(previous), elapsed.tolist(), observations.copy(), goals, warm_start))
        return [self.warm_script.pop(0) for _ in observations]


def test_a_receding_horizon_is_planned_again_exactly_at_the_interval_and_always_followed():
    plans = [make_plan(20), make_plan(30), make_plan(25, consistent=False), make_plan(40)]
    planner = ScriptedPlanner(*plans, **{"replanning.interval": 7}, **FROM_SCRATCH)
    policy = make_policy(planner)
    policy.reset(AT_REST, GOAL)
    followed = []
    for _ in range(28):
        run(policy, 1)
        followed.append(policy.plans[0])
    assert [plan is plans[i // 7] for i, plan in enumerate(followed)] == [True] * 28
    assert policy.num_plans.tolist() == [4]
    assert all(limits.tolist() == [8.0] for *_, limits in planner.asked)


def test_an_interval_of_one_plans_at_every_step_and_acts_by_the_first_action():
    plans = [make_acting_plan(32) for _ in range(59)]
    planner = ScriptedPlanner(*plans, **{"replanning.interval": 1, "controller": "actions"}, **FROM_SCRATCH)
    policy = make_policy(planner)
    policy.reset(AT_REST)
    actions = np.concatenate(run(policy, 59))
    assert policy.num_plans.tolist() == [59]
    np.testing.assert_array_equal(actions, 0.0)


@pytest.mark.parametrize("stride", [1, 3])
def test_planned_actions_are_executed_to_the_last_and_then_a_new_plan_is_made(stride):
    planner = ScriptedPlanner(
        *(make_acting_plan(4, stride) for _ in range(3)), **{"replanning": "never", "controller": "actions"}
    )
    policy = make_policy(planner)
    policy.reset(AT_REST)
    actions = np.concatenate(run(policy, 3 * 4 * stride))
    np.testing.assert_allclose(actions[:, 0], np.tile(np.repeat(np.arange(4) / 100, stride), 3), rtol=1e-6)
    assert policy.num_plans.tolist() == [3]


@pytest.mark.parametrize("goals", [None, GOAL])
@pytest.mark.parametrize("rule", ["never", "sooner", "receding"])
def test_without_a_goal_the_end_of_a_plan_is_a_new_plan_and_with_one_its_end_is_held(rule, goals):
    planner = ScriptedPlanner(
        *(make_plan(3) for _ in range(9)),
        **{"replanning": rule} | ({} if rule == "never" else {"replanning.interval": 100}),
    )
    policy = make_policy(planner)
    policy.reset(AT_REST, goals)
    run(policy, 35)  # a plan takes 10 steps
    held = goals is not None and rule != "receding"
    assert policy.num_plans.tolist() == [1 if held else 4]


def test_where_nothing_arrives_no_sooner_plan_is_looked_for():
    planner = ScriptedPlanner(make_plan(20), **{"replanning.interval": 5})
    policy = make_policy(planner)
    policy.reset(AT_REST)
    run(policy, 50)
    assert planner.max_horizons == []
    assert policy.num_plans.tolist() == [1]


def test_a_warm_start_is_the_rest_of_the_present_plan():
    first, second, bold, last = make_plan(12), make_plan(10), make_plan(8, consistent=False), make_plan(7)
    planner = ScriptedReplanner(
        first, warm=[second, bold, last], **{"replanning.interval": 10, "replanning.warm_start": 0.4}
    )
    policy = make_policy(planner)
    policy.reset(AT_REST, GOAL)
    followed = []
    for _ in range(35):
        run(policy, 1)
        followed.append(policy.plans[0])
    assert [plan is [first, second, bold, last][i // 10] for i, plan in enumerate(followed)] == [True] * 35
    assert [elapsed for _, elapsed, *_ in planner.asked_warm] == [[10], [10], [10]]
    assert [previous[0] for previous, *_ in planner.asked_warm] == [first, second, bold]
    assert policy.num_plans.tolist() == [4]
    assert len(planner.asked) == 1
    for _, _, observations, goals, warm_start in planner.asked_warm:
        np.testing.assert_array_equal(observations, AT_REST)
        np.testing.assert_array_equal(goals, GOAL)
        assert warm_start == 0.4


def test_a_rest_that_is_too_short_to_start_from_is_followed_to_its_end_and_then_planned_from_scratch():
    planner = ScriptedReplanner(
        make_plan(2),
        make_plan(6),
        make_plan(2),
        make_plan(9),
        warm=[make_plan(5), make_plan(4)],
        **{"replanning.interval": 5},
    )
    policy = make_policy(planner)
    policy.reset(np.repeat(AT_REST, 2, axis=0), np.array([[1.0, 1.0], [2.0, 2.0]]))
    # The network holds plans of 2 steps, which take 5. The first plan ends at 5, where the second has 20 left.
    run(policy, 11, np.array([AT_REST[0], AT_REST[0] + 1]))
    assert [(elapsed, len(previous)) for previous, elapsed, *_ in planner.asked_warm] == [([5], 1), ([5], 1)]
    np.testing.assert_array_equal(planner.asked_warm[0][2], AT_REST + 1)
    assert [len(asked[0]) for asked in planner.asked] == [2, 1, 1]
    np.testing.assert_array_equal(planner.asked[1][0], AT_REST)
    assert [plan.horizon for plan in policy.plans] == [9, 4]
    assert policy.num_plans.tolist() == [3, 3]


def make_steering_planner(**settings):
    denoiser = Denoiser.make(Cubics(), CONFIG.diffusion)
    # The controller steers by speed alone, so that it makes up for no push.
    gains = {"controller.position_gain": 0.0, "controller.velocity_gain": 60.0}
    alone = {"replanning.max_deviation": 0.0, "horizon.min": 16, "horizon.max_speed_error": 50.0}
    return Planner(
        CONFIG,
        Layout(4),
        denoiser,
        NORMALIZER,
        with_overrides(with_overrides(CONFIG.planning, {**gains, **alone}), settings),
    )


def steer(planner, seed=0, num_env_steps=75):
    """Where the double integrator ends under a policy while it is pushed about, and the policy."""
    policy = PlanningPolicy(planner, torch.Generator().manual_seed(seed), -1000.0, 1000.0)
    observations = np.array([[1.0, 1.0, 0.0, 0.0], [3.0, 2.0, 0.5, 0.0], [0.5, 3.0, 0.0, -1.0]])
    goals = np.array([[3.0, 1.5], [1.0, 1.0], [2.0, 2.0]])
    policy.reset(observations, goals)
    for env_step in range(num_env_steps):
        observations = accelerate(observations, policy.act(observations).astype(np.float64))
        if env_step % 10 == 3 and env_step < 50:
            observations[:, :2] += [0.08, -0.06]
    return np.linalg.norm(observations[:, :2] - goals, axis=1), policy


def test_planning_again_makes_up_for_pushes():
    alone, policy = steer(make_steering_planner())
    assert policy.num_plans.tolist() == [1, 1, 1]
    assert (alone > 0.3).all()  # five pushes of 0.1
    warm, policy = steer(make_steering_planner(**{"replanning.interval": 10}, **WARM))
    assert policy.num_plans.min() > 4
    assert (warm < 0.1).all()
    # From scratch each plan takes the shortest horizon again, so it is still on the way, but no longer off it.
    again, policy = steer(make_steering_planner(**{"replanning.interval": 10}, **FROM_SCRATCH), num_env_steps=400)
    assert policy.num_plans.tolist() == [40] * 3
    assert (again < 0.1).all()


@pytest.mark.parametrize("rule", [FROM_SCRATCH, WARM])
def test_new_plans_follow_from_the_generator(rule):
    settings = {"replanning.interval": 10, "horizon.max_speed_error": 1e9, **rule}
    planner = make_untrained_planner(settings=with_overrides(CONFIG.planning, settings))
    observations, goals = np.repeat(AT_REST, 2, axis=0), np.array([[3.0, 1.0], [1.0, 3.0]])

    def act(seed):
        policy = PlanningPolicy(planner, torch.Generator().manual_seed(seed))
        policy.reset(observations, goals)
        return np.stack(run(policy, 15, observations)), policy

    (first, policy), (same, _), (other, _) = act(1), act(1), act(2)
    assert policy.num_plans.tolist() == [2, 2]
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


def go_home(starts, num_steps, pushes=None, some=False, **settings):
    """Where the toy system goes under a policy that is pushed about, float[steps + 1, num_envs, 2], and the policy."""
    planner = make_homing_planner(settings=with_overrides(TOY.planning, settings))
    policy = PlanningPolicy(planner, torch.Generator().manual_seed(0))
    rows = [np.array(starts, dtype=np.float64)]
    policy.reset(rows[0])
    for step in range(num_steps):
        after = rows[-1].copy()
        if some:
            done = np.zeros(len(after), dtype=bool)
            while not done.all():
                ready, actions = policy.act_some(rows[-1], ~done)
                after[ready] = move(rows[-1][ready], actions)
                done[ready] = True
        else:
            after = move(after, policy.act(after))
        rows.append(after if pushes is None else after + pushes[step])
    return np.stack(rows), policy


@pytest.mark.parametrize("settings", [{"replanning": "never"}, {"replanning.interval": 3, **FROM_SCRATCH}])
def test_a_goal_free_system_follows_its_plans_in_closed_form(settings):
    starts = np.array([[0.5, -0.25], [0.1, 0.9], [-1.0, 0.0]])
    rows, policy = go_home(starts, 2 * HORIZON, **settings)
    expected = starts[None] * SHRINK ** np.arange(2 * HORIZON + 1)[:, None, None]
    np.testing.assert_allclose(rows, expected, atol=1e-6)
    assert policy.num_plans.tolist() == [2 if settings["replanning"] == "never" else 6] * 3


def test_a_receding_horizon_makes_up_for_pushes_without_a_goal():
    pushes = np.random.default_rng(0).normal(0, 0.1, (40, 1, 2))
    start = np.array([[1.0, -1.0]])
    rows, _ = go_home(start, 40, pushes, **{"replanning.interval": 1}, **FROM_SCRATCH)
    expected = start[0]
    for row, push in zip(rows[1:, 0], pushes[:, 0], strict=True):
        expected = SHRINK * expected + push  # linear feedback
        np.testing.assert_allclose(row, expected, atol=1e-5)


@pytest.mark.parametrize("some", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"replanning": "never"},
        {"replanning.interval": 3, **FROM_SCRATCH},
        {"replanning.interval": 2, "sampling.temperature": 0.0, **WARM},
    ],
)
def test_environments_of_a_batch_do_not_depend_on_each_other(some, settings):
    starts = np.random.default_rng(1).uniform(-1, 1, (4, 2))
    pushes = np.random.default_rng(2).normal(0, 0.1, (20, 4, 2))
    together, _ = go_home(starts, 20, pushes, some, **settings)
    for i in range(4):
        alone, _ = go_home(starts[[i]], 20, pushes[:, [i]], some, **settings)
        np.testing.assert_allclose(together[:, [i]], alone, atol=1e-6)


def test_episodes_may_ask_for_what_holds_in_every_plan():
    planner = make_untrained_planner(
        settings=with_overrides(CONFIG.planning, {"replanning.interval": 4, **FROM_SCRATCH})
    )
    policy = PlanningPolicy(planner, torch.Generator().manual_seed(0))
    ends = np.array([[0.3, -0.2], [1.5, 0.4]], dtype=np.float32)
    policy.ask(constraints=[Fixed(ends, columns=(2, 3), step=-1), Bounds(0.5, 3.5)], guides=["mean(position[:, :, 0])"])
    observations, goals = np.repeat(AT_REST, 2, axis=0), np.array([[3.0, 1.0], [1.0, 3.0]])
    policy.reset(observations, goals)
    for _ in range(3):
        for plan, end, goal in zip(policy.plans, ends, goals, strict=True):
            np.testing.assert_array_equal(plan.observations[-1], [*goal, *end])
            assert plan.observations[1:, :2].min() >= 0.5
            assert plan.guide_score == pytest.approx(plan.observations[:, 0].mean(), rel=1e-4)
        run(policy, 4, observations)
    assert policy.num_plans.tolist() == [3, 3]
    policy.ask()
    policy.reset(observations, goals)
    assert all(plan.guide_score is None for plan in policy.plans)


@pytest.mark.parametrize("fixed", [Fixed([1.0, 1.0]), Fixed([1.0, 1.0], step=3), Fixed([1.0, 1.0], fraction=0.5)])
def test_a_time_from_now_is_not_asked_of_every_plan(fixed):
    policy = make_policy(make_untrained_planner())
    with pytest.raises(
        PlanningError, match=r"expected Bounds, Fixed at the last step .*, which hold in every"
    ) as caught:
        policy.ask(constraints=[fixed])
    assert "\n" not in str(caught.value)

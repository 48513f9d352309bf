"""Warm starts: plans from what is left of the plans before."""

from dataclasses import replace

import numpy as np
import pytest
from straight_line_planner import (
    CONFIG,
    STEP_SECONDS,
    Silent,
    make_silent_planner,
    make_straight_planner,
    make_untrained_planner,
    make_ways,
    seeded,
    stack,
)

from diffplan.config import with_overrides
from diffplan.diffusion.denoiser import Denoiser
from diffplan.errors import PlanningError
from diffplan.planning.constraints import Bounds, Fixed
from diffplan.planning.interpolation import interpolate
from diffplan.planning.planner import Planner
from diffplan.types import Plan

STRIDE = CONFIG.windows.stride
OBSERVATIONS = np.array([[1.1, 1.03, 0.3, -0.2], [3.07, 2.9, -1.0, 4.9], [0.9, 2.2, 0.0, 0.0]])
GOALS = np.array([[3.0, 1.1], [1.01, 0.97], [2.2, 3.3]])


def make_keeping_planner(**settings):
    """A planner whose model takes every plan, once scaled, for clean; without noise it keeps what it starts from."""
    return make_silent_planner("noise", **{"sampling.temperature": 0.0, **settings})


def make_curves(horizons, actions=False):
    """Plans along a parabola and a straight line, each with the velocities that belong to it."""
    plans = []
    for horizon in horizons:
        times = STEP_SECONDS * np.arange(horizon)
        columns = [1 + 2 * times, 2 - 3 * times**2, np.full(horizon, 2.0), -6 * times]
        planned = np.random.default_rng(horizon).uniform(-1, 1, (horizon, 2)) if actions else None
        plans.append(Plan(np.stack(columns, axis=1).astype(np.float32), planned, STRIDE, 0.0, True))
    return plans


def curve_at(seconds):
    seconds = np.asarray(seconds)
    return np.stack([1 + 2 * seconds, 2 - 3 * seconds**2, np.full(len(seconds), 2.0), -6 * seconds], axis=1)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm_solver"])
def test_plans_start_here_and_end_at_the_goal_when_they_were_to(sampler):
    settings = with_overrides(CONFIG.planning, {"sampling.sampler": sampler, "guidance.scale": 0.2})
    planner = make_untrained_planner(settings=settings)
    previous = planner.plan_horizon(OBSERVATIONS, GOALS, 12, seeded())
    elapsed = np.array([0, 10, 14])  # of 55 steps
    here = np.stack([interpolate(p, CONFIG.env, [e])[0] for p, e in zip(previous, elapsed, strict=True)]) + 0.05
    plans = planner.replan(previous, elapsed, here, GOALS, seeded(1))
    assert [plan.horizon for plan in plans] == [12, 10, 10]
    for plan, before, observation, goal, past in zip(plans, previous, here, GOALS, elapsed, strict=True):
        np.testing.assert_array_equal(plan.observations[0], observation.astype(np.float32))
        np.testing.assert_array_equal(plan.observations[-1, :2], goal.astype(np.float32))
        left = (before.horizon - 1) * STRIDE - past
        assert 0 <= (plan.horizon - 1) * STRIDE - left < STRIDE
        assert plan.stride == STRIDE


def test_what_is_left_of_a_plan_to_a_goal_is_where_its_replacement_starts_from():
    planner = make_keeping_planner()
    previous = make_curves([12, 9, 12])
    elapsed = np.array([10, 15, 13])
    goals = np.stack([plan.observations[-1, :2] for plan in previous])
    plans = planner.replan(previous, elapsed, np.tile([9.0, 9, 9, 9], (3, 1)), goals, seeded())
    assert [plan.horizon for plan in plans] == [10, 6, 10]
    for plan, before, past in zip(plans, previous, elapsed, strict=True):
        # From now to the same end, in as many steps as are left.
        times = np.linspace(past * 0.01, (before.horizon - 1) * STEP_SECONDS, plan.horizon)
        np.testing.assert_allclose(plan.observations[1:], curve_at(times)[1:], atol=1e-4)
        np.testing.assert_array_equal(plan.observations[0], [9, 9, 9, 9])


def test_a_plan_without_a_goal_keeps_its_horizon_and_shifts():
    planner = make_keeping_planner()
    previous = make_curves([12, 8])
    elapsed = np.array([10, 3])
    plans = planner.replan(previous, elapsed, np.tile([9.0, 9, 9, 9], (2, 1)), None, seeded())
    assert [plan.horizon for plan in plans] == [12, 8]
    for plan, before, past in zip(plans, previous, elapsed, strict=True):
        end = (before.horizon - 1) * STEP_SECONDS
        times = np.minimum(past * 0.01 + STEP_SECONDS * np.arange(plan.horizon), end)
        np.testing.assert_allclose(plan.observations[1:], curve_at(times)[1:], atol=1e-4)


def test_planned_actions_shift_with_the_plan():
    config = with_overrides(CONFIG, {"windows.columns": "actions_observations"})
    plain = make_untrained_planner(config, action_dim=2)
    settings = with_overrides(CONFIG.planning, {"sampling.temperature": 0.0})
    denoiser = Denoiser.make(Silent(), replace(CONFIG.diffusion, prediction="noise"))
    planner = Planner(config, plain.model.layout, denoiser, plain.model.normalizer, settings)
    (before,) = make_curves([12], actions=True)
    (plan,) = planner.replan([before], np.array([10]), before.observations[2:3], None, seeded())
    np.testing.assert_allclose(plan.actions[:10], before.actions[2:], atol=1e-5)
    np.testing.assert_allclose(plan.actions[10:], before.actions[[-1, -1]], atol=1e-5)


@pytest.mark.parametrize(
    ("warm_start", "num_sampling_steps", "expected"),
    [
        (0.5, 4, [3, 0]),  # of 8 diffusion steps, from 0
        (1.0, 3, [7, 4, 0]),
        (0.3, 8, [1, 0]),
        (0.01, 4, [0]),  # one at least
        (0.25, 2, [1]),
        (1.0, 8, [7, 6, 5, 4, 3, 2, 1, 0]),
    ],
)
def test_a_warm_start_takes_the_same_share_of_noise_and_of_denoising_steps(warm_start, num_sampling_steps, expected):
    planner, network = make_straight_planner(**{"sampling.num_steps": num_sampling_steps})
    previous = planner.plan(*make_ways([12]), seeded())
    network.steps.clear()
    now, goal = previous[0].observations[1:2], make_ways([12])[1]
    planner.replan(previous, np.array([5]), now, goal, seeded(), warm_start=warm_start)
    assert network.steps == expected


def test_more_noise_forgets_more_of_the_plan_before():
    def distance(warm_start):
        planner = make_keeping_planner(**{"sampling.temperature": 1.0})
        previous = make_curves([12] * 16)
        here = stack(previous)[:, 0]
        goals = stack(previous)[:, -1, :2]
        plans = planner.replan(previous, np.zeros(16, int), here, goals, seeded(), warm_start=warm_start)
        return np.abs(stack(plans) - stack(previous)).mean()

    assert 0.01 < distance(0.2) < distance(0.6) < distance(1.0)


def test_plans_of_several_lengths_are_those_made_alone():
    settings = with_overrides(CONFIG.planning, {"sampling.temperature": 0.0})
    planner = make_untrained_planner(settings=settings)
    previous = planner.plan_horizon(OBSERVATIONS, GOALS, 16, seeded())
    elapsed = np.array([40, 0, 21])
    plans = planner.replan(previous, elapsed, OBSERVATIONS, GOALS, seeded(), warm_start=0.8)
    assert [plan.horizon for plan in plans] == [8, 16, 12]
    for i, plan in enumerate(plans):
        part = slice(i, i + 1)
        (alone,) = planner.replan(
            previous[part], elapsed[part], OBSERVATIONS[part], GOALS[part], seeded(), warm_start=0.8
        )
        np.testing.assert_allclose(plan.observations, alone.observations, atol=1e-4)


def test_no_plan_gets_shorter_than_the_network_can_hold():
    planner = make_untrained_planner()  # holds plans of 2 steps
    previous = planner.plan_horizon(OBSERVATIONS, GOALS, 8, seeded())
    plans = planner.replan(previous, np.array([33, 35, 900]), OBSERVATIONS, GOALS, seeded())
    assert [plan.horizon for plan in plans] == [2, 2, 2]
    for plan, goal in zip(plans, GOALS, strict=True):
        np.testing.assert_array_equal(plan.observations[-1, :2], goal.astype(np.float32))


def test_constraints_guides_and_limits_hold_as_in_plans_from_noise():
    planner = make_untrained_planner()
    previous = planner.plan_horizon(OBSERVATIONS, GOALS, 12, seeded())
    constraints = [Fixed([2.0, 1.5], step=3), Fixed([0.0, 0.0], columns=(2, 3), step=-1), Bounds(0.5, 3.5)]
    asked = {"constraints": constraints, "guides": ["mean(position[:, :, 0])"]}
    limits = np.array([0.0, 1e9, 1e9])
    plans = planner.replan(previous, np.full(3, 10), OBSERVATIONS, GOALS, seeded(), max_speed_errors=limits, **asked)
    for plan in plans:
        np.testing.assert_array_equal(plan.observations[3, :2], np.float32([2.0, 1.5]))
        np.testing.assert_array_equal(plan.observations[-1, 2:], [0, 0])
        assert plan.observations[1:, :2].min() >= 0.5
        assert plan.observations[1:, :2].max() <= 3.5
        assert plan.guide_score == pytest.approx(plan.observations[:, 0].mean(), rel=1e-4)
    assert [plan.consistent for plan in plans] == [False, True, True]


def test_replacements_follow_from_the_generator():
    planner = make_untrained_planner()
    previous = planner.plan_horizon(OBSERVATIONS, GOALS, 12, seeded())
    first, same, other = (
        stack(planner.replan(previous, np.full(3, 5), OBSERVATIONS, GOALS, seeded(s))) for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"previous": 2}, "expected 3 plans and elapsed steps, one for each observation, got 2 and 3"),
        ({"elapsed": np.zeros(1, int)}, "got 3 and 1"),
        ({"elapsed": np.array([0, -1, 5])}, "elapsed"),
        ({"observations": OBSERVATIONS[:, :3]}, r"observations: expected shape \(batch, 4\)"),
        ({"observations": OBSERVATIONS * np.nan}, "expected finite numbers"),
        ({"goals": GOALS[:2]}, r"goals: expected shape \(3, 2\)"),
        ({"warm_start": 0.0}, r"warm_start: expected a share of the noise in \(0, 1\], got 0.0"),
        ({"constraints": [Fixed([1.0, 1.0], step=11)]}, "expected a time within the plan"),  # 11 steps are left
        ({"constraints": [Fixed([1.0, 1.0])]}, r"expected a time \(step, seconds or fraction\)"),
        ({"constraints": [Bounds(5.0, 6.0)]}, "is fixed outside its bounds"),
    ],
)
def test_what_cannot_be_planned_again_is_refused_in_one_line(change, message):
    planner = make_untrained_planner()
    previous = planner.plan_horizon(OBSERVATIONS, GOALS, 12, seeded())[: change.get("previous", 3)]
    with pytest.raises(PlanningError, match=message) as caught:
        planner.replan(
            previous,
            change.get("elapsed", np.full(3, 5)),
            change.get("observations", OBSERVATIONS),
            change.get("goals", GOALS),
            seeded(),
            constraints=change.get("constraints", ()),
            warm_start=change.get("warm_start", 0.3),
        )
    assert "\n" not in str(caught.value)

"""What is fixed and bounded in a plan, in environment units."""

import numpy as np
import pytest
from straight_line_planner import CONFIG, NORMALIZER, STEP_SECONDS, make_untrained_planner, seeded, stack

from diffplan.config import with_overrides
from diffplan.data.format.statistics import compute_statistics
from diffplan.data.windows.normalization import Normalizer
from diffplan.errors import PlanningError
from diffplan.planning.constraints import Bounds, Fixed
from diffplan.planning.planner import Planner

OBSERVATIONS = np.array([[1.1, 1.03, 0.3, -0.2], [3.07, 2.9, -1.0, 4.9], [0.9, 2.2, 0.0, 0.0]])
GOALS = np.array([[3.0, 1.1], [1.01, 0.97], [2.2, 3.3]])
POINT, POINTS = [1.7, 0.9], np.array([[1.7, 0.9], [0.1, 0.2], [2.3, 3.1]])
SHORT_AND_LONG = np.array([np.inf, 0.0, np.inf])
"""Limits that any plan and that no plan keeps, so that a batch has different horizons."""


def make_planner(**settings):
    return make_untrained_planner(settings=with_overrides(CONFIG.planning, settings))


def make_quantile_planner(**settings):
    generator = np.random.default_rng(0)
    data = np.hstack([generator.gamma(2.0, 0.7, (4000, 2)), generator.normal(0, 2, (4000, 2)).round()])
    plain = make_untrained_planner()
    normalizer = Normalizer.fit([compute_statistics(data)], "quantile")
    return Planner(
        CONFIG, plain.model.layout, plain.model.denoiser, normalizer, with_overrides(CONFIG.planning, settings)
    )


def assert_refused(planner, constraints, message, observations=OBSERVATIONS, goals=GOALS, **asked):
    with pytest.raises(PlanningError, match=message) as caught:
        planner.plan(observations, goals, seeded(), constraints=constraints, **asked)
    assert "\n" not in str(caught.value)


# What is fixed, and its step in plans of horizon 12 and of 16.
TIMED = [
    (Fixed(POINT, step=5), 5, 5),
    (Fixed(POINT, step=-3), 9, 13),
    (Fixed(POINT, seconds=0.35), 7, 7),
    (Fixed(POINT, seconds=0.36), 7, 7),
    (Fixed(POINT, fraction=0.5), 6, 8),  # 5.5 is rounded to even
    (Fixed(POINT, fraction=0.3), 3, 4),
]


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm_solver"])
@pytest.mark.parametrize("guidance_scale", [0.0, 1.0])
@pytest.mark.parametrize("bounds", [(), (Bounds(0.0, 3.5), Bounds(-5.0, 5.0, columns=(2, 3)))])
@pytest.mark.parametrize("mixed", [False, True])
def test_fixed_values_are_in_the_plans_to_the_last_bit(sampler, guidance_scale, bounds, mixed):
    planner = make_planner(
        **{"sampling.sampler": sampler, "guidance.scale": guidance_scale, "selection.num_candidates": 2}
    )
    velocity = Fixed([0.7, -0.3], columns=(3, 2), step=-1)
    ages = Fixed(POINTS[:, :1], columns=(1,), step=2)
    for fixed, step, late_step in TIMED:
        constraints = [fixed, velocity, ages, *bounds]
        asked = {"max_speed_errors": SHORT_AND_LONG, "horizons": (12, 16)} if mixed else {"horizons": (12,)}
        plans = planner.plan(OBSERVATIONS, GOALS, seeded(), constraints=constraints, **asked)
        assert [plan.horizon for plan in plans] == ([12, 16, 12] if mixed else [12, 12, 12])
        for i, plan in enumerate(plans):
            np.testing.assert_array_equal(plan.observations[0], OBSERVATIONS[i].astype(np.float32))
            np.testing.assert_array_equal(plan.observations[-1, :2], GOALS[i].astype(np.float32))
            at = step if plan.horizon == 12 else late_step
            np.testing.assert_array_equal(plan.observations[at, :2], np.float32(POINT))
            np.testing.assert_array_equal(plan.observations[-1, [3, 2]], np.float32([0.7, -0.3]))
            assert plan.observations[2, 1] == np.float32(POINTS[i, 0])
            others = np.delete(plan.observations, [0, 2, at, plan.horizon - 1], axis=0)
            assert not (others[:, :2] == np.float32(POINT)).any()


def test_values_and_fractions_may_differ_between_environments():
    planner = make_planner()
    fixed = Fixed(POINTS, fraction=np.array([0.2, 0.5, 0.8]))
    plans = planner.plan(OBSERVATIONS, GOALS, seeded(), constraints=[fixed], horizons=(11,), num_candidates=3)
    for plan, point, step in zip(plans, POINTS, (2, 5, 8), strict=True):
        np.testing.assert_array_equal(plan.observations[step, :2], point.astype(np.float32))


def test_values_belong_to_their_environments_however_many_still_wait_for_a_plan():
    generator = np.random.default_rng(0)
    observations, goals, points = (generator.uniform(0.5, 3.5, (20, n)).astype(np.float32) for n in (4, 2, 2))
    # So many are not drawn with several horizons at once, and every other one is content with the first.
    limits = np.where(np.arange(20) % 2, np.inf, 0.0)
    constraints = [Fixed(points, fraction=np.linspace(0.3, 0.7, 20))]
    plans = make_planner().plan(observations, goals, seeded(), constraints=constraints, max_speed_errors=limits)
    assert [plan.horizon for plan in plans] == [16, 4] * 10
    for plan, point, fraction in zip(plans, points, np.linspace(0.3, 0.7, 20), strict=True):
        np.testing.assert_array_equal(plan.observations[round(fraction * (plan.horizon - 1)), :2], point)


@pytest.mark.parametrize(("columns", "goals"), [((2, 3), GOALS), ((0, 1), None)])
def test_the_sampler_knows_what_is_fixed(columns, goals):
    fixed = Fixed(POINT, columns=columns, step=5)
    planner = make_planner()
    with_it = planner.plan_horizon(OBSERVATIONS, goals, 12, seeded(), constraints=[fixed], keep_denoising=True)
    without = planner.plan_horizon(OBSERVATIONS, goals, 12, seeded())
    for plan, plain in zip(with_it, without, strict=True):
        np.testing.assert_allclose(plan.denoising[:, 5, list(columns)], np.tile(POINT, (3, 1)), atol=1e-5)
        assert (plan.observations[4] != plain.observations[4]).all()  # the neighbours are told


def test_fixed_values_need_no_goal():
    (plan,) = make_planner().plan(OBSERVATIONS[:1], None, seeded(), constraints=[Fixed(POINT, step=-1)])
    np.testing.assert_array_equal(plan.observations[-1, :2], np.float32(POINT))


def test_planned_actions_leave_fixed_columns_where_they_are():
    config = with_overrides(CONFIG, {"windows.columns": "actions_observations", "planning.horizon.min": 8})
    planner = make_untrained_planner(config, action_dim=2)
    constraints = [Fixed(POINT, step=3), Bounds(-1.0, 1.0, columns=(2,))]
    (plan,) = planner.plan(OBSERVATIONS[:1], GOALS[:1], seeded(), constraints=constraints)
    np.testing.assert_array_equal(plan.observations[3, :2], np.float32(POINT))
    assert np.abs(plan.observations[1:, 2]).max() <= 1


@pytest.mark.parametrize(
    ("fixed", "shortest"),
    [
        (Fixed(POINT, step=6), 8),
        (Fixed(POINT, step=7), 12),  # at the end of 8 steps is the goal
        (Fixed(POINT, step=8), 12),
        (Fixed(POINT, seconds=8 * STEP_SECONDS), 12),
        (Fixed(POINT, step=-8), 12),  # the first of 8 steps is the present
        (Fixed(POINT, step=-9), 12),
        (Fixed(POINT, step=14), 16),
        (Fixed(POINT, fraction=0.9), 8),  # rounded to the end of 4 steps
        (Fixed(POINT, columns=(2, 3), step=7), 8),
    ],
)
def test_horizons_that_do_not_reach_what_is_fixed_are_not_tried(fixed, shortest):
    plans = make_planner(**{"horizon.max_speed_error": 1e9}).plan(OBSERVATIONS, GOALS, seeded(), constraints=[fixed])
    assert [plan.horizon for plan in plans] == [shortest] * 3


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ([Fixed(POINT, step=15)], "step 15 was fixed before to other values"),
        ([Fixed(POINT, step=16)], "expected a time within the plan, got step 16 of a plan of horizon 16 at most"),
        ([Fixed(POINT, step=-17)], "expected a time within the plan"),
        ([Fixed(POINT, seconds=0.8)], "expected a time within the plan, got step 16"),
        ([Fixed([1.0], columns=(4,), step=1)], r"expected distinct observation columns from 0 to 3, got \(4,\)"),
        ([Fixed([1.0], columns=(-1,), step=1)], r"got \(-1,\)"),
        ([Fixed(POINT, columns=(0, 0), step=1)], r"got \(0, 0\)"),
        ([Fixed([], columns=(), step=1)], r"got \(\)"),
        ([Fixed([1.0], step=1)], r"expected values of shape \(2,\) or \(3, 2\), got \(1,\)"),
        ([Fixed(POINTS[:2], step=1)], r"got \(2, 2\)"),
        ([Fixed(1.0, step=1)], r"got \(\)"),
        ([Fixed("ab", step=1)], "expected numbers, as many in each environment"),
        ([Fixed([[1.0, 2.0], [1.0], [1.0]], step=1)], "expected numbers, as many in each environment"),
        ([Fixed([np.nan, 1.0], step=1)], "expected finite numbers, got NaN or infinity"),
        ([Fixed([np.inf, 1.0], step=1)], "expected finite numbers, got NaN or infinity"),
        ([Fixed(POINT, fraction=np.array([0.1, 0.2]))], r"one fraction or 3 of them, got shape \(2,\)"),
        ([Fixed(POINT, step=3), Fixed([1.7, 1.0], step=3)], "step 3 was fixed before to other values"),
        ([Fixed(POINT, step=3), Fixed([1.7, 1.0], seconds=0.15)], "step 3 was fixed before to other values"),
        ([Fixed(OBSERVATIONS[:, :2] + 1, step=0)], "step 0 was fixed before to other values"),
        ([Fixed(GOALS + 1, step=-1)], "was fixed before to other values"),
        ([POINT], "constraints: expected Fixed and Bounds, got list"),
    ],
)
def test_what_cannot_be_fixed_is_refused_in_one_line(fixed, message):
    assert_refused(make_planner(), fixed, message)


def test_times_beyond_the_given_horizons_are_refused():
    assert_refused(make_planner(), [Fixed(POINT, step=8)], "got step 8 of a plan of horizon 8 at most", horizons=(8,))


def test_horizons_in_which_two_values_meet_are_not_tried():
    constraints = [Fixed(POINT, step=6), Fixed([0.0, 0.0], step=-6)]
    planner = make_planner(**{"horizon.max_speed_error": 1e9})
    plans = planner.plan(OBSERVATIONS, GOALS, seeded(), constraints=constraints, horizons=(12, 16))
    assert [plan.horizon for plan in plans] == [16] * 3
    assert_refused(planner, constraints, "step 6 was fixed before to other values", horizons=(12,))


def test_the_same_may_be_said_twice():
    constraints = [
        Fixed(OBSERVATIONS[:, :2], step=0),
        Fixed(GOALS, step=-1),
        Fixed(POINT, columns=(2, 3), step=4),
        Fixed(POINT, columns=(2, 3), seconds=0.2),
    ]
    plain = make_planner().plan_horizon(OBSERVATIONS, GOALS, 12, seeded(), constraints=constraints[2:3])
    twice = make_planner().plan_horizon(OBSERVATIONS, GOALS, 12, seeded(), constraints=constraints)
    np.testing.assert_array_equal(stack(plain), stack(twice))


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ({"step": 1, "seconds": 0.1}, "at most one of step, seconds and fraction"),
        ({"step": 0, "fraction": 0.0}, "at most one of step, seconds and fraction"),
        ({"seconds": 0.1, "fraction": np.array([0.1, 0.2])}, "at most one of step, seconds and fraction"),
        ({"step": 2.5}, r"expected a whole number as step, got 2\.5"),
        ({"fraction": 1.01}, "expected a fraction from 0 to 1"),
        ({"fraction": np.array([0.5, -0.1])}, "expected a fraction from 0 to 1"),
        ({"fraction": np.nan}, "expected a fraction from 0 to 1"),
        ({"seconds": -0.1}, "expected seconds >= 0"),
        ({"seconds": np.nan}, "expected seconds >= 0"),
        ({"seconds": np.inf}, "expected seconds >= 0"),
    ],
)
def test_times_that_are_none_are_refused(when, message):
    with pytest.raises(PlanningError, match=message) as caught:
        Fixed(POINT, **when)
    assert "\n" not in str(caught.value)


LOW, HIGH = np.float32(1.6), np.float32(2.9)


@pytest.mark.parametrize("make", [make_planner, make_quantile_planner])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm_solver"])
@pytest.mark.parametrize("mixed", [False, True])
def test_bounds_hold_from_their_first_step_on(make, sampler, mixed):
    planner = make(**{"sampling.sampler": sampler, "selection.num_candidates": 2, "guidance.scale": 0.3})
    # The first environment begins outside of its bounds.
    observations = np.where(np.arange(3)[:, None] == 0, [[0.1, 3.9, 0.0, 0.0]], OBSERVATIONS)
    goals = np.clip(GOALS, 1.7, 2.8)
    bounds = [Bounds(1.6, 2.9), Bounds([-0.5, -np.inf], [np.inf, 0.25], columns=(2, 3), first_step=3)]
    asked = {"horizons": (8, 12), "max_speed_errors": SHORT_AND_LONG} if mixed else {"horizons": (12,)}
    free = planner.plan(observations, goals, seeded(), **asked)
    kept = planner.plan(observations, goals, seeded(), constraints=bounds, keep_denoising=True, **asked)
    assert [plan.horizon for plan in kept] == ([8, 12, 8] if mixed else [12, 12, 12])

    def violations(plan):
        positions, velocities = plan.observations[1:, :2], plan.observations[3:, 2:]
        outside = (positions < LOW).any(), (positions > HIGH).any()
        return [*outside, (velocities[:, 0] < -0.5).any(), (velocities[:, 1] > 0.25).any()]

    assert np.array([violations(plan) for plan in free]).any(axis=0).all()
    assert not np.array([violations(plan) for plan in kept]).any()
    assert any((plan.observations[1:3, 3] > 0.25).any() for plan in kept)  # before its first step
    for plan, observation, goal in zip(kept, observations, goals, strict=True):
        np.testing.assert_array_equal(plan.observations[0], observation.astype(np.float32))
        np.testing.assert_array_equal(plan.observations[-1, :2], goal.astype(np.float32))
        # The sampler kept them too, before they were written over rounding.
        assert plan.denoising[-1, 1:, :2].min() > 1.6 - 1e-3
        assert plan.denoising[-1, 1:, :2].max() < 2.9 + 1e-3


def test_bounds_are_exact_where_normalising_and_back_loses_bits():
    candidates = np.random.default_rng(0).uniform(1.0, 2.0, 2000).astype(np.float32)
    there_and_back = NORMALIZER.unnormalize(NORMALIZER.normalize(np.tile(candidates[:, None], (1, 4))))[:, 1]
    highs = candidates[there_and_back > candidates][:20]
    assert len(highs) == 20
    planner, rest = make_planner(), np.array([[1.0, 1.0, 0.0, 0.0]])
    for high in highs:
        asked = {"constraints": [Bounds(high=float(high), columns=(1,))], "horizons": (12,)}
        (plan,) = planner.plan(rest, None, seeded(), **asked)
        assert plan.observations[1:, 1].max() == high  # as far as it may
    plans = planner.plan(rest, None, seeded(), horizons=(12,))
    assert plans[0].observations[1:, 1].max() > highs.max()


def test_bounds_end_with_their_last_step():
    bounds = Bounds(-0.1, 0.1, columns=(2,), first_step=2, last_step=4)
    plans = stack(make_planner().plan_horizon(OBSERVATIONS, GOALS, 12, seeded(), constraints=[bounds]))
    assert np.abs(plans[:, 2:5, 2]).max() <= np.float32(0.1)
    assert (np.abs(plans[:, 1, 2]) > 0.1).any()
    assert (np.abs(plans[:, 5:, 2]) > 0.1).any()


def test_infinite_bounds_change_nothing():
    planner = make_planner()
    free = planner.plan_horizon(OBSERVATIONS, GOALS, 12, seeded())
    bounded = planner.plan_horizon(
        OBSERVATIONS, GOALS, 12, seeded(), constraints=[Bounds(), Bounds(-np.inf, [9e9] * 2)]
    )
    np.testing.assert_array_equal(stack(free), stack(bounded))


def test_bounds_hold_without_a_goal():
    plans = make_planner().plan(OBSERVATIONS, None, seeded(), constraints=[Bounds(1.0, 2.0)])
    for plan in plans:
        assert plan.observations[1:, :2].min() >= 1
        assert plan.observations[1:, :2].max() <= 2


def test_bounds_admit_what_lies_on_them():
    observations = np.array([[1.0, 1.0, 0.0, 0.0]])
    goal = np.array([[NORMALIZER.center[0] + 0.1, 3.3]], dtype=np.float32)
    for make in (make_planner, make_quantile_planner):
        constraints = [Bounds(-np.inf, [float(goal[0, 0]), 3.3]), Bounds(-np.inf, 0.0, columns=(2,), last_step=3)]
        constraints.append(Fixed([0.0], columns=(2,), step=3))
        (plan,) = make().plan(observations, goal, seeded(), constraints=constraints, horizons=(8,))
        np.testing.assert_array_equal(plan.observations[-1, :2], goal[0])


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        ([Bounds(0.0, 2.5)], "is fixed outside its bounds"),  # the first goal is at 3.0
        ([Bounds(0.0, 4.0), Fixed([5.0, 1.0], step=2)], "column 0 of step 2 is fixed outside its bounds"),
        ([Bounds(0.0, 1.0, columns=(3,)), Bounds(2.0, 3.0, columns=(3,))], "no value of column 3 is within the bounds"),
        ([Bounds(2.0, 1.0)], "expected low <= high"),
        ([Bounds([0.0, 2.0], [1.0, 1.0])], "expected low <= high"),
        ([Bounds(np.inf, np.inf, columns=(2,))], "expected bounds that some number keeps"),
        ([Bounds([0.0, -np.inf], [1.0, -np.inf])], "expected bounds that some number keeps"),
        ([Bounds(np.nan, 1.0)], "expected numbers as low, got NaN"),
        ([Bounds(0.0, [1.0, np.nan])], "expected numbers as high, got NaN"),
        ([Bounds([0.0, 0.0, 0.0])], "expected low for 2 columns"),
        ([Bounds(high=np.ones((3, 2)))], "expected high for 2 columns"),
        ([Bounds(0.0, columns=(7,))], r"expected distinct observation columns from 0 to 3, got \(7,\)"),
    ],
)
def test_bounds_that_cannot_be_kept_are_refused_in_one_line(constraints, message):
    assert_refused(make_planner(), constraints, message)


@pytest.mark.parametrize("steps", [{"first_step": 0}, {"first_step": 3, "last_step": 2}])
def test_bounds_of_no_steps_are_refused(steps):
    with pytest.raises(PlanningError, match="expected 1 <= first_step <= last_step"):
        Bounds(0.0, 1.0, **steps)

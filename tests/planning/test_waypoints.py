"""Way-points that say no time."""

from dataclasses import replace

import numpy as np
import pytest
from straight_line_planner import (
    CONFIG,
    distance_of,
    make_straight_planner,
    make_untrained_planner,
    seeded,
)

from diffplan.errors import PlanningError
from diffplan.planning.problem import Bounds, Fixed

AT_REST = np.array([1.0, 2.0, 0.0, 0.0])
SPEED = 2.0


def along(*horizons):
    """Positions along the first axis, each as far from the one before as a plan of a horizon comes at full speed."""
    ways = np.cumsum([distance_of(horizon, SPEED) for horizon in horizons])
    return np.stack([1.0 + ways, np.full(len(ways), 2.0)], axis=1)


def test_way_points_are_passed_when_their_legs_alone_would_be():
    # Plans from rest that need at most 2 units per second are consistent.
    planner, _ = make_straight_planner(max_speed_error=SPEED + 1e-3, horizon_multiple=1)
    first, second = along(4, 8), along(12, 4)
    observations, goals = np.tile(AT_REST, (2, 1)), np.stack([first[1], second[1]])
    plans = planner.plan(observations, goals, seeded(), constraints=[Fixed(np.stack([first[0], second[0]]))])
    assert [plan.horizon for plan in plans] == [3 + 7 + 1, 11 + 3 + 1]
    assert all(plan.consistent for plan in plans)
    for plan, points, step in zip(plans, (first, second), (3, 11), strict=True):
        np.testing.assert_array_equal(plan.observations[step, :2], points[0].astype(np.float32))
        np.testing.assert_array_equal(plan.observations[-1, :2], points[1].astype(np.float32))


def test_longer_horizons_are_tried_where_the_legs_together_are_not_enough():
    # The network goes straight to the goal, so that a way-point off the line costs speed.
    planner, _ = make_straight_planner(max_speed_error=SPEED + 1e-3)
    points = along(8, 8)
    points[0, 1] += 0.2
    (plan,) = planner.plan(AT_REST[None], points[1:], seeded(), constraints=[Fixed(points[0])])
    assert plan.horizon > 15
    assert (plan.observations[:, :2] == points[0].astype(np.float32)).all(axis=1).any()


def test_their_horizons_are_on_the_grid_of_the_settings():
    planner, network = make_straight_planner(max_speed_error=SPEED + 1e-3)
    points = along(8, 12, 16)
    (plan,) = planner.plan(AT_REST[None], points[2:], seeded(), constraints=[Fixed(p) for p in points[:2]])
    assert plan.horizon >= 7 + 11 + 15 + 1  # longer than any that is tried without way-points
    assert {horizon % 4 for batch in network.batches for horizon in batch} == {0}


def find(plan, point):
    """The step at which a plan is exactly at a point."""
    (steps,) = np.nonzero((plan.observations[:, :2] == np.float32(point)).all(axis=1))
    assert len(steps) == 1
    return int(steps[0])


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_several_way_points_are_passed_exactly_and_in_order(sampler):
    settings = replace(CONFIG.planning, sampler=sampler, num_candidates=2, guidance_scale=0.2)
    generator = np.random.default_rng(0)
    observations, goals = generator.uniform(0, 4, (5, 4)), generator.uniform(0, 4, (5, 2))
    points = [generator.uniform(0, 4, (5, 2)), [2.1, 1.3], generator.uniform(0, 4, (5, 2))]
    # A speed for the end, and bounds, hold besides.
    others = [Fixed([0.5, 0.25], columns=(2, 3), step=-1), Bounds(-9.0, 9.0)]
    planner = make_untrained_planner(settings=settings)
    plans = planner.plan(observations, goals, seeded(), constraints=[*map(Fixed, points), *others])
    assert len(plans) == 5
    for i, plan in enumerate(plans):
        steps = [find(plan, np.broadcast_to(point, (5, 2))[i]) for point in points]
        assert steps == sorted(set(steps))
        assert steps[0] > 0
        assert steps[-1] < plan.horizon - 1
        np.testing.assert_array_equal(plan.observations[0], observations[i].astype(np.float32))
        np.testing.assert_array_equal(plan.observations[-1], np.float32([*goals[i], 0.5, 0.25]))


def test_each_environment_passes_them_in_its_own_time():
    planner, _ = make_straight_planner(max_speed_error=SPEED + 1e-3, horizon_multiple=1)
    ways = [along(4, 4), along(8, 4), along(4, 16), along(16, 8)]
    plans = planner.plan(
        np.tile(AT_REST, (4, 1)),
        np.stack([way[1] for way in ways]),
        seeded(),
        constraints=[Fixed(np.stack([way[0] for way in ways]))],
    )
    assert [find(plan, way[0]) for plan, way in zip(plans, ways, strict=True)] == [3, 7, 3, 15]
    for plan, way in zip(plans, ways, strict=True):
        (alone,) = planner.plan(AT_REST[None], way[1:], seeded(), constraints=[Fixed(way[0])])
        np.testing.assert_allclose(alone.observations, plan.observations, atol=1e-5)


def test_plans_reach_a_later_time_that_is_fixed_beside_them():
    planner, _ = make_straight_planner(max_speed_error=1e9)
    points = along(4, 4)
    late = Fixed([0.25], columns=(3,), step=13)
    (plan,) = planner.plan(AT_REST[None], points[1:], seeded(), constraints=[Fixed(points[0]), late])
    assert plan.horizon >= 14
    assert plan.observations[13, 3] == np.float32(0.25)


@pytest.mark.parametrize(
    ("goals", "fixed"),
    [
        (None, Fixed([1.0, 1.0])),
        (along(4), Fixed([1.0, 1.0], columns=(2, 3))),
        (along(4), Fixed([1.0], columns=(0,))),
        (along(4), Fixed([1.0, 1.0], columns=(1, 0))),
    ],
)
def test_only_positions_on_the_way_to_a_goal_may_lack_a_time(goals, fixed):
    planner, _ = make_straight_planner()
    with pytest.raises(PlanningError, match=r"expected a time \(step, seconds or fraction\)") as caught:
        planner.plan(AT_REST[None], goals, seeded(), constraints=[fixed])
    assert "\n" not in str(caught.value)


def test_plans_with_way_points_follow_from_the_generator():
    planner = make_untrained_planner()
    asked = {"constraints": [Fixed([2.0, 2.0])]}
    first, same, other = (planner.plan(AT_REST[None], along(8), seeded(s), **asked)[0] for s in (1, 1, 2))
    np.testing.assert_array_equal(first.observations, same.observations)
    assert not np.array_equal(first.observations, other.observations)

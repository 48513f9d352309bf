"""Way-points: plans that are made leg by leg."""

import numpy as np
import pytest
import torch
from straight_line_planner import (
    CONFIG,
    distance_of,
    make_silent_planner,
    make_straight_planner,
    make_untrained_planner,
    seeded,
)

from diffplan.config import with_overrides
from diffplan.diffusion.guides import Function, KeepOut, SpeedLimit, TargetRegion
from diffplan.errors import PlanningError
from diffplan.planning.constraints import Bounds, Fixed
from diffplan.planning.planner import Planner

AT_REST = np.array([1.0, 2.0, 0.0, 0.0])
SPEED = 2.0


def along(*horizons):
    """Positions along the first axis, each as far from the one before as a plan of a horizon comes at full speed."""
    ways = np.cumsum([distance_of(horizon, SPEED) for horizon in horizons])
    return np.stack([1.0 + ways, np.full(len(ways), 2.0)], axis=1)


def test_way_points_are_passed_when_their_legs_alone_would_be():
    # Plans from rest that need at most 2 units per second are consistent.
    planner, _ = make_straight_planner(**{"horizon.max_speed_error": SPEED + 1e-3, "horizon.multiple": 1})
    first, second = along(4, 8), along(12, 4)
    observations, goals = np.tile(AT_REST, (2, 1)), np.stack([first[1], second[1]])
    plans = planner.plan(observations, goals, seeded(), constraints=[Fixed(np.stack([first[0], second[0]]))])
    assert [plan.horizon for plan in plans] == [3 + 7 + 1, 11 + 3 + 1]
    assert all(plan.consistent for plan in plans)
    for plan, points, step in zip(plans, (first, second), (3, 11), strict=True):
        np.testing.assert_array_equal(plan.observations[step, :2], points[0].astype(np.float32))
        np.testing.assert_array_equal(plan.observations[-1, :2], points[1].astype(np.float32))


def test_the_shortest_horizon_is_taken_with_which_all_legs_are_consistent():
    planner, network = make_straight_planner(
        **{"horizon.max_speed_error": SPEED + 1e-3, "horizon.multiple": 1, "horizon.max": 24}
    )
    points = along(8, 4)  # 7 and 3 steps at full speed
    # Halfway in time both legs get as long, and the first needs 7 steps.
    (plan,) = planner.plan(AT_REST[None], points[1:], seeded(), constraints=[Fixed(points[0], fraction=0.5)])
    assert plan.consistent
    assert find(plan, points[0]) in (7, 8)
    assert plan.horizon in (14, 15)
    assert max(horizon for batch in network.batches for horizon in batch) < plan.horizon  # never the whole
    (plan,) = planner.plan(AT_REST[None], points[1:], seeded(), constraints=[Fixed(points[0], step=3)])
    assert not plan.consistent  # three steps are never enough
    assert find(plan, points[0]) == 3


def test_horizons_are_those_of_each_leg():
    planner, network = make_straight_planner(**{"horizon.max_speed_error": SPEED + 1e-3})
    points = along(8, 12, 16)
    (plan,) = planner.plan(AT_REST[None], points[2:], seeded(), constraints=[Fixed(p) for p in points[:2]])
    assert plan.horizon == 7 + 11 + 15 + 1  # longer than any that is tried without way-points
    assert [find(plan, point) for point in points] == [7, 18, 33]
    assert {horizon for batch in network.batches for horizon in batch} <= {4, 8, 12, 16}
    assert plan.consistent


def test_a_leg_begins_with_the_state_that_the_one_before_ended_in():
    planner, _ = make_straight_planner((0.5,), **{"horizon.max_speed_error": 1e9})
    observations = np.array([[1.0, 2.0, 2.0, 0.0]])
    points = along(4, 4, 4)
    asked = {"constraints": [Fixed(p) for p in points[:2]], "guides": [SpeedLimit(0.0)], "guidance_scale": 0.0}
    (plan,) = planner.plan(observations, points[2:], seeded(), horizons=(4,), **asked)
    assert plan.violation == pytest.approx(np.hypot(3.5, 1.5), rel=1e-3)  # that of the fastest leg
    # This network adds 0.5 to the velocity that it begins with, and keeps it.
    np.testing.assert_allclose(plan.observations[:, 2], [2.0, *[2.5] * 3, *[3.0] * 3, *[3.5] * 3], atol=1e-4)


def test_a_plan_is_as_good_as_its_worst_leg():
    planner, _ = make_straight_planner(**{"horizon.max_speed_error": SPEED + 1e-3})
    points = along(8, 40)  # the second leg is too long for every horizon
    asked = {"constraints": [Fixed(points[0])], "guides": [SpeedLimit(0.0)], "guidance_scale": 0.0}
    (plan,) = planner.plan(AT_REST[None], points[1:], seeded(), **asked)
    assert plan.horizon == 7 + 15 + 1
    assert not plan.consistent
    assert plan.speed_error == pytest.approx(distance_of(40, SPEED) / (15 * 0.05), rel=1e-3)
    assert plan.violation == 0.0
    moving = np.array([[1.0, 2.0, 3.0, 0.0]])
    (plan,) = planner.plan(moving, points[1:], seeded(), **asked)
    assert plan.violation == pytest.approx(3.0, rel=1e-3)


def test_the_action_at_a_way_point_is_that_of_the_leg_which_begins_there():
    config = with_overrides(CONFIG, {"windows.columns": "actions_observations", "network.dim": 16})
    planner = make_untrained_planner(
        config, with_overrides(CONFIG.planning, {"sampling.temperature": 0.0}), action_dim=2
    )
    point = np.array([2.0, 1.0])
    (plan,) = planner.plan(AT_REST[None], along(8), seeded(), constraints=[Fixed(point)])
    assert plan.actions.shape == (plan.horizon, 2)
    step = find(plan, point)
    here = plan.observations[step][None]
    (rest,) = planner.plan(here, along(8), seeded(), horizons=(plan.horizon - step,))
    np.testing.assert_allclose(plan.actions[step:], rest.actions, atol=1e-4)
    np.testing.assert_allclose(plan.observations[step:], rest.observations, atol=1e-3)


@pytest.mark.parametrize("strict", [0, 1, 2])
@pytest.mark.parametrize("at_goal", [0, 1, 2])
def test_limits_belong_to_their_environments_in_legs_and_in_one_piece(strict, at_goal):
    planner, _ = make_straight_planner()
    observations, goals = np.tile(AT_REST, (3, 1)), np.tile(along(8), (3, 1))
    # What is fixed at the goal divides nothing.
    others = np.arange(3) != at_goal
    fixed = Fixed(np.where(others[:, None], [1.5, 2.0], goals), fraction=np.where(others, 0.5, 1.0))
    limits = np.where(np.arange(3) == strict, 0.0, 1e9)
    plans = planner.plan(observations, goals, seeded(), constraints=[fixed], horizons=(8,), max_speed_errors=limits)
    assert [plan.consistent for plan in plans] == [i != strict for i in range(3)]


def find(plan, point):
    """The step at which a plan is exactly at a point."""
    (steps,) = np.nonzero((plan.observations[:, :2] == np.float32(point)).all(axis=1))
    assert len(steps) == 1
    return int(steps[0])


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_several_way_points_are_passed_exactly_and_in_order(sampler):
    settings = with_overrides(
        CONFIG.planning, {"sampling.sampler": sampler, "selection.num_candidates": 2, "guidance.scale": 0.2}
    )
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
    planner, _ = make_straight_planner(**{"horizon.max_speed_error": SPEED + 1e-3, "horizon.multiple": 1})
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


def test_timed_way_points_are_passed_in_the_order_of_their_times_in_each_environment():
    planner = make_untrained_planner()
    observations, goals = np.tile(AT_REST, (3, 1)), np.tile(along(8), (3, 1))
    constraints = [Fixed([3.0, 1.0], fraction=np.array([0.25, 0.5, 0.8])), Fixed([2.0, 1.0], fraction=0.6)]
    plans = planner.plan(observations, goals, seeded(), constraints=constraints, horizons=(16,))
    assert [find(plan, [3.0, 1.0]) for plan in plans] == [4, 8, 12]
    assert [find(plan, [2.0, 1.0]) for plan in plans] == [9, 9, 9]


def test_whether_a_plan_is_made_in_legs_does_not_depend_on_what_it_is_made_together_with():
    config = with_overrides(CONFIG, {"network.dim": 16, "network.dim_mults": [1, 1, 1]})  # legs of 4 steps at least
    planner = make_untrained_planner(
        config, with_overrides(CONFIG.planning, {"sampling.temperature": 0.0, "horizon.max_speed_error": 0.0})
    )
    observations, goals = np.tile(AT_REST, (4, 1)), np.tile(along(8), (4, 1))
    points, fractions = np.array([[1.5, 2.0], [1.5, 1.0], [1.0, 1.5], [2.0, 2.5]]), np.array([0.5, 0.1, 0.4, 0.95])
    asked = {"constraints": [Fixed(points, fraction=fractions), Fixed([2.0, 1.0], step=8)], "horizons": (12, 16)}
    plans = planner.plan(observations, goals, seeded(), **asked)
    for i, plan in enumerate(plans):
        part = slice(i, i + 1)
        constraints = [Fixed(points[i], fraction=fractions[i]), Fixed([2.0, 1.0], step=8)]
        asked = {"constraints": constraints, "horizons": (plan.horizon,)}
        (alone,) = planner.plan(observations[part], goals[part], seeded(), **asked)
        np.testing.assert_allclose(plan.observations, alone.observations, atol=1e-2)
        assert find(plan, [2.0, 1.0]) == 8
        assert find(plan, points[i]) == round(fractions[i] * (plan.horizon - 1))


def test_plans_of_horizons_with_too_short_legs_leave_the_others_their_legs():
    # The network goes straight from the start of a leg to its end, so that legs show in the plan.
    planner, _ = make_straight_planner(**{"horizon.max_speed_error": 0.0})
    planner = Planner(
        with_overrides(planner.config, {"network.dim_mults": [1, 1, 1]}),  # legs of 4 steps at least
        planner.model.layout, planner.model.denoiser, planner.model.normalizer, planner.settings,
    )  # fmt: skip
    corner = [2.0, 3.0]
    (plan,) = planner.plan(AT_REST[None], along(8), seeded(), constraints=[Fixed(corner, step=5)])
    assert plan.horizon == 16  # drawn together with 8, in which the second leg would have 3 steps
    np.testing.assert_allclose(plan.observations[:6, 1], np.linspace(2, 3, 6), atol=1e-4)
    np.testing.assert_allclose(plan.observations[5:, 1], np.linspace(3, 2, 11), atol=1e-4)


def test_way_points_said_twice_or_without_room_are_still_passed():
    planner = make_untrained_planner(with_overrides(CONFIG, {"network.dim": 16}))
    (once,) = planner.plan(AT_REST[None], along(8), seeded(), constraints=[Fixed([1.5, 2.5], step=3)], horizons=(8,))
    twice = [Fixed([1.5, 2.5], step=3), Fixed([1.5, 2.5], seconds=0.15), Fixed(along(8), step=7)]
    (same,) = planner.plan(AT_REST[None], along(8), seeded(), constraints=twice, horizons=(8,))
    np.testing.assert_array_equal(once.observations, same.observations)
    close = [Fixed([1.5, 2.5], step=3), Fixed([1.6, 2.5], step=4), Fixed([1.7, 2.5], step=5), Fixed([1.8, 2.4], step=6)]
    (plan,) = planner.plan(AT_REST[None], along(8), seeded(), constraints=close, horizons=(8,))
    assert [find(plan, fixed.values) for fixed in close] == [3, 4, 5, 6]


def test_the_way_from_noise_to_plan_is_kept_leg_by_leg():
    planner = make_untrained_planner(with_overrides(CONFIG, {"network.dim": 16}))
    asked = {"constraints": [Fixed([1.5, 2.5])], "keep_denoising": True}
    (plan,) = planner.plan(AT_REST[None], along(8), seeded(), **asked)
    assert plan.denoising.shape == (CONFIG.planning.sampling.num_steps, plan.horizon, 4)
    np.testing.assert_allclose(plan.denoising[-1], plan.observations, atol=1e-5)


@pytest.mark.parametrize(
    "other",
    [
        Fixed([1.5, 2.0], step=3),
        Fixed([0.25], columns=(3,), step=3),
        Bounds(0.0, 9.0, first_step=2),
        Bounds(0.0, 9.0, last_step=9),
    ],
)
def test_nothing_with_a_time_stands_beside_way_points_without(other):
    planner, _ = make_straight_planner()
    with pytest.raises(PlanningError, match="got both; give all a time") as caught:
        planner.plan(AT_REST[None], along(8), seeded(), constraints=[Fixed([1.3, 2.0]), other])
    assert "\n" not in str(caught.value)


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


TIMES = [{}, {"step": 5}]
"""Way-points without a time and with one, which are planned by different ways through the package."""


@pytest.mark.parametrize("when", TIMES, ids=["untimed", "timed"])
@pytest.mark.parametrize("scale", [0.0, 0.1])
def test_guides_judge_the_whole_plan(when, scale):
    # A zone that the first leg cuts, and a region that only the end of the whole comes near.
    planner, _ = make_straight_planner(**{"horizon.max_speed_error": 1e9})
    observations, goals = np.tile(AT_REST, (2, 1)), np.array([[3.0, 2.0], [3.0, 1.0]])
    point, end = Fixed([2.0, 3.0], **when), TargetRegion([3.5, 2.0], 0.1)
    zone = KeepOut([1.5, 2.5], 0.3, margin=0.0)
    asked = {"constraints": [point], "guidance_scale": scale, "horizons": (12,)}
    ends = planner.plan(observations, goals, seeded(), guides=[end], **asked)
    for plan, goal in zip(ends, goals, strict=True):
        away = np.hypot(*(goal - [3.5, 2.0])) - 0.1
        assert plan.violation == pytest.approx(away, abs=1e-4)  # not that of the way-point, which is further
        assert plan.guide_score == pytest.approx(-(away**2), abs=1e-3)
    cut = planner.plan(observations, goals, seeded(), guides=[zone], **asked)
    for plan in cut:
        # At rest at every step, so that the path stops on each; one is within the zone.
        depths = 0.3 - np.linalg.norm(plan.observations[:, :2] - [1.5, 2.5], axis=1)
        assert 0.1 < depths.max() <= plan.violation + 1e-6 <= 0.3 + 2e-6
        assert plan.guide_score < -0.01
    both = planner.plan(observations, goals, seeded(), guides=[end, zone], **asked)
    for one, two, plan in zip(ends, cut, both, strict=True):
        assert plan.violation == pytest.approx(one.violation + two.violation, abs=2e-3)


@pytest.mark.parametrize("when", TIMES, ids=["untimed", "timed"])
@pytest.mark.parametrize("action_dim", [0, 2])
def test_score_of_a_plan_through_way_points_is_that_of_its_observations(when, action_dim):
    columns = "actions_observations" if action_dim else "observations"
    config = with_overrides(CONFIG, {"network.dim": 16, "windows.columns": columns})
    planner = make_untrained_planner(config, action_dim=action_dim)
    observations, goals = np.array([[1.1, 1.0, 0.3, -0.2], [3.0, 2.9, -1.0, 2.0]]), np.array([[3.0, 1.1], [1.0, 1.0]])

    def score(plans):
        extra = plans.actions[:, -2].sum(dim=1) if action_dim else 0.0
        away = plans.positions - plans.goals[:, None]
        return away.norm(dim=-1).max(dim=1).values + plans.velocities[:, 1:].sum(dim=(1, 2)) + extra

    def violation(plans):
        return plans.positions.amax(dim=(1, 2)) - plans.positions.amin(dim=(1, 2))

    plans = planner.plan(
        observations,
        goals,
        seeded(),
        constraints=[Fixed([2.0, 1.7], **when)],
        guides=[Function(score, violation)],
        guidance_scale=0.0,
    )
    for plan, goal in zip(plans, goals, strict=True):
        x = plan.observations.astype(np.float64)
        expected = np.linalg.norm(x[:, :2] - goal, axis=1).max() + x[1:, 2:].sum()
        if action_dim:
            expected += plan.actions[-2].sum()
        assert plan.guide_score == pytest.approx(expected, rel=1e-4, abs=1e-3)
        assert plan.violation == pytest.approx(x[:, :2].max() - x[:, :2].min(), abs=1e-4)


def test_a_way_point_of_one_plan_leaves_the_scores_of_the_others_their_goals():
    planner, _ = make_straight_planner(**{"horizon.max_speed_error": 1e9})
    goals = np.array([[3.0, 2.0], [3.0, 1.0], [1.0, 3.0]])
    # That of the second environment is at its goal, so that its plan is made in one piece.
    fixed = Fixed(np.where(np.arange(3)[:, None] == 1, goals, [2.0, 2.5]), fraction=np.array([0.5, 1.0, 0.25]))
    end = Function(lambda p: (p.positions[:, -1] - p.goals).norm(dim=-1), lambda p: p.goals[:, 0])
    plans = planner.plan(
        np.tile(AT_REST, (3, 1)), goals, seeded(), constraints=[fixed], guides=[end], guidance_scale=0.0, horizons=(9,)
    )
    assert [plan.violation for plan in plans] == [3.0, 3.0, 1.0]
    assert [plan.guide_score for plan in plans] == pytest.approx([0.0] * 3, abs=1e-5)


@pytest.mark.parametrize("when", TIMES, ids=["untimed", "timed"])
def test_guides_act_in_every_leg(when):
    seen = []

    def up(plans):
        seen.append((plans.transitions.shape[1], plans.goals.tolist()))
        return 5 * plans.positions[:, :, 1].mean(dim=1)

    planner = make_silent_planner(**{"guidance.target": "denoised"})
    asked = {"constraints": [Fixed([2.0, 2.0], **when)], "horizons": (12,), "guides": [up]}
    (low,) = planner.plan(AT_REST[None], [[3.0, 2.0]], seeded(), guidance_scale=0.0, **asked)
    seen.clear()
    (high,) = planner.plan(AT_REST[None], [[3.0, 2.0]], seeded(), guidance_scale=1.0, **asked)
    step = find(high, [2.0, 2.0])
    for part in (slice(1, step), slice(step + 1, -1)):
        assert (high.observations[part, 1] > low.observations[part, 1] + 0.01).all()
    # While it is made, a leg is to end at its way-point; in the end the plan is scored whole, with the true goal.
    assert {tuple(map(tuple, goals)) for _, goals in seen[:-1]} == {((2.0, 2.0),), ((3.0, 2.0),)}
    assert seen[-1] == (high.horizon, [[3.0, 2.0]])


def test_without_guides_plans_through_way_points_have_no_score():
    planner, _ = make_straight_planner(**{"horizon.max_speed_error": 1e9})
    (plan,) = planner.plan(AT_REST[None], along(8), seeded(), constraints=[Fixed([1.3, 2.0])])
    assert (plan.violation, plan.guide_score) == (0.0, None)


@pytest.mark.parametrize("when", TIMES, ids=["untimed", "timed"])
def test_a_violation_of_the_whole_that_is_no_number_keeps_nothing(when):
    planner, _ = make_straight_planner(**{"horizon.max_speed_error": 1e9})
    lost = Function(lambda p: p.positions.mean(dim=(1, 2)), lambda p: torch.full((len(p.transitions),), torch.nan))
    asked = {"constraints": [Fixed([1.3, 2.0], **when)], "guides": [lost], "guidance_scale": 0.0}
    (plan,) = planner.plan(AT_REST[None], along(8), seeded(), **asked)
    assert plan.violation == np.inf

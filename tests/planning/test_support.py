"""Where data have been, and plans that keep to it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from straight_line_planner import CONFIG, STEP_SECONDS, make_straight_planner, make_ways, seeded

from diffplan.planning.companions.support import CELLS, Support
from diffplan.planning.planner import with_settings, with_support

ENV = CONFIG.env
COORDINATES = st.floats(-50, 50, width=32)


def fit(*parts):
    whole = np.concatenate(parts)
    return Support.fit(whole.min(axis=0), whole.max(axis=0), parts)


def with_support_and(planner, support, **changes):
    """A planner that knows where data have been, with some settings changed."""
    return with_support(with_settings(planner, changes), support)


@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(1, 4)), elements=COORDINATES),
    st.integers(0, 40),
)
def test_all_data_are_within_half_a_cell_of_it_however_they_are_cut_in_parts(positions, cut):
    support = fit(positions)
    spacing = max(np.ptp(positions, axis=0).max() / CELLS, 1e-9)
    half_diagonal = spacing * np.sqrt(positions.shape[1]) / 2
    assert support.distances(positions).max() <= half_diagonal * (1 + 1e-3) + 1e-5
    in_parts = fit(positions[:cut], positions[cut:])
    np.testing.assert_array_equal(support.points, in_parts.points)


def test_a_visited_cell_counts_once():
    corners = np.array([[0.0, 0.0], [1.0, 1.0]])
    crowd = np.random.default_rng(0).uniform(0.5 + 1e-4, 0.5 + 1 / CELLS - 1e-4, size=(1000, 2))
    assert len(fit(corners, crowd).points) == 3


def test_distances_are_those_to_the_nearest_place():
    support = Support(np.array([[0.0, 0.0], [4.0, 0.0]]))
    positions = np.array([[[0.0, 0.0], [1.0, 0.0]], [[2.0, 0.0], [4.0, 3.0]]])
    np.testing.assert_allclose(support.distances(positions), [[0.0, 1.0], [2.0, 3.0]])


def test_a_plan_departs_as_far_as_the_farthest_point_of_its_way():
    support = Support(np.array([[0.0, 0.0], [4.0, 0.0]]))
    straight = np.zeros((1, 2, 4))
    straight[0, 1, 0] = 4.0
    resting, ends = support.departures(straight, ENV, STEP_SECONDS, np.array([2]))
    assert (resting[0], ends[0]) == (pytest.approx(2.0), 0.0)  # half-way, where the cubic of two rests is too
    # Sideways velocities v and -v lift the cubic by v Δt / 4 in the middle: (2, v Δt / 4).
    curved = straight.copy()
    curved[0, :, 3] = 12.0 / STEP_SECONDS, -12.0 / STEP_SECONDS
    assert support.departures(curved, ENV, STEP_SECONDS, np.array([2]))[0] == pytest.approx(np.hypot(2, 3))


def test_what_follows_the_end_of_a_plan_does_not_count():
    support = Support(np.zeros((1, 2)))
    observations = np.zeros((2, 5, 4))
    observations[:, 3:, 0] = 100.0
    ways, ends = support.departures(observations, ENV, STEP_SECONDS, np.array([3, 5]))
    np.testing.assert_allclose(ways, [0.0, 100.0])
    np.testing.assert_allclose(ends, [0.0, 100.0])


def test_a_plan_away_from_the_data_is_not_consistent():
    planner, _ = make_straight_planner()
    observations, goals = make_ways([8])
    distance = goals[0, 0] - 1.0
    ways = np.column_stack([np.linspace(1.0, goals[0, 0], 400), np.full(400, 2.0)])
    gap = np.abs(ways[:, 0] - 1.0 - distance / 2) < 0.15
    through = with_support_and(planner, fit(ways), **{"horizon.max_departure": 0.05})
    (plan,) = through.plan(observations, goals, seeded())
    assert (plan.horizon, plan.consistent) == (8, True)
    assert plan.departure < 0.01
    (plan,) = with_support_and(planner, fit(ways[~gap]), **{"horizon.max_departure": 0.05}).plan(
        observations, goals, seeded()
    )
    assert not plan.consistent
    assert plan.horizon == CONFIG.planning.horizon.max  # each was tried
    (plan,) = with_support_and(planner, fit(ways[~gap]), **{"horizon.max_departure": 0.2}).plan(
        observations, goals, seeded()
    )
    assert (plan.horizon, plan.consistent) == (8, True)
    assert plan.departure == pytest.approx(0.15, abs=0.03)


@pytest.mark.parametrize("far", ["start", "goal"])
def test_a_start_or_goal_off_the_data_is_no_fault_of_the_plan(far):
    planner, _ = make_straight_planner()
    observations, goals = make_ways([8])
    ways = np.column_stack([np.linspace(1.0, goals[0, 0], 400), np.full(400, 2.0)])
    first, last = (100, 400) if far == "start" else (0, 300)
    (plan,) = with_support_and(planner, fit(ways[first:last]), **{"horizon.max_departure": 0.05}).plan(
        observations, goals, seeded()
    )
    assert (plan.horizon, plan.consistent) == (8, True)
    assert plan.departure == pytest.approx((goals[0, 0] - 1.0) / 4, rel=0.05)


def test_rows_that_are_not_finite_are_no_place():
    positions = np.array([[0.0, 0.0], [np.nan, 1.0], [1.0, np.inf], [1.0, 1.0]])
    assert len(Support.fit(np.zeros(2), np.ones(2), [positions]).points) == 2


def test_a_candidate_that_keeps_to_the_data_is_better_than_a_steadier_one():
    planner, _ = make_straight_planner(
        speed_offsets=(0.0, 3.0), **{"horizon.max_speed_error": 100.0, "selection.num_candidates": 2, "horizon.min": 8}
    )
    observations, goals = make_ways([8])
    (steady,) = planner.plan(observations, goals, seeded())
    assert steady.speed_error < 1e-3

    class OffTheFirst(Support):
        """Of two candidates the first is far from the data."""

        def departures(self, observations, env, step_seconds, lengths):
            return np.tile([1.0, 0.1], len(observations) // 2), np.zeros(len(observations))

    near = with_support_and(planner, OffTheFirst(np.zeros((1, 2))), **{"horizon.max_departure": 0.5})
    (plan,) = near.plan(observations, goals, seeded())
    assert plan.consistent
    assert plan.departure == 0.1
    assert plan.speed_error > 1.0


@pytest.mark.parametrize("support", [None, Support(np.full((1, 2), 99.0))])
def test_nothing_is_asked_without_a_limit_or_without_knowing(support):
    planner, _ = make_straight_planner()
    asked = with_support_and(planner, support, **{"horizon.max_departure": 0.01 if support is None else 0.0})
    (plan,) = asked.plan(*make_ways([8]), seeded())
    assert (plan.horizon, plan.consistent, plan.departure) == (8, True, None)

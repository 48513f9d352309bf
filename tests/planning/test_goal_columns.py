"""Goals that are values of other columns than the positions, such as where an object is to be."""

import numpy as np
import pytest
from small_motions import write_motions
from straight_line_planner import CONFIG, make_untrained_planner, seeded, stack

from diffplan.config import with_overrides
from diffplan.errors import PlanningError
from diffplan.planning import calibration
from diffplan.planning.calibration import learn_horizons
from diffplan.planning.companions.horizon_model import HorizonModel
from diffplan.planning.constraints import Fixed
from diffplan.planning.planner import Planner

ROLES = {
    "env.position_columns": [0, 1],
    "env.velocity_columns": [2, 3],
    "env.goal_columns": [3],
    "env.step_seconds": 0.01,
}
ELSEWHERE = with_overrides(CONFIG, ROLES)
OBSERVATIONS = np.array([[1.1, 1.03, 0.3, -0.2], [3.07, 2.9, -1.0, 4.9]], dtype=np.float32)
GOALS = np.array([[1.5], [-2.5]], dtype=np.float32)


class Untaught(HorizonModel):
    """Counts the problems that it is asked about."""

    def __init__(self, goal_columns):
        super().__init__(4, goal_columns, (4, 8, 12, 16))
        self.asked = 0

    def forward(self, observations, goals):
        """As that of `HorizonModel`."""
        self.asked += len(observations)
        return super().forward(observations, goals)


def test_plans_end_on_the_values_that_goals_give_and_are_free_in_the_other_columns():
    plans = make_untrained_planner(ELSEWHERE).plan(OBSERVATIONS, GOALS, seeded())
    for plan, observation, goal in zip(plans, OBSERVATIONS, GOALS, strict=True):
        np.testing.assert_array_equal(plan.observations[0], observation)
        np.testing.assert_array_equal(plan.observations[-1, 3:], goal)
        assert (plan.observations[-1, :3] != 0).all()


def test_what_goals_give_no_values_for_ends_at_zero_if_windows_fix_it():
    config = with_overrides(ELSEWHERE, {"windows.goal_columns": [2, 3]})
    for plan, goal in zip(make_untrained_planner(config).plan(OBSERVATIONS, GOALS, seeded()), GOALS, strict=True):
        np.testing.assert_array_equal(plan.observations[-1, 2:], [0.0, goal[0]])


def test_windows_say_what_goals_are_values_of_where_the_environment_does_not():
    config = with_overrides(ELSEWHERE, {"env.goal_columns": [], "windows.goal_columns": [3]})
    plans = make_untrained_planner(config).plan(OBSERVATIONS, GOALS, seeded())
    np.testing.assert_array_equal([plan.observations[-1, 3:] for plan in plans], GOALS)


def test_goals_of_another_size_are_refused():
    with pytest.raises(PlanningError, match=r"goals: expected shape \(2, 1\), got \(2, 2\)"):
        make_untrained_planner(ELSEWHERE).plan(OBSERVATIONS, OBSERVATIONS[:, :2], seeded())


def test_the_distance_to_goals_is_that_of_what_they_give_values_for():
    planner = make_untrained_planner(ELSEWHERE)
    plans = planner.plan_horizon(OBSERVATIONS, GOALS, 8, seeded(), guides=["goal_distance()"], guidance_scale=0.0)
    distances = np.abs(stack(plans)[:, :, 3] - GOALS)
    np.testing.assert_allclose([plan.guide_score for plan in plans], -distances.mean(axis=1), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("when", [{}, {"fraction": 0.5}])
def test_way_points_are_positions_all_the_same(when):
    planner = make_untrained_planner(ELSEWHERE)
    plans = planner.plan(OBSERVATIONS, GOALS, seeded(), constraints=[Fixed([2.0, 1.25], **when)])
    for plan, goal in zip(plans, GOALS, strict=True):
        assert (plan.observations[:, :2] == [2.0, 1.25]).all(axis=1).any()
        np.testing.assert_array_equal(plan.observations[-1, 3:], goal)


def test_a_horizon_model_is_asked_about_goals_such_as_it_was_taught_and_not_about_way_points():
    model, plain = Untaught((3,)), make_untrained_planner(ELSEWHERE)
    planner = Planner(ELSEWHERE, plain.model.layout, plain.model.denoiser, plain.model.normalizer, horizon_model=model)
    planner.plan(OBSERVATIONS, GOALS, seeded())
    assert model.asked == 2
    planner.plan(OBSERVATIONS, GOALS, seeded(), constraints=[Fixed([2.0, 1.25])])
    assert model.asked == 4  # for the way on from the way-point, not for the way there


def test_a_horizon_model_learns_goals_of_their_columns(tmp_path, monkeypatch):
    told = []

    def fit(starts, goals, *arguments, **options):
        told.append((goals, arguments[4]))
        return HorizonModel(4, arguments[4], arguments[3])

    monkeypatch.setattr(calibration, "fit_horizon_model", fit)
    dataset = write_motions(tmp_path, ELSEWHERE.env, constant=True)
    model, _ = learn_horizons(make_untrained_planner(ELSEWHERE), dataset, num_plans=60)
    assert model.goal_columns == (3,)
    ((goals, columns),) = told
    assert (goals.shape[1], columns) == (1, (3,))

"""Horizons: which are tried, what a horizon model changes, and batches of several."""

import math

import numpy as np
import pytest
import torch
from straight_line_planner import (
    CONFIG,
    STEP_SECONDS,
    make_straight_planner,
    make_untrained_planner,
    make_ways,
    seeded,
)

from diffplan.config import with_overrides
from diffplan.errors import PlanningError
from diffplan.planning.companions.horizon_model import HorizonModel
from diffplan.planning.constraints import Bounds, Fixed
from diffplan.planning.planner import with_settings, with_support

HORIZONS = (4, 8, 12, 16)
SPEED = 2.0


class ToldErrors(HorizonModel):
    """Knows the speed errors of straight lines from rest, times a factor; is asked for a number of problems.

    Departures it foresees for the two shortest horizons: 1, and then 0.1.
    """

    def __init__(self, factor=1.0, horizons=HORIZONS):
        super().__init__(4, (0, 1), horizons)
        self.factor = factor
        self.asked = []

    def forward(self, observations, goals):
        """The logarithm of the speed that each horizon needs."""
        self.asked.append(len(observations))
        distances = (goals - observations[:, :2]).abs().amax(dim=1, keepdim=True)
        seconds = STEP_SECONDS * (torch.tensor(self.horizons) - 1)
        errors = (self.factor * distances / seconds).log()
        departures = torch.tensor([1.0, 1.0, 0.1, 0.1])[: len(self.horizons)].log()
        return torch.stack([errors, departures.expand_as(errors)], dim=1)


def make_rests(horizons):
    """Problems from rest whose shortest horizons at SPEED are given; longer ones are as consistent."""
    observations, goals = make_ways(horizons, SPEED)
    observations[:, 2] = 0.0
    return observations, goals


def make_predicting(factor=1.0, horizons=HORIZONS, **settings):
    model = ToldErrors(factor, horizons)
    planner, network = make_straight_planner(
        horizon_model=model, **{"horizon.rule": "predict", "horizon.max_speed_error": SPEED + 1e-3, **settings}
    )
    return planner, network, model


@pytest.mark.parametrize("rule", ["predict", "auto"])
@pytest.mark.parametrize("wanted", [[8], [16, 4, 8, 12], [4, 8, 12, 16] * 10])
def test_a_right_prediction_needs_one_batch_of_one_horizon_each(wanted, rule):
    planner, network, model = make_predicting(**{"horizon.rule": rule})
    plans = planner.plan(*make_rests(wanted), seeded())
    assert [plan.horizon for plan in plans] == wanted
    assert all(plan.consistent for plan in plans)
    assert model.asked == [len(wanted)]
    assert sorted(h for batch in network.batches for h in batch) == sorted(wanted)


def test_a_prediction_that_is_too_bold_is_corrected_upwards():
    planner, network, _ = make_predicting(factor=0.3)
    plans = planner.plan(*make_rests([16, 4, 12]), seeded())
    assert [(plan.horizon, plan.consistent) for plan in plans] == [(16, True), (4, True), (12, True)]
    tried = sorted(h for batch in network.batches for h in batch)
    # The second batch climbs two rungs at once.
    assert tried == sorted([*(8, 12, 16), 4, *(8, 12, 16)])


def test_a_prediction_that_is_too_cautious_is_taken():
    planner, network, _ = make_predicting(factor=1.5)
    plans = planner.plan(*make_rests([4, 8, 16]), seeded())
    assert [plan.horizon for plan in plans] == [8, 12, 16]
    assert all(plan.consistent for plan in plans)
    assert sum(map(len, network.batches)) == 3


@pytest.mark.parametrize("factor", [0.3, 1.0])
def test_plans_within_given_horizons_are_those_of_a_plan_that_are_so_short(factor):
    planner, network, model = make_predicting(factor)
    wanted, longest = [4, 8, 12, 16, 8], np.array([16, 7, 12, 13, 8])
    plans = planner.plan_within(*make_rests(wanted), seeded(), longest)
    assert [plan and plan.horizon for plan in plans] == [4, None, 12, None, 8]
    assert all(plan is None or plan.consistent for plan in plans)
    tried = sorted(h for batch in network.batches for h in batch)
    # A prediction that is right spends nothing where no plan is short enough; no other tries what is too long.
    assert tried == ([4, 8, 12] if factor == 1 else sorted([4, 4, *(8, 12), *(8, 12), *(4, 8)]))
    assert model.asked == [5]


def test_nothing_is_predicted_where_no_horizon_is_short_enough():
    planner, network, model = make_predicting()
    assert planner.plan_within(*make_rests([4, 8]), seeded(), np.array([3, -1])) == [None, None]
    assert (network.batches, model.asked) == ([], [])


def test_without_a_prediction_the_horizons_up_to_the_longest_are_scanned():
    planner, network = make_straight_planner(**{"horizon.max_speed_error": SPEED + 1e-3})
    plans = planner.plan_within(*make_rests([12, 12]), seeded(), np.array([8, 12]))
    assert [plan and plan.horizon for plan in plans] == [None, 12]
    assert {h for batch in network.batches for h in batch} == {4, 8, 12}


def test_a_longest_horizon_for_each_observation_is_expected():
    with pytest.raises(PlanningError, match=r"max_horizons: expected shape \(2,\), one for each .*, got \(1,\)"):
        make_predicting()[0].plan_within(*make_rests([4, 8]), seeded(), np.array([3]))


def test_limits_of_each_environment_reach_the_horizon_model():
    planner, _, _ = make_predicting()
    limits = np.array([SPEED + 1e-3, 100.0, 1e-3])
    plans = planner.plan(*make_rests([12, 12, 12]), seeded(), max_speed_errors=limits)
    assert [plan.horizon for plan in plans] == [12, 4, 16]


def test_the_model_is_interpolated_between_its_horizons():
    planner, network, _ = make_predicting(horizons=(4, 16, 28))
    (plan,) = planner.plan(*make_rests([12]), seeded())
    # From log errors at 4 and 16 on a straight line: 16 is the first that seems good.
    assert plan.horizon == 16
    assert sum(map(len, network.batches)) == 1


def test_predictions_are_for_plans_to_a_goal_and_nothing_else():
    planner, _, model = make_predicting()
    observations, goals = make_rests([8])
    planner.plan(observations, goals, seeded(), horizons=(4, 8))
    planner.plan(observations, goals, seeded(), constraints=[Fixed([0.0], columns=(3,), step=2)])
    planner.plan(observations, goals, seeded(), constraints=[Bounds(0.0, 9.0)])
    planner.plan(observations, None, seeded())
    assert model.asked == []
    planner.plan(observations, goals, seeded())
    assert model.asked == [1]


@pytest.mark.parametrize("factor", [1.0, 100.0])
def test_given_horizons_are_all_tried_on_the_way_to_a_way_point(factor):
    planner, network, model = make_predicting(factor)
    observations, goals = make_rests([8])
    way = [Fixed((observations[0, :2] + goals[0]) / 2)]  # in half the steps
    (plan,) = planner.plan(observations, goals, seeded(), constraints=way, horizons=(4, 6, 8, 16))
    assert model.asked == []  # a model that thinks too little of the horizons would not get to try the short ones
    assert plan.consistent
    assert {horizon for batch in network.batches for horizon in batch} == {4, 6, 8, 16}
    assert plan.horizon < 16
    planner.plan(observations, goals, seeded(), constraints=way)
    assert model.asked == [1, 1]  # otherwise it is asked for each leg


def test_scanning_asks_no_model():
    planner, _, model = make_predicting(**{"horizon.rule": "scan"})
    (plan,) = planner.plan(*make_rests([12]), seeded())
    assert plan.horizon == 12
    assert model.asked == []


def test_without_a_model_predicting_is_refused_and_auto_scans():
    with pytest.raises(PlanningError, match=r"planning\.horizon\.rule: expected scan.*`diffplan calibrate`") as caught:
        make_straight_planner(**{"horizon.rule": "predict"})
    assert "\n" not in str(caught.value)
    planner, _ = make_straight_planner(**{"horizon.rule": "auto"})
    assert planner.plan(*make_ways([8]), seeded())[0].horizon == 8


def set_outputs(model, errors, departures=(-9.0, -9.0, -9.0)):
    """Make a model predict the same logarithms for all problems."""
    with torch.no_grad():
        model.layers[-1].weight.zero_()
        model.layers[-1].bias.copy_(torch.tensor([*errors, *departures]))


def test_first_consistent_horizon_of_a_model():
    model = HorizonModel(4, (0, 1), (4, 8, 12))
    set_outputs(model, [np.log(8.0), np.log(2.0), np.log(0.5)])
    observations, goals = np.zeros((4, 4), np.float32), np.zeros((4, 2), np.float32)
    limits = np.array([9.0, 2.01, 1.9, 0.1])
    assert model.first_consistent(observations, goals, (4, 8, 12), limits).tolist() == [0, 1, 2, 2]
    # Halfway between 4 and 8 the logarithm is halfway too.
    limits = np.array([4.01, 3.99, 1.01, 0.0])
    assert model.first_consistent(observations, goals, (4, 6, 8, 10, 12), limits).tolist() == [1, 2, 3, 4]
    # Where none should be consistent, a longer one that is hardly nearer to it is not worth its time.
    set_outputs(model, [np.log(3.0), np.log(2.05), np.log(2.0)])
    assert model.first_consistent(observations, goals, (4, 8, 12), np.full(4, 1.0)).tolist() == [1] * 4
    set_outputs(model, [np.log(8.0), np.log(2.0), np.log(0.5)])
    # Beyond the model's horizons its last word holds.
    assert model.first_consistent(observations, goals, (6, 40), np.array([4.1, 3.9, 0.4, 0.4])).tolist() == [0, 1, 1, 1]


def test_first_horizon_of_a_model_that_is_consistent_and_near_the_data():
    model = HorizonModel(4, (0, 1), (4, 8, 12))
    observations, goals = np.zeros((1, 4), np.float32), np.zeros((1, 2), np.float32)

    def first(max_speed_error, max_departure):
        return model.first_consistent(observations, goals, (4, 8, 12), np.array([max_speed_error]), max_departure)[0]

    set_outputs(model, np.log([3.0, 2.0, 1.0]), np.log([0.1, 0.4, 0.2]))
    assert [first(5.0, limit) for limit in (0.0, 0.5, 0.11)] == [0, 0, 0]
    assert [first(2.5, limit) for limit in (0.0, 0.5, 0.25)] == [1, 1, 2]
    # Where none keeps both limits, the one that exceeds its worse one by the smaller factor: 3 / 1, 4 / 1, 2 / 1.
    assert first(1.0, 0.1) == 2
    # Without a limit of the speed error, the other one alone.
    assert [first(math.inf, limit) for limit in (0.0, 0.5, 0.25)] == [0, 0, 0]
    set_outputs(model, np.log([3.0, 2.0, 1.0]), np.log([0.6, 0.4, 0.2]))
    assert [first(math.inf, limit) for limit in (0.0, 0.5, 0.25)] == [0, 1, 2]


def test_a_foreseen_departure_is_not_tried_if_it_is_limited_and_known():
    from diffplan.planning.companions.support import Support

    planner, network, _ = make_predicting()
    observations, goals = make_rests([4])
    ways = np.column_stack([np.linspace(1.0, 2.0, 500), np.full(500, 2.0)])

    def tried(support, max_departure):
        network.batches.clear()
        told = with_support(with_settings(planner, {"horizon.max_departure": max_departure}), support)
        told.plan(observations, goals, seeded())
        return network.batches

    assert tried(Support(ways), 0.5) == [(12,)]
    assert tried(Support(ways), 0.0) == tried(Support(ways), 2.0) == tried(None, 0.5) == [(4,)]


@pytest.mark.parametrize(("horizons", "taken"), [((8,), 8), ((16, 12, 8), 8), ((5, 7, 9), 9), ((8, 8), 8)])
def test_horizons_are_those_that_are_given(horizons, taken):
    planner, network = make_straight_planner()
    (plan,) = planner.plan(*make_ways([taken]), seeded(), horizons=horizons)
    assert (plan.horizon, plan.consistent) == (taken, True)
    assert {h for batch in network.batches for h in batch} <= set(horizons)


@pytest.mark.parametrize("horizons", [(), (1, 8), (0,), (-4,)])
def test_horizons_that_the_network_cannot_hold_are_refused(horizons):
    with pytest.raises(PlanningError, match="horizons: expected numbers of at least 2") as caught:
        make_straight_planner()[0].plan(*make_ways([8]), seeded(), horizons=horizons)
    assert "\n" not in str(caught.value)


def test_no_candidates_are_refused():
    with pytest.raises(PlanningError, match="num_candidates: expected at least 1, got 0"):
        make_straight_planner()[0].plan(*make_ways([8]), seeded(), num_candidates=0)


def test_candidates_of_a_call_replace_those_of_the_settings():
    planner, network = make_straight_planner(**{"selection.num_candidates": 2})
    planner.plan(*make_ways([8]), seeded(), horizons=(8,), num_candidates=5)
    assert network.batches == [(8,) * 5]


OBSERVATIONS = np.array([[1.1, 1.03, 0.3, -0.2], [3.07, 2.9, -1.0, 4.9], [0.9, 2.2, 0.0, 0.0], [2.0, 2.0, 1.0, 1.0]])
GOALS = np.array([[3.0, 1.1], [1.01, 0.97], [2.2, 3.3], [1.0, 1.0]])


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm_solver"])
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"guides": ["goal_distance()"], "guidance_scale": 0.5},
        {"constraints": [Fixed([1.0, -1.0], columns=(2, 3), step=2), Bounds(-5.0, 5.0, columns=(2, 3))]},
        {"constraints": [Fixed([2.0, 2.0], step=2)]},
        {"num_candidates": 2},
    ],
    ids=["plain", "guided", "constrained", "way-point", "candidates"],
)
def test_plans_among_others_of_several_horizons_are_those_made_alone(sampler, asked):
    # Without noise the rows of a batch know nothing of each other.
    config = with_overrides(CONFIG, {"network.dim": 16})
    planner = make_untrained_planner(
        config, with_overrides(CONFIG.planning, {"sampling.sampler": sampler, "sampling.temperature": 0.0})
    )
    errors = np.array([planner.plan_horizon(OBSERVATIONS, GOALS, h, seeded(), **asked) for h in HORIZONS], dtype=object)
    errors = np.vectorize(lambda plan: plan.speed_error)(errors)
    best = errors.argmin(axis=0)
    # Each environment is content with its own best horizon, or at once, or never.
    limits = errors.min(axis=0) * 1.001
    limits[0], limits[3] = 1e9, 0.0
    plans = planner.plan(OBSERVATIONS, GOALS, seeded(), max_speed_errors=limits, **asked)
    assert [plan.horizon for plan in plans] == [4, HORIZONS[best[1]], HORIZONS[best[2]], 16]
    for i, plan in enumerate(plans):
        part = slice(i, i + 1)
        (alone,) = planner.plan_horizon(OBSERVATIONS[part], GOALS[part], plan.horizon, seeded(), **asked)
        np.testing.assert_allclose(plan.observations, alone.observations, rtol=1e-4, atol=1e-4)
        assert plan.speed_error == pytest.approx(alone.speed_error, abs=1e-2)
        assert plan.guide_score == pytest.approx(alone.guide_score, abs=1e-4)


@pytest.mark.parametrize("num_candidates", [1, 2])
def test_plans_of_several_horizons_follow_from_the_generator(num_candidates):
    planner = make_untrained_planner(
        settings=with_overrides(CONFIG.planning, {"selection.num_candidates": num_candidates})
    )
    first, same, other = (planner.plan(OBSERVATIONS, GOALS, seeded(seed)) for seed in (1, 1, 2))
    for one, two, three in zip(first, same, other, strict=True):
        np.testing.assert_array_equal(one.observations, two.observations)
        assert not np.array_equal(one.observations, three.observations)


def test_way_from_noise_to_plan_is_cut_to_the_plan():
    planner = make_untrained_planner()
    plans = planner.plan(
        OBSERVATIONS, GOALS, seeded(), keep_denoising=True, max_speed_errors=np.array([1e9, 0.0, 1e9, 0.0])
    )
    assert [plan.denoising.shape for plan in plans] == [(3, 4, 4), (3, 16, 4)] * 2
    for plan in plans:
        np.testing.assert_allclose(plan.denoising[-1], plan.observations, atol=1e-5)

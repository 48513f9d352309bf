"""What is measured and fitted beside the diffuser."""

from functools import partial

import numpy as np
import pytest
import torch
from small_motions import write_motions
from straight_line_planner import CONFIG, STEP_SECONDS, make_straight_planner, seeded

from diffplan.config import with_overrides
from diffplan.planning import calibration
from diffplan.planning.calibration import learn_horizons, measure_consistency
from diffplan.planning.companions.horizon_model import fit_horizon_model
from diffplan.training.inverse_dynamics import fit_action_model

HORIZONS = (4, 8, 12, 16)


@pytest.fixture(scope="module")
def steady(tmp_path_factory):
    """Motions of constant acceleration."""
    return write_motions(tmp_path_factory.mktemp("steady"), CONFIG.env, constant=True)


@pytest.fixture(scope="module")
def restless(tmp_path_factory):
    """Motions whose accelerations are drawn anew at each environment step."""
    return write_motions(tmp_path_factory.mktemp("restless"), CONFIG.env, constant=False)


def needed_speeds(starts, goals):
    """The speed that plans from rest to a goal need at each horizon, which is their speed error: float[n, horizons]."""
    distances = np.abs(goals - starts[:, :2]).max(axis=1)
    return distances[:, None] / (STEP_SECONDS * (np.array(HORIZONS) - 1))


def draw_problems(num, seed):
    generator = np.random.default_rng(seed)
    starts = np.hstack([generator.uniform(0, 4, (num, 2)), generator.normal(0, 2, (num, 2))])
    return starts.astype(np.float32), generator.uniform(0, 4, (num, 2)).astype(np.float32)


def test_a_horizon_model_learns_which_horizon_is_the_first_consistent_one():
    starts, goals = draw_problems(8000, 0)
    generator = np.random.default_rng(1)
    indices = generator.integers(0, 4, 8000)
    # Every plan is of one horizon, and its noise moves its error.
    errors = needed_speeds(starts, goals)[np.arange(8000), indices] * np.exp(generator.normal(0, 0.1, 8000))
    # Short plans to the right go through a wall.
    departures = np.where((goals[:, 0] > 2) & (indices < 2), 0.5, 0.05)
    seen = []
    model = fit_horizon_model(
        starts,
        goals,
        indices,
        errors,
        departures,
        HORIZONS,
        (0, 1),
        quantile=0.5,
        num_steps=700,
        on_progress=seen.append,
    )
    assert seen == list(range(100, 701, 100))
    starts, goals = draw_problems(2000, 2)
    limits = np.full(2000, 4.0)
    found = model.first_consistent(starts, goals, HORIZONS, limits)
    good = needed_speeds(starts, goals) <= limits[:, None]
    right = np.where(good.any(axis=1), good.argmax(axis=1), 3)
    assert len(set(right.tolist())) == 4
    assert (np.abs(found - right) <= 1).mean() > 0.99
    assert (found == right).mean() > 0.9
    near = model.first_consistent(starts, goals, HORIZONS, limits, 0.2)
    wanted = np.where(goals[:, 0] > 2, np.maximum(right, 2), right)
    assert ((wanted != right).sum()) > 300
    assert (near == wanted).mean() > 0.9


def test_a_horizon_model_predicts_the_quantile_that_it_was_asked_for():
    starts, goals = draw_problems(4000, 3)
    generator = np.random.default_rng(4)
    errors = np.exp(generator.normal(1.0, 0.5, 4000))
    indices = np.zeros(4000, dtype=int)
    shares = []
    for quantile in (0.2, 0.5, 0.9):
        model = fit_horizon_model(
            starts, goals, indices, errors, 2 * errors, (4,), (0, 1), quantile=quantile, num_steps=200
        )
        with torch.no_grad():
            predicted = model(torch.from_numpy(starts), torch.from_numpy(goals))[:, :, 0].numpy()
        shares.append((predicted >= np.log([errors, 2 * errors]).T).mean(axis=0))
    np.testing.assert_allclose(shares, np.tile([[0.2], [0.5], [0.9]], 2), atol=0.08)


def test_fitting_a_horizon_model_follows_from_the_seed_and_leaves_the_global_one_alone():
    starts, goals = draw_problems(100, 0)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()

    def fit(seed):
        model = fit_horizon_model(
            starts, goals, np.zeros(100, int), np.ones(100), np.ones(100), (4, 8), (0, 1), num_steps=3, seed=seed
        )
        return torch.cat([p.flatten() for p in model.state_dict().values()])

    first, same, other = fit(0), fit(0), fit(1)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_windows_of_constant_acceleration_are_consistent(steady):
    measured = measure_consistency(steady, CONFIG, (4, 12), num_windows=500)
    assert np.shape(measured["speed_errors"]) == (2, 4)
    assert np.max(measured["speed_errors"]) < 1e-3
    assert (measured["horizons"], measured["num_windows"], measured["seed"]) == ([4, 12], 500, 0)


def test_windows_of_changing_acceleration_are_less_so_and_quantiles_rise(restless):
    measured = measure_consistency(restless, CONFIG, (4, 12), num_windows=500)
    errors = np.array(measured["speed_errors"])
    assert (errors > 1e-3).all()
    assert (np.diff(errors, axis=1) >= 0).all()
    assert (errors[1] >= errors[0]).all()  # a longer window has more steps to be wrong in
    assert measured == measure_consistency(restless, CONFIG, (4, 12), num_windows=500)
    assert measured != measure_consistency(restless, CONFIG, (4, 12), num_windows=500, seed=1)


def test_windows_are_measured_at_the_stride_of_the_experiment(restless):
    coarse = measure_consistency(restless, CONFIG, (4,), num_windows=500)["speed_errors"]
    fine = measure_consistency(restless, with_overrides(CONFIG, {"windows.stride": 1}), (4,), num_windows=500)
    assert np.max(fine["speed_errors"]) < 1e-3  # accelerations change between environment steps only
    assert np.min(coarse) > 1e-3


@pytest.fixture(scope="module")
def learned(steady):
    planner, network = make_straight_planner(**{"horizon.max_speed_error": 3.0})
    reports = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "fit_horizon_model", partial(fit_horizon_model, num_steps=800))
        model, measured = learn_horizons(
            planner, steady, num_plans=5000, on_progress=lambda done, total: reports.append((done, total))
        )
    return planner, network, model, measured, reports


def test_horizons_are_learned_from_plans_between_places_in_the_data(learned):
    _, network, model, measured, reports = learned
    assert model.horizons == HORIZONS
    assert measured["horizons"] == list(HORIZONS)
    assert reports[-1] == (5500, 5500)
    drawn = [horizon for batch in network.batches for horizon in batch]
    assert len(drawn) == 5500
    for horizon in HORIZONS:
        assert drawn.count(horizon) > 1000
    # Plans that none was fitted to, of every horizon.
    assert measured["num_test_plans"] >= 250
    assert all(share is not None for share in measured["share_consistent"])
    assert measured["share_consistent"][-1] > measured["share_consistent"][0]
    assert np.mean(measured["accuracy"]) > 0.85


def test_a_learned_model_spares_the_planner_most_horizons(learned, steady):
    planner, _, model, _, _ = learned
    starts, goals = draw_problems(100, 9)
    starts[:, 2:] = 0
    goals = (starts[:, :2] + np.clip(goals - starts[:, :2], -1.5, 1.5)).astype(np.float32)
    network = planner.model.denoiser.network
    scanning, network.batches = planner.plan(starts, goals, seeded()), []
    predicting, _ = make_straight_planner(
        **{"horizon.max_speed_error": 3.0, "horizon.rule": "predict"}, horizon_model=model
    )
    plans = predicting.plan(starts, goals, seeded())
    assert all(two.consistent for one, two in zip(scanning, plans, strict=True) if one.consistent)
    assert np.mean([one.horizon == two.horizon for one, two in zip(scanning, plans, strict=True)]) > 0.7
    assert sum(map(len, predicting.model.denoiser.network.batches)) < 1.7 * len(starts)  # 4 without
    assert steady.num_steps > 0


@pytest.mark.parametrize("num_plans", [1, 10, 100])
def test_few_plans_are_spread_over_all_horizons(steady, monkeypatch, num_plans):
    monkeypatch.setattr(calibration, "fit_horizon_model", partial(fit_horizon_model, num_steps=2))
    planner, network = make_straight_planner()
    _, measured = learn_horizons(planner, steady, num_plans=num_plans)
    assert len(set(h for batch in network.batches for h in batch)) == min(4, num_plans)
    assert len(measured["accuracy"]) == 4


def test_inverse_dynamics_recover_linear_dynamics(restless):
    reports = []
    model, error = fit_action_model(
        restless, num_steps=800, num_test_pairs=2000, on_progress=lambda *done: reports.append(done)
    )
    assert error < 0.15  # on the one episode of eight that it did not see
    assert reports[-1] == (800, 800)
    pairs = restless.read_column("observation")[:110].astype(np.float64)
    actions = restless.read_column("action")[:109]
    found = model.predict(pairs[:-1], pairs[1:])
    assert found.dtype == np.float32
    # Of a spread of 10 / sqrt(12).
    assert np.sqrt(np.mean((found - actions) ** 2)) < 0.05 * 10 / np.sqrt(12)


def test_fitting_inverse_dynamics_follows_from_the_seed(restless):
    first, same, other = (fit_action_model(restless, num_steps=3, num_test_pairs=100, seed=s)[1] for s in (0, 0, 1))
    assert first == same != other

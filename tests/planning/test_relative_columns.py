"""Columns that count from the present step: a model never sees where it is, and plans say how far it goes."""

import dataclasses

import numpy as np
import pytest
import torch
from running_point import CONFIG, OFFSETS, STEP, STEP_SECONDS, make_episode, train_checkpoint, write_line

from diffplan.config import CalibrationConfig, with_overrides
from diffplan.errors import ConfigError, PlanningError
from diffplan.planning.companions.value_fit import fit_value
from diffplan.planning.constraints import Fixed
from diffplan.planning.control.policy import PlanningPolicy
from diffplan.planning.loading import load_planner, load_policy
from diffplan.planning.planner import with_settings
from diffplan.planning.warm_start import keep_rest
from diffplan.training.batches import TrainingBatches
from diffplan.training.companions import fit_companions
from diffplan.training.environment import check_environment


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_line(tmp_path_factory.mktemp("running") / "dataset", [make_episode(i) for i in range(60)])


@pytest.fixture(scope="module")
def planner(dataset, tmp_path_factory):
    out = train_checkpoint(CONFIG, dataset, tmp_path_factory.mktemp("checkpoint") / "planner")
    settings = with_overrides(CONFIG.planning, {"guidance.value": "last"})
    fit_companions(out, settings=settings, calibration=CalibrationConfig())
    return load_planner(out, settings)


def test_windows_begin_at_0_and_keep_their_changes(dataset):
    batches = TrainingBatches(CONFIG, dataset)
    x = batches.normalizer.unnormalize_windows(batches.make(0).x_clean).numpy()[:, :, 1]
    np.testing.assert_allclose(x[:, 0], 0, atol=1e-4)
    speeds = x[:, 1:] / np.array(OFFSETS) / STEP
    np.testing.assert_allclose(speeds, speeds[:, :1].repeat(3, axis=1), atol=1e-3)
    assert speeds.min() < -0.5 < 0.5 < speeds.max()


def make_plans(planner, position, **named):
    observations = np.array([[0.3, position], [-0.8, position]])
    return planner.plan(observations, None, torch.Generator().manual_seed(0), **named)


def test_plans_and_actions_do_not_depend_on_where_they_begin(planner):
    for near, far in zip(make_plans(planner, 0.0), make_plans(planner, 250.0), strict=True):
        assert near.observations[0, 1] == 0
        np.testing.assert_allclose(near.observations, far.observations, atol=1e-5)
        np.testing.assert_allclose(near.action, far.action, atol=1e-5)


def test_a_value_does_not_see_them(dataset):
    value, _ = fit_value(dataset, CONFIG, whole_plans=True, num_steps=20)
    observations = torch.tensor([[0.2, 0.0], [0.2, 100.0]])
    first, second = value.compute_values(observations)
    torch.testing.assert_close(first, second)
    windows = observations[:, None] + torch.tensor([0.0, 1.0])[None, None] * torch.arange(4.0)[None, :, None]
    first, second = value.compute_plan_values(windows, torch.ones(2, 4))
    torch.testing.assert_close(first, second)
    assert abs(first - value.compute_plan_values(windows * 2, torch.ones(2, 4))[0]) > 1e-3


@pytest.mark.parametrize("speed", [-0.2, 0.3])
def test_values_per_second_ask_for_a_speed(planner, speed):
    """The action comes from the end of the plan, so it is the one that moves at that speed."""
    asked = Fixed([speed], columns=[1], step=-1, per_second=True)
    for plan in make_plans(planner, 77.0, constraints=[asked]):
        assert plan.observations[-1, 1] == np.float32(speed * OFFSETS[-1] * STEP_SECONDS)
        assert plan.action[0] == pytest.approx(speed * STEP_SECONDS / STEP, abs=0.25)
    asked = Fixed([[speed], [-speed]], columns=[1], step=2, per_second=True)
    first, second = make_plans(planner, 77.0, constraints=[asked])
    assert first.observations[2, 1] == -second.observations[2, 1] == np.float32(speed * OFFSETS[1] * STEP_SECONDS)


def test_episodes_keep_what_is_asked_per_second(planner):
    policy = PlanningPolicy(planner, torch.Generator().manual_seed(0), -1.0, 1.0)
    policy.ask(constraints=[Fixed([0.3], columns=[1], step=2, per_second=True)])
    policy.reset(np.array([[0.3, 50.0]]))
    for step in range(3):
        policy.act(np.array([[0.3, 50.0 + step]]))
        assert policy.plans[0].observations[2, 1] == np.float32(0.3 * OFFSETS[1] * STEP_SECONDS)


def test_a_warm_start_counts_from_the_present_step(planner):
    plans = make_plans(planner, 10.0, constraints=[Fixed([0.3], columns=[1], step=-1, per_second=True)])
    rest, _ = keep_rest(plans, np.array([2, 2]), planner.model, has_goals=False)
    np.testing.assert_allclose(rest[:, 0, 1], 0, atol=1e-6)
    assert rest[0, 1, 1] == pytest.approx(plans[0].observations[2, 1] - plans[0].observations[1, 1], abs=1e-5)


def test_a_cloned_policy_does_not_see_them(dataset, tmp_path):
    training = dataclasses.replace(CONFIG.training, objective="behavior_cloning", num_steps=20)
    policy = load_policy(train_checkpoint(dataclasses.replace(CONFIG, training=training), dataset, tmp_path / "policy"))
    here, there = np.array([[0.3, 0.0]]), np.array([[0.3, 250.0]])
    np.testing.assert_array_equal(policy.act(here), policy.act(there))
    assert (policy.act(here) != policy.act(np.array([[-0.9, 0.0]]))).all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"windows.deltas": False}, r"windows\.deltas: expected true"),
        ({"windows.relative_columns": (1, 1)}, r"windows\.relative_columns: expected distinct columns"),
        (
            {"windows.goal_columns": (1,)},
            "expected distinct columns, none of them of a goal",
        ),
        ({"env.position_columns": (1,)}, r"windows\.relative_columns: expected none of env\.position_columns"),
        ({"env.goal_columns": (1,), "windows.goal_columns": None}, r"expected none of env\.position_columns and env"),
    ],
)
def test_columns_that_cannot_be_relative_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        with_overrides(CONFIG, overrides)


def test_what_needs_the_place_itself_is_refused(planner, dataset):
    with pytest.raises(PlanningError, match="expected another than inverse_dynamics"):
        with_settings(planner, {"controller": "inverse_dynamics"})
    with pytest.raises(ConfigError, match=r"windows\.relative_columns: expected columns below 2"):
        check_environment(with_overrides(CONFIG, {"windows.relative_columns": (2,)}), dataset)
    with pytest.raises(PlanningError, match="expected a time"):
        Fixed([0.3], columns=[1], per_second=True)
    unknown = dataclasses.replace(planner.model, env=dataclasses.replace(planner.model.env, step_seconds=None))
    planner_without = with_settings(planner, {})
    planner_without.model = unknown
    with pytest.raises(PlanningError, match="how long a step takes is not known here"):
        make_plans(planner_without, 0.0, constraints=[Fixed([0.3], columns=[1], step=-1, per_second=True)])

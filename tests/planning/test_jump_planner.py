"""Planners whose steps are jumps: changes from the first step, averaged candidates, action heads, warm starts."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from running_point import train_checkpoint, write_line

from diffplan.config import (
    CalibrationConfig,
    Config,
    DiffusionConfig,
    EnvConfig,
    HeadControl,
    HorizonConfig,
    NetworkConfig,
    PlanningConfig,
    Receding,
    SamplingConfig,
    SelectionConfig,
    TrainingConfig,
    WindowConfig,
    with_overrides,
)
from diffplan.errors import PlanningError
from diffplan.networks.factory import make_network
from diffplan.planning.companions.action_head import READS
from diffplan.planning.constraints import Bounds, Fixed
from diffplan.planning.control.controllers import ActionController, ActionHeadController
from diffplan.planning.control.policy import PlanningPolicy
from diffplan.planning.interpolation import interpolate
from diffplan.planning.loading import load_planner
from diffplan.planning.packaging import package_planner
from diffplan.planning.planner import with_settings
from diffplan.planning.sampling import average
from diffplan.planning.selection import VIOLATION_TOLERANCE, weigh
from diffplan.training.companions import find_needed, fit_companions
from diffplan.types import Episode, Plan

OFFSETS = (1, 3, 8)
CONFIG = Config(
    env=EnvConfig(env_id="drifting"),
    windows=WindowConfig(
        min_horizon=4,
        max_horizon=4,
        offsets=OFFSETS,
        deltas=True,
        normalization="gaussian",
        padding="terminal",
        goal_columns=(),
    ),
    network=NetworkConfig(kind="mlp", dim=32, depth=1),
    diffusion=DiffusionConfig(num_diffusion_steps=16, prediction="velocity", clip_denoised=False),
    training=TrainingConfig(
        num_steps=400, batch_size=64, learning_rate=3e-3, discount=0.9, ema_decay=0.98, validation_fraction=0.0
    ),
    planning=PlanningConfig(
        sampling=SamplingConfig(num_steps=4),
        horizon=HorizonConfig(min=4, max=4, multiple=1),
        selection=SelectionConfig(num_candidates=8, rule="mean"),
        controller=HeadControl(),
        replanning=Receding(interval=1),
    ),
)
DRIFT = 0.1


def make_episode(index: int) -> Episode:
    """A point on a line, moved by its actions, which falls off at 6 in every other episode; the reward is its speed.

    Its action is the same in all of an episode, so it is known from any later position.
    """
    generator = np.random.default_rng(index)
    terminates = index % 2 == 0
    start, action = generator.uniform(-5, 5), generator.uniform(0.5, 1.0) if terminates else generator.uniform(-1, 0.4)
    length = int(np.ceil((6 - start) / (DRIFT * action))) if terminates else 40
    positions = start + DRIFT * action * np.arange(length + 1)
    return Episode(
        episode_index=index,
        seed=index,
        behavior="drift",
        observations=np.stack([positions, np.sin(positions)], axis=1).astype(np.float32),
        actions=np.full((length, 1), action, dtype=np.float32),
        rewards=np.full(length, action, dtype=np.float32),
        terminated=terminates,
        truncated=not terminates,
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    root = tmp_path_factory.mktemp("drifting")
    dataset = write_line(root / "dataset", [make_episode(i) for i in range(60)], env_id="drifting")
    out = train_checkpoint(CONFIG, dataset, root / "checkpoint")
    settings = with_overrides(CONFIG.planning, {"guidance.value": "plan"})
    result = fit_companions(out, settings=settings, calibration=CalibrationConfig(value_steps=5))
    assert max(result["action_head_errors"].values()) < 0.6
    return out


@pytest.fixture(scope="module")
def planner(checkpoint):
    return load_planner(checkpoint)


@pytest.mark.parametrize("value", ["plan", None])
def test_a_package_has_the_heads_and_the_value_that_its_settings_use(checkpoint, tmp_path, value):
    rule = "mean" if value is None else "soft"
    settings = with_overrides(CONFIG.planning, {"guidance.value": value, "selection.rule": rule})
    package_planner(checkpoint, tmp_path, settings)
    assert (tmp_path / "value.safetensors").exists() == (value is not None)
    for whole, packaged in zip(
        make_plans(load_planner(checkpoint, settings))[1], make_plans(load_planner(tmp_path))[1], strict=True
    ):
        np.testing.assert_allclose(packaged.action, whole.action, atol=0.02)
        np.testing.assert_allclose(packaged.observations, whole.observations, atol=0.02)


def make_plans(planner, num=6, **named):
    observations = np.array([[0.5 * i, np.sin(0.5 * i)] for i in range(num)])
    return observations, planner.plan(observations, None, torch.Generator().manual_seed(0), **named)


def test_plans_have_their_steps_flags_and_actions(planner):
    observations, plans = make_plans(planner)
    for observation, plan in zip(observations, plans, strict=True):
        assert plan.env_steps.tolist() == [0, 1, 3, 8]
        np.testing.assert_array_equal(plan.observations[0], observation.astype(np.float32))
        assert plan.flags[0] == 1
        assert plan.action.shape == (1,)
        assert "environment steps 0, 1, 3, 8" in repr(plan)
    far = [plan.observations[-1, 0] - plan.observations[0, 0] for plan in plans]
    near = [plan.observations[1, 0] - plan.observations[0, 0] for plan in plans]
    assert np.corrcoef(near, far)[0, 1] > 0.5
    assert np.abs(near).max() < 3 * DRIFT < np.abs(far).max() + 2 * DRIFT


@pytest.mark.parametrize("reads", READS)
def test_every_head_finds_the_action_of_known_plans(planner, reads):
    head = planner.action_heads.find(reads)
    actions = np.linspace(-0.9, 0.9, 7)
    positions = 0.3 + DRIFT * actions[:, None] * np.array([0, *OFFSETS])
    plans = np.stack([positions, np.sin(positions)], axis=2).astype(np.float32)
    # Heads are trained with noise on what they read far ahead, so they keep to the middle.
    assert np.abs(head.predict(plans)[:, 0] - actions).max() < 0.35
    assert np.corrcoef(head.predict(plans)[:, 0], actions)[0, 1] > 0.98


def test_constraints_hold_in_environment_units(planner):
    fixed = Fixed([1.5], columns=[0], step=2)
    _, plans = make_plans(planner, constraints=[fixed, Bounds(high=1.6, columns=[0])])
    _, free = make_plans(planner)
    for plan in plans:
        assert plan.observations[2, 0] == np.float32(1.5)
        assert (plan.observations[1:, 0] <= 1.6).all()
    assert max(plan.observations[1:, 0].max() for plan in free) > 1.6


def test_a_fixed_value_moves_the_rest_of_the_plan(planner):
    observations = np.zeros((1, 2))
    ends = {}
    for target in (-0.7, 0.7):
        fixed = Fixed([target], columns=[0], step=-1)
        generator = torch.Generator().manual_seed(1)
        (plan,) = planner.plan(observations, None, generator, constraints=[fixed], num_candidates=32)
        ends[target] = plan
    assert ends[0.7].observations[2, 0] > ends[-0.7].observations[2, 0]
    far = with_settings(planner, {"controller.reads": "far"})
    actions = []
    for target in (-0.7, 0.7):
        generator = torch.Generator().manual_seed(1)
        actions.append(
            far.plan(observations, None, generator, constraints=[Fixed([target], columns=[0], step=-1)])[0].action[0]
        )
    assert actions[0] < 0 < actions[1]


def test_values_prefer_what_pays(checkpoint):
    for value in ("plan", "last"):
        settings = {"guidance.value": value, "selection.rule": "guide", "selection.num_candidates": 32}
        best = load_planner(checkpoint, with_overrides(CONFIG.planning, settings))
        mean = load_planner(checkpoint, with_overrides(CONFIG.planning, {**settings, "selection.rule": "mean"}))
        observations = np.array([[x, np.sin(x)] for x in np.linspace(-4, 0, 9)])
        chosen, averaged = (p.plan(observations, None, torch.Generator().manual_seed(2)) for p in (best, mean))
        assert all(plan.guide_score is not None for plan in chosen)
        assert all(plan.guide_score is None for plan in averaged)  # there is nothing to score with equal weights
        if value == "plan":
            moved = [
                np.mean([p.observations[-1, 0] - p.observations[0, 0] for p in plans]) for plans in (chosen, averaged)
            ]
            assert moved[0] > moved[1]


def test_a_value_of_jumps_is_judged_by_last_or_plan_alone(checkpoint):
    with pytest.raises(PlanningError, match="expected last or plan"):
        load_planner(checkpoint, with_overrides(CONFIG.planning, {"guidance.value": "observations"}))


def test_soft_averages_lie_between_the_mean_and_the_best(checkpoint):
    found = {}
    for name, settings in {
        "mean": {"selection.rule": "mean"},
        "warm": {"selection.rule": "soft", "selection.temperature": 1e6},
        "soft": {"selection.rule": "soft", "selection.temperature": 0.5},
        "cold": {"selection.rule": "soft", "selection.temperature": 1e-6},
        "best": {"selection.rule": "guide"},
    }.items():
        overrides = {"guidance.value": "plan", "selection.num_candidates": 16, **settings}
        planner = load_planner(checkpoint, with_overrides(CONFIG.planning, overrides))
        found[name] = make_plans(planner)[1]

    def stack(name):
        return np.stack([plan.observations for plan in found[name]]), np.stack([plan.action for plan in found[name]])

    for one, other, tolerance in (("mean", "warm", 1e-4), ("cold", "best", 1e-4)):
        for a, b in zip(stack(one), stack(other), strict=True):
            np.testing.assert_allclose(a, b, atol=tolerance)
    assert np.abs(stack("soft")[0] - stack("mean")[0]).max() > 1e-3
    assert np.abs(stack("soft")[0] - stack("best")[0]).max() > 1e-3


def test_one_candidate_is_its_own_average(planner):
    for rule in ("mean", "consistency"):
        plan = make_plans(with_settings(planner, {"selection.rule": rule, "selection.num_candidates": 1}))[1][0]
        if rule == "mean":
            first = plan
    np.testing.assert_array_equal(first.observations, plan.observations)
    np.testing.assert_array_equal(first.action, plan.action)


@given(
    arrays.arrays(float, (3, 5), elements=st.sampled_from([0.0, VIOLATION_TOLERANCE / 2, 0.3, 2.0, np.inf])),
    st.none() | arrays.arrays(float, (3, 5), elements=st.floats(-1e6, 1e6)),
    st.sampled_from(["soft", "mean"]),
    st.floats(1e-3, 1e3),
)
def test_weights_add_up_and_leave_out_what_violates_more(violations, scores, rule, temperature):
    weights = weigh(violations, scores, rule, temperature)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)
    for row, violated, own in zip(weights, violations, weights if scores is None else scores, strict=True):
        least = min(v if v > VIOLATION_TOLERANCE else 0.0 for v in violated)
        kept = np.array([(v if v > VIOLATION_TOLERANCE else 0.0) <= least for v in violated])
        assert (row[~kept] == 0).all()
        if rule == "soft" and scores is not None:
            order = np.argsort(own[kept])
            assert (np.diff(row[kept][order]) >= -1e-12).all()
        else:
            np.testing.assert_allclose(row[kept], 1 / kept.sum())


def test_averages_are_of_each_environment_alone():
    values = torch.arange(12.0).reshape(6, 2)
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.25, 0.5]])
    assert average(values, weights).tolist() == [[0.0, 1.0], [0.25 * 6 + 0.25 * 8 + 5, 0.25 * 7 + 0.25 * 9 + 5.5]]


def test_a_warm_start_stays_near_the_plan_it_continues(planner):
    _, plans = make_plans(planner)

    def spread(made):
        return np.mean([abs(a.observations[2, 0] - b.observations[2, 0]) for a, b in zip(made, plans, strict=True)])

    single = with_settings(planner, {"selection.num_candidates": 1})
    _, plans = make_plans(single)
    following = np.stack([interpolate(plan, CONFIG.env, np.array([1.0]))[0] for plan in plans])
    elapsed = np.ones(len(plans), dtype=int)
    warm = single.replan(plans, elapsed, following, None, torch.Generator().manual_seed(5), warm_start=0.1)
    fresh = single.plan(following, None, torch.Generator().manual_seed(5))
    assert spread(warm) < spread(fresh)
    assert all(plan.action is not None and plan.horizon == 4 for plan in warm)
    averaged = planner.replan(plans, elapsed, following, None, torch.Generator().manual_seed(5), warm_start=1 / 3)
    assert all(plan.action is not None for plan in averaged)


def test_policies_act_by_the_head_and_plan_at_every_step(planner):
    policy = PlanningPolicy(planner, torch.Generator().manual_seed(0), -1.0, 1.0)
    observations = np.array([[0.0, 0.0], [2.0, np.sin(2.0)]])
    policy.reset(observations)
    for step in range(5):
        actions = policy.act(observations)
        assert actions.dtype == np.float32
        np.testing.assert_array_equal(actions, np.clip([plan.action for plan in policy.plans], -1, 1))
        positions = observations[:, :1] + DRIFT * actions
        observations = np.concatenate([positions, np.sin(positions)], axis=1)
        assert policy.num_plans.tolist() == [step + 1, step + 1]


def test_a_head_needs_plans_at_every_step_and_its_companion(checkpoint, planner):
    for replanning in ({"replanning.interval": 2}, {"replanning": "never"}, {"replanning": "sooner"}):
        with pytest.raises(PlanningError, match=r"planning\.replanning: expected receding with interval 1"):
            with_settings(planner, replanning)
    with pytest.raises(PlanningError, match="no action heads; fit them with `diffplan calibrate`"):
        load_planner(checkpoint, companions=False)
    assert "action_heads" in find_needed(CONFIG, CONFIG.planning)
    with pytest.raises(ValueError, match="action of an action head"):
        ActionHeadController().reset([dataclasses.replace(make_plans(planner)[1][0], action=None)])


def test_planned_actions_last_from_their_step_to_the_next():
    plan = Plan(np.zeros((4, 2), np.float32), np.arange(4, dtype=np.float32)[:, None], 1, None, True, offsets=OFFSETS)
    controller = ActionController(CONFIG.env, -9.0, 9.0)
    controller.reset([plan])
    taken = []
    while not controller.has_ended(np.array([0]))[0]:
        taken.append(float(controller.act(np.zeros((1, 2)))[0, 0]))
    assert taken == [0, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3]


def test_jumps_are_interpolated_between_their_steps():
    positions = np.array([0.0, 1.0, 5.0, 0.0])
    plan = Plan(np.stack([positions, positions], axis=1), None, 1, None, True, offsets=OFFSETS)
    found = interpolate(plan, CONFIG.env, np.array([0, 0.5, 1, 2, 3, 5.5, 8, 20]))
    np.testing.assert_allclose(found[:, 0], [0, 0.5, 1, 3, 5, 2.5, 0, 0])


def test_a_perceptron_refuses_other_horizons():
    network = make_network(3, NetworkConfig(kind="mlp", dim=16), 4)
    assert network(torch.randn(2, 4, 3), torch.tensor([1])).shape == (2, 4, 3)
    assert (network(torch.randn(2, 4, 3), torch.tensor([1])) == 0).all()
    for horizon in (3, 5):
        with pytest.raises(ValueError, match="expected 4 steps"):
            network(torch.randn(2, horizon, 3), torch.tensor([1]))


def test_a_conditioned_perceptron_depends_on_its_condition():
    network = make_network(3, NetworkConfig(kind="mlp", dim=16, condition="returns"), 4)
    torch.nn.init.normal_(network.to_output[-1].weight)
    x = torch.randn(2, 4, 3)
    low, high = (network(x, torch.tensor([1]), condition=torch.full((2,), value)) for value in (0.0, 1.0))
    assert (low - high).abs().max() > 1e-4

"""Guides as the planner takes them, and what they decide."""

import numpy as np
import pytest
import torch
from straight_line_planner import (
    CONFIG,
    make_silent_planner,
    make_straight_planner,
    make_untrained_planner,
    make_ways,
    seeded,
    stack,
)

from diffplan.config import with_overrides
from diffplan.diffusion.guides import Function, KeepOut, SpeedLimit, WeightedSum
from diffplan.errors import ConfigError, PlanningError

OBSERVATIONS = np.array([[1.1, 1.03, 0.3, -0.2], [3.07, 2.9, -1.0, 4.9], [0.9, 2.2, 0.0, 0.0]])
GOALS = np.array([[3.0, 1.1], [1.01, 0.97], [2.2, 3.3]])


def make_planner(**settings):
    return make_untrained_planner(settings=with_overrides(CONFIG.planning, settings))


def plan(planner, horizons=(12,), seed=0, **asked):
    return planner.plan(OBSERVATIONS, GOALS, seeded(seed), horizons=horizons, **asked)


def mean_x(plans):
    return plans.positions[:, :, 0].mean(dim=1)


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ([KeepOut([2.0, 2.0], 0.5)], ["keep_out([2, 2], 0.5)"]),
        ([mean_x], ["mean(position[:, :, 0])"]),
        ([Function(mean_x)], [mean_x]),
        ([mean_x, KeepOut([2.0, 2.0], 0.5)], [WeightedSum(((1.0, Function(mean_x)), (1.0, KeepOut([2.0, 2.0], 0.5))))]),
        (["2 * goal_distance()"], ["goal_distance()", "goal_distance()"]),
    ],
)
def test_guides_are_objects_functions_or_texts(given, same):
    planner = make_planner(**{"selection.num_candidates": 2})
    free, one, other = (plan(planner, guides=guides) for guides in ((), given, same))
    np.testing.assert_allclose(stack(one), stack(other), atol=1e-5)
    assert np.abs(stack(one) - stack(free)).max() > 1e-3
    assert [p.guide_score for p in one] == pytest.approx([p.guide_score for p in other], rel=1e-4)


def test_guides_of_the_settings_act_where_none_are_given():
    text = "5 * mean(position[:, :, 0])"
    of_settings = plan(make_silent_planner(**{"guidance.guides": (text,), "guidance.scale": 0.5}))
    given = plan(make_silent_planner(**{"guidance.scale": 0.5}), guides=[text])
    np.testing.assert_array_equal(stack(of_settings), stack(given))
    assert stack(of_settings)[:, :, 0].mean() > stack(plan(make_silent_planner()))[:, :, 0].mean() + 0.1


def test_strength_is_the_one_asked_for_or_that_of_the_settings_or_1():
    guides = [mean_x]
    ones = [
        plan(make_silent_planner(), guides=guides),
        plan(make_silent_planner(**{"guidance.scale": 0.3}), guides=guides, guidance_scale=1.0),
        plan(make_silent_planner(**{"guidance.scale": 1.0}), guides=guides),
    ]
    for plans in ones:
        np.testing.assert_array_equal(stack(plans), stack(ones[0]))
    weaker = plan(make_silent_planner(**{"guidance.scale": 0.3}), guides=guides)
    free = plan(make_silent_planner())
    for low, middle, high in zip(
        *(stack(plans)[:, :, 0].mean(axis=1) for plans in (free, weaker, ones[0])), strict=True
    ):
        assert low < middle < high
    called = plan(make_silent_planner(**{"guidance.guides": ("mean(position[:, :, 0])",)}), guidance_scale=0.3)
    np.testing.assert_allclose(stack(weaker), stack(called), atol=1e-6)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm_solver"])
@pytest.mark.parametrize("num_candidates", [1, 3])
def test_without_strength_plans_are_those_without_guides_to_the_last_bit(sampler, num_candidates):
    planner = make_planner(**{"sampling.sampler": sampler, "selection.num_candidates": num_candidates})
    free = plan(planner, horizons=(4, 12))
    for asked in ({"guides": ()}, {"guides": [mean_x], "guidance_scale": 0.0}, {"guidance_scale": 0.0}):
        plans = plan(planner, horizons=(4, 12), **asked)
        for one, other in zip(free, plans, strict=True):
            np.testing.assert_array_equal(one.observations, other.observations)
            assert (other.guide_score is not None) == bool(asked.get("guides"))
    guided = make_planner(
        **{"sampling.sampler": sampler, "selection.num_candidates": num_candidates, "guidance.scale": 2.0}
    )
    np.testing.assert_array_equal(stack(plan(guided, guides=())), stack(plan(planner)))


def deepest(positions, velocities, seconds, center, radius):
    """By how much a path of cubics enters a disc, at 16 points of each step, written out."""
    depth = -np.inf
    for before, after, leaving, arriving in zip(
        positions[:-1], positions[1:], velocities[:-1], velocities[1:], strict=True
    ):
        for s in np.arange(17) / 16:
            point = (
                (1 - 3 * s**2 + 2 * s**3) * before
                + (3 * s**2 - 2 * s**3) * after
                + (s - 2 * s**2 + s**3) * seconds * leaving
                + (s**3 - s**2) * seconds * arriving
            )
            depth = max(depth, radius - np.linalg.norm(point - center))
    return max(depth, 0.0)


@pytest.mark.parametrize("horizons", [(12,), (4, 12)])
@pytest.mark.parametrize("guidance_scale", [0.0, 0.5])
@pytest.mark.parametrize("action_dim", [0, 2])
def test_score_and_violation_are_those_of_the_plan_that_is_returned(horizons, guidance_scale, action_dim):
    columns = "actions_observations" if action_dim else "observations"
    config = with_overrides(CONFIG, {"windows.columns": columns})
    planner = make_untrained_planner(
        config, with_overrides(CONFIG.planning, {"selection.num_candidates": 3}), action_dim=action_dim
    )
    guides = [mean_x, SpeedLimit(3.0), "keep_out([2, 2], 0.4, margin=0.0)"]
    plans = plan(planner, horizons, guides=guides, guidance_scale=guidance_scale)
    assert any(p.violation > 0.1 for p in plans)
    for p in plans:
        positions, velocities = p.observations[:, :2].astype(np.float64), p.observations[:, 2:].astype(np.float64)
        excess = np.maximum(np.linalg.norm(velocities, axis=1) - 3.0, 0)
        depth = deepest(positions, velocities, planner.model.step_seconds, np.array([2.0, 2.0]), 0.4)
        assert p.violation == pytest.approx(excess.max() + depth, abs=1e-3)
        (alone,) = planner.plan(
            OBSERVATIONS[:1], GOALS[:1], seeded(), horizons=(12,), guides=[mean_x], guidance_scale=guidance_scale
        )
        assert alone.guide_score == pytest.approx(alone.observations[:, 0].mean(), rel=1e-5)
        assert alone.violation == 0.0


def test_goals_of_a_guide_are_those_of_each_plan_in_batches_of_several_horizons():
    planner = make_planner(**{"selection.num_candidates": 2})
    plans = plan(planner, (4, 8, 12), guides=["goal_distance()"], max_speed_errors=np.array([1e9, 0.0, 1e9]))
    assert [p.horizon for p in plans] == [4, 12, 4]
    for p, goal in zip(plans, GOALS, strict=True):
        distance = np.linalg.norm(p.observations[:, :2] - goal, axis=1).mean()
        assert p.guide_score == pytest.approx(-distance, abs=2e-3)


def mean_speed(plans):
    return plans.velocities[:, :, 0].mean(dim=1)


def test_the_guide_selects_among_consistent_candidates_where_it_is_to():
    # Offsets of the speed are speed errors here: the third is inconsistent, however high it scores.
    offsets, settings = (0.25, 0.5, 3.0), {"selection.num_candidates": 3, "horizon.max_speed_error": 1.0}
    ways = make_ways([8, 8])

    def speeds(selection, **asked):
        planner, _ = make_straight_planner(offsets, **{"selection.rule": selection}, **settings)
        plans = planner.plan_horizon(*ways, 8, seeded(), guidance_scale=0.0, **asked)
        return [float(p.observations[3, 2]) for p in plans]

    assert speeds("guide", guides=[mean_speed]) == pytest.approx([2.5, 2.5], rel=1e-4)
    assert speeds("guide", guides=[lambda p: -mean_speed(p)]) == pytest.approx([2.25, 2.25], rel=1e-4)
    assert speeds("consistency", guides=[mean_speed]) == pytest.approx([2.25, 2.25], rel=1e-4)
    # Guides of the settings select even where their strength is 0.
    planner, _ = make_straight_planner(
        offsets, **{"selection.rule": "guide", "guidance.guides": ("mean(velocity[:, :, 0])",)}, **settings
    )
    (found,) = planner.plan_horizon(*make_ways([8]), 8, seeded())
    assert found.observations[3, 2] == pytest.approx(2.5, rel=1e-4)


def test_guides_have_no_say_among_inconsistent_candidates():
    planner, _ = make_straight_planner(
        (1.5, 2.5), **{"selection.rule": "guide", "selection.num_candidates": 2, "horizon.max_speed_error": 1.0}
    )
    (found,) = planner.plan_horizon(*make_ways([8]), 8, seeded(), guides=[mean_speed], guidance_scale=0.0)
    assert not found.consistent
    assert found.speed_error == pytest.approx(1.5, rel=1e-3)


@pytest.mark.parametrize("horizons", [(12,), (4, 12)])
def test_guided_plans_are_moved_out_of_zones_to_the_end(horizons):
    config = with_overrides(CONFIG, {"windows.columns": "observations"})
    planner = make_untrained_planner(
        config, with_overrides(CONFIG.planning, {"selection.num_candidates": 1}), action_dim=0
    )
    asked = {"guides": ["keep_out([2, 2], 0.4, margin=0.0)"]}
    scored = plan(planner, horizons, guidance_scale=0.0, **asked)
    assert any(p.violation > 0.1 for p in scored)
    bent = plan(planner, horizons, guidance_scale=1e-6, **asked)  # too weak to bend anything by itself
    for p in bent:
        positions, velocities = p.observations[:, :2].astype(np.float64), p.observations[:, 2:].astype(np.float64)
        assert deepest(positions, velocities, planner.model.step_seconds, np.array([2.0, 2.0]), 0.4) <= 1e-4
        assert p.violation <= 1e-4
    for b, p in zip(bent, scored, strict=True):
        if p.violation == 0:  # those that keep out anyway stay as they were
            np.testing.assert_allclose(b.observations, p.observations, atol=1e-3)


@pytest.mark.parametrize("selection", ["consistency", "guide"])
def test_a_candidate_that_keeps_a_limit_wins_over_a_more_consistent_one(selection):
    observations, goals = make_ways([8])
    observations[0, 2] = 1.0  # so the way needs twice that speed
    planner, _ = make_straight_planner(
        (1.0, 0.0), **{"selection.rule": selection, "selection.num_candidates": 2, "horizon.max_speed_error": 2.0}
    )
    (free,) = planner.plan_horizon(observations, goals, 8, seeded())
    assert free.observations[3, 2] == pytest.approx(2.0)
    (kept,) = planner.plan_horizon(observations, goals, 8, seeded(), guides=[SpeedLimit(1.5)], guidance_scale=0.0)
    assert kept.observations[3, 2] == pytest.approx(1.0)
    assert kept.speed_error > free.speed_error
    assert kept.violation == 0
    (broken,) = planner.plan_horizon(observations, goals, 8, seeded(), guides=[SpeedLimit(0.5)], guidance_scale=0.0)
    assert broken.violation == pytest.approx(0.5, abs=1e-3)  # the least there is


def at_least(horizon):
    """A limit on the horizon."""

    def violation(plans):
        missing = max(horizon - plans.transitions.shape[1], 0)
        return torch.full((len(plans.transitions),), float(missing))

    return Function(mean_x, violation)


def test_a_plan_that_violates_a_limit_is_tried_with_longer_horizons():
    planner, _ = make_straight_planner(**{"horizon.max_speed_error": 1e9})
    assert [p.horizon for p in planner.plan(*make_ways([8, 12]), seeded())] == [4, 4]
    asked = {"guides": [at_least(10)], "guidance_scale": 0.0}
    plans = planner.plan(*make_ways([8, 12]), seeded(), **asked)
    assert [(p.horizon, p.violation) for p in plans] == [(12, 0.0), (12, 0.0)]
    # Many environments are not drawn together with other horizons.
    plans = planner.plan(*make_ways([8] * 40), seeded(), **asked)
    assert {p.horizon for p in plans} == {12}


def test_where_no_horizon_keeps_a_limit_the_least_violation_is_taken():
    planner, _ = make_straight_planner(**{"horizon.max_speed_error": 1e9})
    nearest = Function(mean_x, lambda p: torch.full((len(p.transitions),), abs(p.transitions.shape[1] - 9) + 1.0))
    (found,) = planner.plan(*make_ways([8]), seeded(), guides=[nearest], guidance_scale=0.0)
    assert (found.horizon, found.violation) == (8, 2.0)


def test_guides_of_noisy_plans_are_told_how_noisy_they_are_and_where_plans_end():
    seen = []

    def watch(plans):
        seen.append((plans.diffusion_step, tuple(plans.transitions.shape), plans.goals))
        return mean_x(plans)

    planner = make_planner(**{"selection.num_candidates": 2})
    plan(planner, (4, 12), guides=[watch])
    noisy = [step for step, _, _ in seen if step >= 0]
    assert noisy
    assert max(noisy) < CONFIG.diffusion.num_diffusion_steps
    assert {shape[1:] for _, shape, _ in seen} == {(4, 4), (12, 4)}  # never what stands behind a plan
    for _, shape, goals in seen:
        assert len(goals) == shape[0]


@pytest.mark.parametrize("target", ["noisy", "denoised", "network"])
@pytest.mark.parametrize("horizons", [(12,), (4, 12)])
def test_every_target_moves_plans_to_higher_scores(target, horizons):
    planner = make_silent_planner(**{"guidance.target": target})
    limits = np.array([1e9, 0.0, 1e9])
    free = plan(planner, horizons, max_speed_errors=limits)
    guided = plan(planner, horizons, max_speed_errors=limits, guides=["5 * mean(position[:, :, 0])"])
    assert {p.horizon for p in guided} == set(horizons)
    for low, high in zip(free, guided, strict=True):
        assert high.observations[:, 0].mean() > low.observations[:, 0].mean() + 0.01


@pytest.mark.parametrize(
    ("guides", "error", "message"),
    [
        (["keep_ot([1, 2], 1)"], ConfigError, "Did you mean 'keep_out'"),
        (["position"], ConfigError, "expected one number per plan"),
        (["no_such_module:guide"], ConfigError, "cannot import no_such_module"),
        ([lambda plans: plans.positions], PlanningError, "one number per plan"),
        (["keep_out([1, 2, 3], 0.5)"], PlanningError, "expected 2 coordinates"),
        ("keep_out([1, 2], 0.5)", PlanningError, r"guides: expected several in a list, got the text .*; write \['keep"),
        ([3], PlanningError, "guides: guide: expected an object with `score` or a function of plans, got int"),
        ([mean_x, None], PlanningError, "got NoneType"),
        ([SpeedLimit], PlanningError, "got the class SpeedLimit; call it"),
    ],
)
def test_what_is_no_guide_is_refused_in_one_line(guides, error, message):
    with pytest.raises(error, match=message) as caught:
        plan(make_planner(), guides=guides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", [-1.0, -1e-9, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("guides", [None, [], [mean_x]])
def test_a_strength_that_is_none_is_refused_in_one_line(scale, guides):
    planner = make_planner()
    for ask in (
        lambda: plan(planner, guides=guides, guidance_scale=scale),
        lambda: planner.replan(
            plan(planner), np.zeros(3, int), OBSERVATIONS, GOALS, seeded(), guides=guides, guidance_scale=scale
        ),
    ):
        with pytest.raises(PlanningError, match="guidance_scale: expected a number >= 0, got ") as caught:
            ask()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num_candidates", [1, 4])
@pytest.mark.parametrize("selection", ["consistency", "guide"])
def test_a_violation_that_is_no_number_is_not_kept(num_candidates, selection):
    """Among candidates and among horizons, any that tells is better than one that does not."""
    planner, network = make_straight_planner(
        (0.0, 0.1, 0.2, 0.3),
        **{"horizon.max_speed_error": 1e9, "selection.num_candidates": num_candidates, "selection.rule": selection},
    )

    def tell_of_long_ones(plans):
        short = plans.transitions.shape[1] < 12
        return torch.full((len(plans.transitions),), torch.nan if short else 0.25)

    asked = {"guides": [Function(mean_x, tell_of_long_ones)], "guidance_scale": 0.0}
    (found,) = planner.plan(*make_ways([8]), seeded(), **asked)
    assert (found.horizon >= 12, found.violation) == (True, 0.25)
    (lost,) = planner.plan(*make_ways([8]), seeded(), horizons=(4, 8), **asked)
    assert lost.violation == np.inf
    assert {horizon for batch in network.batches for horizon in batch} == {4, 8, 12, 16}  # none was the end of it

    def tell_of_fast_ones(plans):
        slow = plans.velocities[:, -1, 0] < 2.15  # the network makes candidates faster, one after the other
        return torch.where(slow, torch.nan, 0.5)

    asked["guides"] = [Function(mean_x, tell_of_fast_ones)]
    (found,) = planner.plan(*make_ways([8]), seeded(), horizons=(8,), **asked)
    assert found.violation == (0.5 if num_candidates == 4 else np.inf)


def test_a_guide_to_the_goal_needs_one():
    with pytest.raises(PlanningError, match="goal_distance: expected plans with goals"):
        make_planner(**{"guidance.scale": 1.0}).plan(OBSERVATIONS, None, seeded())
    assert len(make_planner(**{"guidance.scale": 1.0}).plan(OBSERVATIONS, None, seeded(), guides=[mean_x])) == 3

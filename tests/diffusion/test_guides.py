import dataclasses
import math
import pickle
import re

import pytest
import torch
from plan_batches import STEP_SECONDS, draw_x, place, to_plans

from diffplan.config import NetworkConfig
from diffplan.diffusion.guidance import Guide, LimitingGuide, takes_lengths
from diffplan.diffusion.guides import (
    Function,
    GoalDistance,
    KeepIn,
    KeepOut,
    KeepOutBox,
    Smoothness,
    SpeedLimit,
    TargetRegion,
    Value,
    WeightedSum,
    as_guide,
    weighted_sum,
)
from diffplan.errors import PlanningError
from diffplan.networks.value_network import ValueNetwork

READY = [
    GoalDistance(),
    KeepOut((1.0, 2.0), 1.5),
    KeepOut((1.0, 2.0), 1.5, margin=1.0),
    KeepOutBox((0.0, 0.5), (2.5, 4.0)),
    TargetRegion((0.5, 1.5), 0.5),
    TargetRegion((0.5, 1.5), 0.1, at="any"),
    KeepIn((0.5, 1.5), 0.5),
    SpeedLimit(1.0),
    Smoothness(),
    Function(lambda plans: plans.actions.square().mean(dim=(1, 2))),
    weighted_sum((2.0, KeepOut((1.0, 2.0), 1.5)), (-0.5, SpeedLimit(1.0)), GoalDistance()),
]


def describe(guide):
    """A name that is the same in every process."""
    return re.sub(r" at 0x\w+", "", repr(guide))


LIMITS = [guide for guide in READY if isinstance(guide, LimitingGuide)]
GOALS = torch.tensor([[0.3, -0.4], [2.0, 1.0], [-1.0, 5.0]], dtype=torch.float64)


@pytest.mark.parametrize("velocities", [True, False])
@pytest.mark.parametrize("guide", READY, ids=describe)
def test_gradients_are_those_of_finite_differences(guide, velocities):
    x = draw_x(3, 5).requires_grad_(True)

    def score(x):
        return guide.score(to_plans(x, goals=GOALS, velocities=velocities))

    assert torch.autograd.gradcheck(score, (x,))
    (gradient,) = torch.autograd.grad(score(x).sum(), x)
    assert (gradient.abs().amax(dim=(1, 2)) > 0).any()


@pytest.mark.parametrize("guide", READY, ids=describe)
def test_plans_are_scored_each_for_itself(guide):
    x, goals = draw_x(3, 6, seed=1), GOALS
    together = to_plans(x, goals=goals)
    for i in range(3):
        alone = to_plans(x[i : i + 1], goals=goals[i : i + 1])
        torch.testing.assert_close(guide.score(together)[i : i + 1], guide.score(alone), rtol=1e-12, atol=1e-12)
        if isinstance(guide, LimitingGuide):
            torch.testing.assert_close(guide.violation(together)[i : i + 1], guide.violation(alone))


@pytest.mark.parametrize("velocities", [True, False])
@pytest.mark.parametrize("guide", [guide for guide in READY if takes_lengths(guide)], ids=describe)
def test_plans_of_several_horizons_are_scored_each_for_itself(guide, velocities):
    lengths, x = torch.tensor([1, 6, 3, 2]), draw_x(4, 6, seed=1)
    goals = torch.cat([GOALS, GOALS[:1]])

    def at_once(x):
        plans = to_plans(x, goals=goals, velocities=velocities)
        return dataclasses.replace(plans, lengths=lengths)

    (gradient,) = torch.autograd.grad(guide.score(at_once(leaf := x.clone().requires_grad_(True))).sum(), leaf)
    for i, length in enumerate(lengths.tolist()):
        alone = x[i : i + 1, :length].clone().requires_grad_(True)
        plan = to_plans(alone, goals=goals[i : i + 1], velocities=velocities)
        torch.testing.assert_close(guide.score(at_once(x))[i : i + 1], guide.score(plan))
        (expected,) = torch.autograd.grad(guide.score(plan).sum(), alone)
        torch.testing.assert_close(gradient[i : i + 1, :length], expected)
        assert (gradient[i, length:] == 0).all()
        if isinstance(guide, LimitingGuide):
            torch.testing.assert_close(guide.violation(at_once(x))[i : i + 1], guide.violation(plan))


def test_ready_guides_take_plans_of_several_horizons_and_so_do_their_sums():
    assert all(takes_lengths(guide) for guide in READY if not isinstance(guide, Function))
    assert not takes_lengths(Function(lambda plans: plans.positions.sum(dim=(1, 2))))
    assert not takes_lengths(weighted_sum(GoalDistance(), lambda plans: plans.positions.sum(dim=(1, 2))))


@pytest.mark.parametrize("guide", LIMITS, ids=describe)
def test_violations_are_not_negative(guide):
    assert (guide.violation(to_plans(draw_x(20, 4), goals=None)) >= 0).all()


@pytest.mark.parametrize("guide", READY, ids=describe)
def test_plans_of_one_step_can_be_scored(guide):
    for velocities in (True, False):
        plans = to_plans(draw_x(3, 1), goals=GOALS, velocities=velocities)
        assert torch.isfinite(guide.score(plans)).all()
        if isinstance(guide, LimitingGuide):
            assert torch.isfinite(guide.violation(plans)).all()


def test_goal_distance_is_minus_the_mean_distance():
    plans = place([[[0, 0], [3, 0], [3, 4]], [[0, 0], [0, 0], [3, 4]]], goals=[[3, 4], [0, 0]])
    torch.testing.assert_close(GoalDistance().score(plans), torch.tensor([-3.0, -5 / 3]).double(), atol=1e-3, rtol=0)


def test_goal_distance_has_a_finite_slope_at_the_goal():
    x = place([[[3, 4], [0, 0]]]).normalized.requires_grad_(True)
    (gradient,) = torch.autograd.grad(
        GoalDistance().score(to_plans(x, goals=torch.tensor([[3.0, 4.0]]).double())).sum(), x
    )
    assert torch.equal(gradient[0, 0], torch.zeros(5).double())
    torch.testing.assert_close(gradient[0, 1, [1, 3]], 0.5 * torch.tensor([2 * 0.6, 4 * 0.8]).double())


def test_goal_distance_without_goals_is_refused():
    with pytest.raises(ValueError, match=r"^guide goal_distance: expected plans with goals, got plans without; .*$"):
        GoalDistance().score(place([[[0, 0]]]))


def test_keep_out_counts_depth_in_zone_and_margin_along_the_path():
    plans = place([[[0, 0], [4, 0]], [[0, 9], [4, 9]]])
    guide = KeepOut((2.0, 0.0), 1.0, margin=0.5)
    # Points at 0, 1, 2, 3, 4: depths 0, 0.5, 1.5, 0.5, 0, four to a step.
    torch.testing.assert_close(guide.score(plans), torch.tensor([-(0.25 + 2.25 + 0.25) / 4, 0]).double())
    torch.testing.assert_close(guide.violation(plans), torch.tensor([1.0, 0.0]).double())


def test_margins_are_penalised_but_violate_nothing():
    plans = place([[[0, 0], [4, 0]]])
    for guide in (KeepOut((2.0, 1.5), 1.4, margin=0.5), KeepOutBox((1.0, 0.1), (3.0, 1.0), margin=0.5)):
        assert guide.score(plans) < 0
        assert guide.violation(plans).item() == 0


def test_gradients_lead_out_of_zones():
    start = torch.stack([torch.linspace(0, 4, 17), torch.full((17,), 0.3)], dim=-1)[None]
    for guide in (KeepOut((2.0, 0.0), 0.5), KeepOutBox((1.5, -0.5), (2.5, 0.5))):
        x = place(start).normalized
        before = guide.violation(to_plans(x, velocities=False))
        for _ in range(300):
            leaf = x.clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(guide.score(to_plans(leaf, velocities=False)).sum(), leaf)
            x = x + 0.2 * gradient
        assert before > 0.1
        assert guide.violation(to_plans(x, velocities=False)).item() == 0


@pytest.mark.parametrize("guide", [KeepOut((5.0, 0.0), 0.4), KeepOutBox((4.6, -1.0), (5.4, 1.0))], ids=describe)
def test_zones_between_two_steps_are_not_jumped_over(guide):
    plans = place([[[3, 0], [7, 0]], [[3, 3], [7, 3]]])
    torch.testing.assert_close(guide.violation(plans), torch.tensor([0.4, 0.0]).double())
    assert guide.score(plans)[0] < 0


def test_the_path_between_steps_bends_with_the_velocities():
    # From (0, 0) to (1, 0) in half a second, leaving and arriving such that the middle is at y = (vy0 - vy1) / 16.
    plans = place([[[0, 0], [1, 0]]], [[[2, 8], [2, -8]]])
    assert KeepOut((0.5, 1.0), 0.25, margin=0.0).violation(plans).item() == pytest.approx(0.25)
    assert KeepOut((0.5, 0.0), 0.25, margin=0.0).violation(plans).item() == 0
    straight = place([[[0, 0], [1, 0]]])
    assert KeepOut((0.5, 0.0), 0.25).violation(straight).item() == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("point", "distance"),
    [((0, 0), -1), ((0.5, 0), -0.5), ((0.5, 1.9), -0.1), ((1, 1), 0), ((3, 0), 2), ((4, 6), 5), ((-4, -6), 5)],
)
def test_distances_to_boxes(point, distance):
    box = KeepOutBox((-1.0, -2.0), (1.0, 2.0))
    got = box.distance(torch.tensor([[point]], dtype=torch.float64))
    assert got.item() == pytest.approx(distance)


def test_target_regions_at_the_end_at_any_time_and_all_the_time():
    plans = place([[[0, 0], [4, 0]], [[4, 0], [4, 3]], [[0.5, 0], [0.2, 0.3]]])
    scores, violations = {}, {}
    for at in ("end", "any", "all"):
        guide = TargetRegion((0.0, 0.0), 1.0, at=at)
        scores[at], violations[at] = guide.score(plans), guide.violation(plans)
    torch.testing.assert_close(scores["end"], -torch.tensor([9.0, 16.0, 0.0]).double())
    torch.testing.assert_close(scores["any"], -torch.tensor([0.0, 9.0, 0.0]).double())
    assert scores["all"][0].item() == pytest.approx(-(0 + 0 + 1 + 4 + 9) / 5)
    assert torch.equal(violations["end"], torch.tensor([3.0, 4.0, 0.0]).double())
    assert torch.equal(violations["any"], torch.tensor([0.0, 3.0, 0.0]).double())
    assert torch.equal(violations["all"], torch.tensor([3.0, 4.0, 0.0]).double())
    assert torch.equal(KeepIn((0.0, 0.0), 1.0).score(plans), scores["all"])


def test_speed_limits():
    plans = place([[[0, 0], [0, 0]]] * 2, [[[3, 4], [0, 0]], [[1, 0], [0, 2]]])
    guide = SpeedLimit(2.0)
    torch.testing.assert_close(guide.score(plans), torch.tensor([-4.5, 0.0]).double())
    assert torch.equal(guide.violation(plans), torch.tensor([3.0, 0.0]).double())
    moving = place([[[0, 0], [0, 3], [0, 3]]])
    assert guide.violation(moving).item() == pytest.approx(3 / STEP_SECONDS - 2)
    assert guide.score(moving).item() == pytest.approx(-((3 / STEP_SECONDS - 2) ** 2) / 2)


def test_smoothness_is_minus_the_mean_squared_acceleration():
    plans = place([[[0, 0]] * 3], [[[0, 0], [3, 4], [3, 4]]])
    assert Smoothness().score(plans).item() == pytest.approx(-((5 / STEP_SECONDS) ** 2) / 2)
    times = STEP_SECONDS * torch.arange(6).double()
    falling = torch.stack([1.5 * times**2, -2 * times**2], dim=-1)[None]
    assert Smoothness().score(place(falling)).item() == pytest.approx(-25)
    velocities = torch.stack([3 * times, -4 * times], dim=-1)[None]
    assert Smoothness().score(place(falling, velocities)).item() == pytest.approx(-25)


@pytest.mark.parametrize(
    ("result", "got"),
    [
        (lambda plans: plans.positions.sum(), r"shape \[\]"),
        (lambda plans: plans.positions.sum(dim=2), r"shape \[2, 3\]"),
        (lambda plans: 1.0, "float"),
        (lambda plans: None, "NoneType"),
    ],
)
def test_functions_that_do_not_give_one_number_per_plan_are_refused(result, got):
    message = rf"^guide <lambda>: expected a tensor of one number per plan, shape \[2\], got {got}$"
    with pytest.raises(ValueError, match=message):
        Function(result).score(place([[[0, 0]] * 3] * 2))
    with pytest.raises(ValueError, match=message):
        Function(lambda plans: plans.positions.sum(dim=(1, 2)), result).violation(place([[[0, 0]] * 3] * 2))


def test_functions_state_limits_only_if_they_are_given_one():
    plans = place([[[1, 2]], [[3, 4]]])
    first = Function(lambda plans: plans.positions[:, -1, 0])
    assert torch.equal(first.score(plans), torch.tensor([1.0, 3.0]).double())
    assert torch.equal(first.violation(plans), torch.zeros(2).double())
    limited = dataclasses.replace(first, violation_function=lambda plans: plans.positions[:, -1, 1])
    assert torch.equal(limited.violation(plans), torch.tensor([2.0, 4.0]).double())


def test_values_are_of_noisy_plans_in_model_space():
    seen = []

    def network(x, diffusion_step):
        seen.append((x, diffusion_step))
        return x[:, 0, 0] if x.shape[1] else x

    x = draw_x(3, 4)
    assert torch.equal(Value(network).score(to_plans(x, diffusion_step=5)), x[:, 0, 0])
    Value(network).score(to_plans(x))
    assert all(torch.equal(given, x) for given, _ in seen)
    assert [steps.tolist() for _, steps in seen] == [[5, 5, 5], [0, 0, 0]]
    with pytest.raises(ValueError, match=r"^guide network: expected a tensor of one number per plan"):
        Value(network).score(to_plans(x[:, :0]))


def test_the_value_network_guides():
    torch.manual_seed(0)
    network = ValueNetwork(5, NetworkConfig(dim=8, dim_mults=(1, 2)))
    x = draw_x(2, 8).float().requires_grad_(True)
    scores = Value(network).score(to_plans(x, diffusion_step=3))
    assert torch.equal(scores, network(x, torch.tensor([3, 3])))
    (gradient,) = torch.autograd.grad(scores.sum(), x)
    assert (gradient.abs().amax(dim=(1, 2)) > 0).all()


def test_sums_weigh_scores_but_not_violations():
    plans = to_plans(draw_x(4, 5), goals=draw_x(4, 1)[:, 0, :2])
    zone, limit = KeepOut((1.0, 2.0), 1.5), SpeedLimit(1.0)
    total = weighted_sum((3.0, zone), (-0.5, limit), GoalDistance(), lambda plans: plans.actions.sum(dim=(1, 2)))
    expected = 3 * zone.score(plans) - 0.5 * limit.score(plans) + GoalDistance().score(plans)
    torch.testing.assert_close(total.score(plans), expected + plans.actions.sum(dim=(1, 2)))
    torch.testing.assert_close(total.violation(plans), zone.violation(plans) + limit.violation(plans))
    assert torch.equal(WeightedSum(()).score(plans), torch.zeros(4).double())


def test_guides_from_objects_and_functions():
    guide = KeepOut((1.0, 2.0), 0.5)
    assert as_guide(guide) is guide
    assert as_guide(math.sqrt) == Function(math.sqrt)
    assert all(isinstance(ready, Guide) for ready in READY)
    with pytest.raises(ValueError, match=r"^guide: expected an object, got the class KeepOut; call it$"):
        as_guide(KeepOut)
    with pytest.raises(ValueError, match=r"^guide: expected an object with `score` or a function of plans, got int$"):
        as_guide(3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KeepOut((0.0,), -1.0), "keep_out: expected a radius of at least 0, got -1.0"),
        (lambda: KeepOut((0.0,), 1.0, margin=-0.1), "keep_out: expected a margin of at least 0"),
        (lambda: KeepOutBox((0.0, 1.0), (1.0, 1.0)), "keep_out_box: expected corners low < high on every axis"),
        (lambda: KeepOutBox((0.0,), (1.0, 1.0)), "keep_out_box: expected corners low < high on every axis"),
        (lambda: TargetRegion((0.0,), -1.0), "target_region: expected a radius of at least 0"),
        (lambda: SpeedLimit(-1.0), "speed_limit: expected a speed of at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("guide", [KeepOut((1.0,), 1.0), KeepOutBox((1.0,), (2.0,)), KeepIn((1.0, 2.0, 3.0), 1.0)])
def test_coordinates_of_another_space_are_refused(guide):
    with pytest.raises(PlanningError, match=r"^guide \w+: expected 2 coordinates, those of a position, got \[1.0.*\]$"):
        guide.score(place([[[0, 0]]]))


def test_guides_survive_pickling():
    for guide in (READY[1], READY[3], READY[5], READY[6], READY[10]):
        assert pickle.loads(pickle.dumps(guide)) == guide

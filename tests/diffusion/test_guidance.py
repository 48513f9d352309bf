import dataclasses

import pytest
import torch
from plan_batches import LAYOUT, OFFSET, UNITS, draw_x, to_plans

from diffplan.diffusion.constraints import Constraints, fix, no_constraints
from diffplan.diffusion.guidance import Guidance, PlanBatch
from diffplan.diffusion.guides import Function, KeepOut, SpeedLimit, weighted_sum
from diffplan.diffusion.samplers import sample_ddim, sample_ddpm
from diffplan.diffusion.schedule import make_cosine_schedule

HORIZON = 4
TARGET = draw_x(1, HORIZON, seed=7)[0]
SCHEDULE = make_cosine_schedule(12)


def view(x, rows, diffusion_step):
    return to_plans(x, diffusion_step=diffusion_step)


def bowl(plans):
    """J = -1/2 |plan - target|² in environment units; its gradient in model space is `bowl_gradient`."""
    return -0.5 * (plans.transitions - TARGET[: plans.transitions.shape[1]]).square().sum(dim=(1, 2))


def bowl_gradient(x):
    return -UNITS * (x * UNITS + OFFSET - TARGET[: x.shape[1]])


BOWL = Guidance(Function(bowl), view, scale=0.02)


def test_plans_know_their_columns():
    plans = to_plans(draw_x(2, HORIZON))
    x = plans.transitions
    assert torch.equal(plans.observations, x[:, :, 1:])
    assert torch.equal(plans.actions, x[:, :, :1])
    assert torch.equal(plans.positions, x[:, :, [1, 3]])
    assert torch.equal(plans.velocities, x[:, :, [2, 4]])
    assert plans.times.tolist() == [0, 0.5, 1, 1.5]
    assert plans.path(3).shape == (2, 10, 2)
    assert torch.equal(plans.path(3)[:, ::3], plans.positions)


def test_paths_are_the_cubics_of_positions_and_velocities():
    seconds = torch.linspace(0, 1.5, 13).double()
    x = torch.zeros(1, HORIZON, 5).double()
    times = 0.5 * torch.arange(HORIZON)
    x[0, :, 1], x[0, :, 2] = times**3 - times, 3 * times**2 - 1
    x[0, :, 3], x[0, :, 4] = 2 - times**2, -2 * times
    plans = PlanBatch(x, x, LAYOUT, (0, 2), (1, 3), 0.5)
    torch.testing.assert_close(plans.path()[0], torch.stack([seconds**3 - seconds, 2 - seconds**2], dim=-1))


@pytest.mark.parametrize("num_guide_steps", [1, 3])
@pytest.mark.parametrize(("scale_by_variance", "factor"), [(True, 0.02 * 0.3), (False, 0.02)])
def test_moves_are_gradient_steps_in_model_space(num_guide_steps, scale_by_variance, factor):
    guidance = dataclasses.replace(BOWL, num_guide_steps=num_guide_steps, scale_by_variance=scale_by_variance)
    x = draw_x(3, HORIZON)
    expected = x
    for _ in range(num_guide_steps):
        expected = expected + factor * bowl_gradient(expected)
    moved = guidance.move(x, 0.3, 5)
    torch.testing.assert_close(moved, expected)
    assert not moved.requires_grad
    assert (guidance.score(moved, 5) > guidance.score(x, 5)).all()


def test_clean_plans_stay():
    x = draw_x(3, HORIZON)
    assert torch.equal(dataclasses.replace(BOWL, scale_by_variance=False).move(x, 0.0, -1), x)


def test_views_are_told_the_diffusion_step():
    seen = []
    guidance = dataclasses.replace(BOWL, view=lambda x, rows, step: seen.append((rows, step)) or view(x, rows, step))
    guidance.move(draw_x(2, HORIZON), 0.3, 5)
    guidance.score(draw_x(2, HORIZON), 7)
    guidance.violation(draw_x(2, HORIZON))
    guidance.through(lambda x: x, draw_x(2, HORIZON), 3, None)
    assert seen == [(None, 5), (None, 7), (None, -1), (None, -1)]


def test_guides_act_at_their_target_down_to_their_last_step():
    guidance = dataclasses.replace(BOWL, target="denoised", stop_step=3)
    assert [guidance.acts_on("denoised", step) for step in (11, 3, 2, 0)] == [True, True, False, False]
    assert not guidance.acts_on("noisy", 11)
    assert not dataclasses.replace(guidance, scale=0.0).acts_on("denoised", 11)
    later = dataclasses.replace(guidance, start_step=7)
    assert [later.acts_on("denoised", step) for step in (11, 8, 7, 3, 2)] == [False, False, True, True, False]


class OnlyRanks:
    """Scores, but has no gradient."""

    has_gradient = False

    def score(self, plans):
        raise AssertionError("asked for a gradient that it does not have")


def test_what_only_ranks_is_not_asked_for_a_gradient():
    x = draw_x(2, HORIZON)
    alone = dataclasses.replace(BOWL, guide=OnlyRanks())
    assert torch.equal(alone.move(x, 0.3, 5), x)
    both = dataclasses.replace(BOWL, guide=weighted_sum(BOWL.guide, OnlyRanks()))
    torch.testing.assert_close(both.move(x, 0.3, 5), BOWL.move(x, 0.3, 5))
    assert both.guide.moving.terms == ((1.0, BOWL.guide),)
    with pytest.raises(AssertionError, match="asked for a gradient"):
        both.score(x, -1)


def test_what_is_fixed_stays_fixed_between_the_steps_of_a_guide():
    """Its second step starts from the first one with what is fixed restored, not from where the guide moved it."""
    x, kept = draw_x(2, HORIZON), 7.0

    def project(plans):
        fixed = plans.clone()
        fixed[:, 0] = kept
        return fixed

    twice = dataclasses.replace(BOWL, num_guide_steps=2)
    by_hand = project(BOWL.move(project(BOWL.move(x, 0.3, 5)), 0.3, 5))
    torch.testing.assert_close(twice.move(x, 0.3, 5, None, project), by_hand)


def test_long_gradients_are_shortened_plan_by_plan():
    x = torch.stack([(TARGET - OFFSET) / UNITS, draw_x(1, HORIZON)[0]])
    x[0, 0, 0] += 0.5  # a gradient of norm 0.5 here, and a long one in the other plan
    gradient = bowl_gradient(x)
    assert gradient[1].norm() > 1
    moved = dataclasses.replace(BOWL, max_gradient=1.0).move(x, 0.3, 5) - x
    torch.testing.assert_close(moved[0], 0.02 * 0.3 * gradient[0])
    torch.testing.assert_close(moved[1], 0.02 * 0.3 * gradient[1] / gradient[1].norm())


def test_scores_that_do_not_depend_on_the_plans_move_nothing():
    x = draw_x(2, HORIZON)
    constant = dataclasses.replace(BOWL, guide=Function(lambda plans: torch.ones(2).double()))
    assert torch.equal(constant.move(x, 0.3, 5), x)
    assert torch.equal(dataclasses.replace(constant, max_gradient=1.0).move(x, 0.3, 5), x)


LENGTHS = torch.tensor([2, 4, 3, 2])


def draw_unequal():
    """Plans of several lengths, with NaN behind their ends."""
    x = draw_x(4, HORIZON)
    x[torch.arange(HORIZON) >= LENGTHS[:, None]] = torch.nan
    return x


def check_each_alone(guidance, x):
    """What a guide makes of plans of several lengths is what it makes of each plan alone."""
    padding = torch.isnan(x)
    scores, moved = guidance.score(x, 5, LENGTHS), guidance.move(x, 0.3, 5, LENGTHS)
    violations = guidance.violation(x, LENGTHS)
    plain = dataclasses.replace(guidance, view=view)
    for i, length in enumerate(LENGTHS.tolist()):
        alone = x[i : i + 1, :length]
        torch.testing.assert_close(scores[i : i + 1], plain.score(alone, 5))
        torch.testing.assert_close(violations[i : i + 1], plain.violation(alone))
        torch.testing.assert_close(moved[i : i + 1, :length], plain.move(alone, 0.3, 5))
    assert torch.isnan(moved[padding]).all()
    _, gradient = guidance.through(lambda noisy: 1.0 * noisy, x, 5, LENGTHS)
    assert torch.equal(gradient[padding], torch.zeros_like(gradient[padding]))


def test_guides_never_see_what_stands_behind_a_plan():
    x, seen = draw_unequal(), []

    def watch(part, rows, diffusion_step):
        seen.append((part.shape[1], rows.tolist()))
        assert torch.equal(part, x[rows, : part.shape[1]])
        return view(part, rows, diffusion_step)

    guide = weighted_sum(bowl, KeepOut((1.0, 2.0), 1.5))
    guidance = Guidance(guide, watch, 0.02, max_gradient=2.0)
    check_each_alone(guidance, x)
    assert seen == 4 * [(2, [0, 3]), (3, [2]), (4, [1])]


def test_guides_that_take_plans_of_several_horizons_are_asked_once():
    x, seen = draw_unequal(), []

    def watch(part, rows, diffusion_step):
        seen.append((tuple(part.shape), rows))
        return view(part, rows, diffusion_step)

    guide = weighted_sum(SpeedLimit(0.5), KeepOut((1.0, 2.0), 1.5))
    guidance = Guidance(guide, watch, 0.02, max_gradient=2.0)
    check_each_alone(guidance, x)
    assert seen == 4 * [((4, HORIZON, 5), None)]


def test_violations_are_those_of_guides_with_limits():
    class Plain:
        def score(self, plans):
            return plans.positions.sum(dim=(1, 2))

    x, lengths = draw_x(3, HORIZON), torch.tensor([2, 4, 3])
    assert torch.equal(dataclasses.replace(BOWL, guide=Plain()).violation(x), torch.zeros(3).double())
    assert torch.equal(dataclasses.replace(BOWL, guide=Plain()).violation(x, lengths), torch.zeros(3).double())
    zone = KeepOut((1.0, 2.0), 1.5)
    got = dataclasses.replace(BOWL, guide=zone, scale=0.0).violation(x)
    assert torch.equal(got, zone.violation(to_plans(x)))
    assert (got > 0).any()


def keep(x):
    return x


def test_repairs_move_violating_plans_alone_and_just_to_their_limits():
    x = draw_x(6, 8)
    x[0, :, [1, 3]] = 3.0  # far from the zone
    guidance = dataclasses.replace(BOWL, guide=KeepOut((1.0, 2.0), 0.5, margin=0.0))
    before = guidance.violation(x)
    assert before[0] == 0
    assert (before > 1e-4).sum() >= 2
    repaired = guidance.repair(x, keep)
    assert (guidance.violation(repaired) <= 1e-4).all()
    assert torch.equal(repaired[before == 0], x[before == 0])
    assert not repaired.requires_grad


def test_a_repair_along_one_direction_ends_at_the_limit():
    def overshoot(plans):
        return torch.relu(plans.positions[:, :, 0].amax(dim=1) - 1.0)

    x = draw_x(2, HORIZON)
    x[:, :, 1] = torch.tensor([-1.0, 0.5, -0.5, -1.0]).double()  # positions -1, 2, 0, -1
    repaired = dataclasses.replace(BOWL, guide=Function(bowl, overshoot)).repair(x, keep)
    moved = to_plans(repaired).positions[:, 1, 0]
    assert ((moved > 0.85) & (moved <= 1.0 + 1e-4)).all()
    rest = torch.ones(2, HORIZON, 5, dtype=torch.bool)
    rest[:, 1, 1] = False
    assert torch.equal(repaired[rest], x[rest])


def test_repairs_leave_what_is_fixed_and_what_stands_behind_a_plan():
    lengths, x = torch.tensor([3, 6]), draw_x(2, 6)
    x[0, 3:] = 0.0
    x[:, 0] = 2.0
    guidance = dataclasses.replace(BOWL, guide=KeepOut((1.0, 2.0), 1.0))
    assert (guidance.violation(x, lengths) > 1e-4).any()

    def project(plans):
        return torch.cat([x[:, :1], plans[:, 1:]], dim=1)

    repaired = guidance.repair(x, project, lengths)
    assert (guidance.violation(repaired, lengths) <= 1e-4).all()
    assert torch.equal(repaired[:, 0], x[:, 0])
    assert torch.equal(repaired[0, 3:], x[0, 3:])


def test_a_plan_that_cannot_be_repaired_comes_back_as_it_was():
    x = draw_x(2, HORIZON)
    for violation in (
        lambda plans: torch.ones(2).double(),  # does not depend on the plan
        lambda plans: 1.0 + plans.positions.square().sum(dim=(1, 2)),  # has no way to 0
        lambda plans: torch.full((2,), torch.nan).double() * plans.positions.sum(dim=(1, 2)),
    ):
        assert torch.equal(dataclasses.replace(BOWL, guide=Function(bowl, violation)).repair(x, keep), x)


def test_a_plan_that_a_guide_cannot_tell_of_stays_beside_one_that_is_repaired():
    def depth(plans):
        first = plans.positions[:, 1, 0]
        return torch.relu(first) * torch.where(torch.arange(2) == 0, 1.0, torch.nan).double()

    x = draw_x(2, HORIZON)
    x[:, 1, 1] = 1.0
    guidance = dataclasses.replace(BOWL, guide=Function(bowl, depth))
    repaired = guidance.repair(x, keep)
    assert guidance.violation(repaired)[0] <= 1e-4
    assert not torch.equal(repaired[0], x[0])
    assert torch.equal(repaired[1], x[1])


def test_gradients_through_the_network_are_of_the_noisy_plans():
    x = draw_x(3, HORIZON)
    matrix = draw_x(1, 5, seed=3)[0]
    denoised, gradient = BOWL.through(lambda noisy: noisy @ matrix, x, 5, None)
    assert torch.equal(denoised, x @ matrix)
    assert not denoised.requires_grad
    torch.testing.assert_close(gradient, bowl_gradient(x @ matrix) @ matrix.T)


@dataclasses.dataclass
class Halving:
    """A denoiser whose estimate is half of the noisy plan."""

    schedule: object = SCHEDULE

    def __call__(self, x_noisy, diffusion_step, lengths=None):
        return 0.5 * x_noisy


def free(batch_size=3):
    constraints = no_constraints(batch_size, HORIZON, 5)
    return Constraints(constraints.mask, constraints.values.double())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("target", ["noisy", "denoised", "network"])
@pytest.mark.parametrize(("stop_step", "num_guide_steps"), [(0, 1), (0, 2), (6, 1)])
def test_guided_sampling_is_its_own_recursion(target, stop_step, num_guide_steps):
    guidance = dataclasses.replace(
        BOWL, target=target, stop_step=stop_step, num_guide_steps=num_guide_steps, scale=0.01
    )
    steps = [11, 8, 5, 2, 0]
    got = sample_ddim(Halving(), free(), seeded(), steps, guidance=guidance)

    x = torch.randn(3, HORIZON, 5, generator=seeded()).double()
    for step, following in zip(steps, [*steps[1:], -1], strict=True):
        now, then = SCHEDULE.alpha_bar_at(step), SCHEDULE.alpha_bar_at(following)
        variance = (1 - then) / (1 - now) * (1 - now / then)
        acts, clean, through = step >= stop_step, 0.5 * x, 0.5 * bowl_gradient(0.5 * x)
        for _ in range(num_guide_steps if acts and target == "denoised" else 0):
            clean = clean + 0.01 * (1 - now) * bowl_gradient(clean)
        noise_share = ((1 - then) / (1 - now)) ** 0.5
        x = (then**0.5 - noise_share * now**0.5) * clean + noise_share * x
        for _ in range(num_guide_steps if acts and target == "noisy" else 0):
            x = x + 0.01 * variance * bowl_gradient(x)
        if acts and target == "network":
            x = x + 0.01 * variance * through
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)
    assert (got - sample_ddim(Halving(), free(), seeded(), steps)).abs().max() > 1e-3


@pytest.mark.parametrize("target", ["noisy", "denoised", "network"])
@pytest.mark.parametrize("sample", [sample_ddim, sample_ddpm])
def test_guides_of_scale_zero_are_not_evaluated(target, sample):
    def unusable(plans):
        raise AssertionError("evaluated")

    guidance = Guidance(Function(unusable), view, scale=0.0, target=target)
    guided = sample(Halving(), free(), seeded(), 5, guidance=guidance)
    assert torch.equal(guided, sample(Halving(), free(), seeded(), 5))
    with pytest.raises(AssertionError, match="evaluated"):
        sample(Halving(), free(), seeded(), 5, guidance=dataclasses.replace(guidance, scale=1e-9))


@pytest.mark.parametrize(
    ("target", "expected"), [("noisy", [8, 5, 2, 0]), ("denoised", [-1] * 5), ("network", [-1] * 5)]
)
def test_guides_are_told_how_noisy_plans_are_in_each_step(target, expected):
    seen = []

    def watch(x, rows, diffusion_step):
        seen.append(diffusion_step)
        return view(x, rows, diffusion_step)

    guidance = dataclasses.replace(BOWL, view=watch, target=target)
    sample_ddim(Halving(), free(), seeded(), [11, 8, 5, 2, 0], guidance=guidance)
    assert seen == expected


@pytest.mark.parametrize("target", ["noisy", "denoised", "network"])
def test_fixed_entries_stay_whatever_a_guide_wants(target):
    values = draw_x(3, 1)[:, 0, :2]
    constraints = fix(fix(free(), 0, [0, 1], values), -1, [1, 3], values)
    seen = []
    guidance = dataclasses.replace(BOWL, target=target, scale=0.05)
    result = sample_ddim(Halving(), constraints, seeded(), 5, guidance=guidance, callback=seen.append)
    for x in [result, *(state.x_noisy for state in seen), *(state.denoised for state in seen)]:
        assert torch.equal(x[:, 0, :2], values)
        assert torch.equal(x[:, -1, [1, 3]], values)


@pytest.mark.parametrize("target", ["noisy", "denoised", "network"])
def test_a_zone_is_left_by_sampled_plans(target):
    zone = KeepOut((1.0, 2.0), 1.0)  # around the mean of the plans
    guidance = Guidance(zone, view, scale=3.0, target=target, scale_by_variance=False)
    unguided = sample_ddim(Halving(), free(20), seeded(), 10)
    guided = sample_ddim(Halving(), free(20), seeded(), 10, guidance=guidance)
    assert guidance.violation(guided).mean() < 0.7 * guidance.violation(unguided).mean()

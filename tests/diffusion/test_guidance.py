import pytest
import torch

from diffplan.diffusion.guidance import GoalGuide, Guidance


def make_plan(positions):
    """One plan whose columns 1 and 2 hold the position."""
    positions = torch.tensor(positions)
    return torch.cat([torch.full((len(positions), 1), 7.0), positions], dim=1)[None]


GUIDE = GoalGuide(columns=(1, 2), goals=torch.tensor([[3.0, 4.0]]))


def test_score_is_minus_the_mean_distance():
    plan = make_plan([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]])
    assert GUIDE.score(plan).item() == pytest.approx(-(5 + 4 + 0) / 3, abs=1e-3)


def test_nearer_and_sooner_plans_score_higher():
    far = make_plan([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    late = make_plan([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]])
    soon = make_plan([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0]])
    assert GUIDE.score(far) < GUIDE.score(late) < GUIDE.score(soon)


def test_each_plan_has_its_own_goal():
    guide = GoalGuide((0, 1), torch.tensor([[0.0, 0.0], [6.0, 8.0]]))
    torch.testing.assert_close(guide.score(torch.zeros(2, 4, 2)), torch.tensor([-1e-3, -10.0]))


def test_gradient_points_to_the_goal_and_is_finite_on_it():
    plan = make_plan([[0.0, 0.0], [3.0, 4.0]]).requires_grad_(True)
    (gradient,) = torch.autograd.grad(GUIDE.score(plan).sum(), plan)
    torch.testing.assert_close(gradient[0, 0], torch.tensor([0.0, 0.3, 0.4]), rtol=1e-4, atol=1e-6)
    assert torch.equal(gradient[0, 1], torch.zeros(3))


def test_shift_without_variance_is_no_shift():
    mean = make_plan([[0.0, 0.0]])
    guidance = Guidance(GUIDE, lambda plans: plans, scale=2.0)
    assert torch.equal(guidance.shift(mean, 0.0), mean)
    torch.testing.assert_close(guidance.shift(mean, 0.5)[0, 0], torch.tensor([7.0, 0.6, 0.8]), rtol=1e-4, atol=1e-6)


def test_goal_guide_brings_sampled_plans_nearer():
    plan = make_plan([[0.0, 0.0], [1.0, 1.0]])
    guidance = Guidance(GUIDE, lambda plans: plans, scale=1.0, num_guide_steps=4)
    assert GUIDE.score(guidance.shift(plan, 0.3)) > GUIDE.score(plan) + 0.3

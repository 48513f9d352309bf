"""Guides inside samplers: a quadratic score and the oracle make every guided step affine, so it is written out here."""

import dataclasses

import pytest
import torch
from gaussian_oracle import (
    HORIZON,
    SIZE,
    TRANSITION_DIM,
    iterate_steps,
    make_oracle,
    seeded,
    step_coefficients,
    unconstrained,
)

from diffplan.diffusion.constraints import bound, fix
from diffplan.diffusion.guidance import Guidance, PlanBatch
from diffplan.diffusion.samplers import SAMPLERS
from diffplan.layout import Layout

TARGETS = ["noisy", "denoised", "network"]
STEPS = [23, 18, 14, 9, 5, 1]
UNITS = torch.tensor([2.0, 0.5], dtype=torch.float64)
CENTER = torch.tensor([0.3, -1.0], dtype=torch.float64)


def view(x, rows, diffusion_step):
    """Plans in environment units: columns scaled and moved."""
    return PlanBatch(UNITS * x + CENTER, x, Layout(TRANSITION_DIM), (0, 1), (), 1.0, diffusion_step)


@dataclasses.dataclass
class QuadraticScore:
    """J(plan) = direction . plan - stiffness / 2 |plan - target|², summed over all entries."""

    direction: torch.Tensor
    target: torch.Tensor
    stiffness: float
    seen: list = dataclasses.field(default_factory=list)

    def score(self, plans):
        self.seen.append(plans.diffusion_step)
        x = plans.transitions
        return (self.direction * x).sum(dim=(1, 2)) - self.stiffness / 2 * (x - self.target).square().sum(dim=(1, 2))

    def gradient(self, x):
        """Of flat normalised plans, written out."""
        plans = UNITS * x.view(-1, HORIZON, TRANSITION_DIM) + CENTER
        return (UNITS * (self.direction - self.stiffness * (plans - self.target))).flatten(1)


def make_guide(stiffness=0.7):
    direction, target = torch.randn(2, HORIZON, TRANSITION_DIM, generator=seeded(3), dtype=torch.float64)
    return QuadraticScore(direction, target, stiffness)


def recursion(sampler, oracle, guidance, steps, num_rows):
    """Guided sampling written out step by step."""
    generator, guide = seeded(9), guidance.guide

    def draw():
        return torch.randn(num_rows, HORIZON, TRANSITION_DIM, generator=generator).double().flatten(1)

    x, previous = draw(), 0.0
    for step, _, now, then, before in iterate_steps(oracle.alpha_bars, steps):
        clean = oracle.clean(x, step)
        posterior_variance = (1 - then) / (1 - now) * (1 - now / then)
        acts = step >= guidance.stop_step
        gradient = guide.gradient(clean) @ oracle.gain(step)  # chain rule: the gain is d clean / d x
        if acts and guidance.target == "denoised":
            for _ in range(guidance.num_guide_steps):
                factor = guidance.scale * (1 - now if guidance.scale_by_variance else 1)
                clean = clean + factor * guide.gradient(clean)
        of_x, of_clean, of_previous, added = step_coefficients(sampler, now, then, before)
        x = of_x * x + of_clean * clean + of_previous * previous
        previous = clean
        factor = guidance.scale * (posterior_variance if guidance.scale_by_variance else 1)
        if acts and posterior_variance > 0:
            if guidance.target == "noisy":
                for _ in range(guidance.num_guide_steps):
                    x = x + factor * guide.gradient(x)
            elif guidance.target == "network":
                x = x + factor * gradient
        if added:
            x = x + added**0.5 * draw()
    return x


@pytest.mark.parametrize("stop_step", [0, 14])
@pytest.mark.parametrize(("num_guide_steps", "scale_by_variance"), [(1, True), (3, True), (2, False)])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_guided_sampling_is_its_own_recursion(sampler, target, num_guide_steps, scale_by_variance, stop_step):
    denoiser = make_oracle(24)
    scale = 0.3 if scale_by_variance else 0.1
    guidance = Guidance(
        make_guide(),
        view,
        scale,
        num_guide_steps,
        target=target,
        scale_by_variance=scale_by_variance,
        stop_step=stop_step,
    )
    got = SAMPLERS[sampler](denoiser, unconstrained(5), seeded(9), STEPS, guidance=guidance)
    expected = recursion(sampler, denoiser.network, guidance, STEPS, 5)
    torch.testing.assert_close(got.flatten(1), expected, rtol=1e-9, atol=1e-9)
    unguided = SAMPLERS[sampler](denoiser, unconstrained(5), seeded(9), STEPS)
    assert (got - unguided).abs().max() > 1e-3


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_guides_bring_samples_to_higher_scores(sampler, target):
    denoiser, guide = make_oracle(24), make_guide()
    scores = []
    for scale in (0.0, 0.2, 0.4):
        guidance = Guidance(guide, view, scale, target=target)
        scores.append(
            guidance.score(SAMPLERS[sampler](denoiser, unconstrained(64), seeded(9), STEPS, guidance=guidance), -1)
        )
    assert scores[0].mean() < scores[1].mean() < scores[2].mean()


class Unusable:
    def score(self, plans):
        raise AssertionError("evaluated")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_guidance_of_scale_zero_is_no_guidance_to_the_last_bit(sampler, target):
    denoiser = make_oracle(24)
    guidance = Guidance(Unusable(), view, 0.0, target=target)
    guided = SAMPLERS[sampler](denoiser, unconstrained(4), seeded(), STEPS, guidance=guidance)
    assert torch.equal(guided, SAMPLERS[sampler](denoiser, unconstrained(4), seeded(), STEPS))
    with pytest.raises(AssertionError, match="evaluated"):
        SAMPLERS[sampler](
            denoiser, unconstrained(4), seeded(), STEPS, guidance=dataclasses.replace(guidance, scale=1e-9)
        )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_guide_that_rests_throughout_is_no_guidance_to_the_last_bit(sampler):
    denoiser = make_oracle(24)
    for target in TARGETS:
        guidance = Guidance(Unusable(), view, 1.0, target=target, stop_step=24)
        guided = SAMPLERS[sampler](denoiser, unconstrained(4), seeded(), STEPS, guidance=guidance)
        assert torch.equal(guided, SAMPLERS[sampler](denoiser, unconstrained(4), seeded(), STEPS))


@pytest.mark.parametrize(
    ("target", "expected"),
    [("noisy", [18, 18, 14, 14, 9, 9]), ("denoised", [-1] * 6), ("network", [-1] * 3)],
)
def test_guides_see_how_noisy_their_plans_are_and_rest_below_the_stop_step(target, expected):
    guide = make_guide()
    guidance = Guidance(guide, view, 0.1, num_guide_steps=2, target=target, stop_step=14)
    SAMPLERS["ddim"](make_oracle(24), unconstrained(2), seeded(), STEPS, guidance=guidance)
    assert guide.seen == expected


def test_a_clean_plan_is_not_moved_by_a_noisy_guide():
    guide = make_guide()
    guidance = Guidance(guide, view, 0.1, scale_by_variance=False)
    SAMPLERS["ddim"](make_oracle(24), unconstrained(2), seeded(), [9, 3], guidance=guidance)
    assert guide.seen == [3]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_constraints_hold_exactly_whatever_the_guide_wants(sampler, target):
    values = torch.randn(4, 2, generator=seeded(5), dtype=torch.float64).clamp(-0.4, 0.4)
    constraints = fix(fix(unconstrained(4), 0, [0, 1], values), -1, [1], values[:, :1])
    limits = torch.full((1, 2), 0.4, dtype=torch.float64)
    constraints = bound(constraints, [0, 1], -limits, limits)
    guidance = Guidance(QuadraticScore(torch.full((HORIZON, TRANSITION_DIM), 9.0), torch.zeros(()), 0.0), view, 1.0)
    guidance = dataclasses.replace(guidance, target=target)
    seen = []
    result = SAMPLERS[sampler](make_oracle(24), constraints, seeded(), STEPS, guidance=guidance, callback=seen.append)
    for x in [result, *(state.x_noisy for state in seen), *(state.denoised for state in seen)]:
        assert torch.equal(x[:, 0], values)
        assert torch.equal(x[:, -1, 1], values[:, 0])
    for x in [result, *(state.denoised for state in seen)]:
        assert (x.abs() <= 0.4).all()
    assert (result == 0.4).sum() > SIZE  # the guide did push against the bounds

import dataclasses

import pytest
import torch
from gaussian_oracle import HORIZON, SIZE, TRANSITION_DIM, compute_alpha_bars, make_oracle
from torch import nn

from diffplan.config import DiffusionConfig
from diffplan.diffusion.constraints import Constraints, fix, no_constraints
from diffplan.diffusion.denoiser import Denoiser
from diffplan.diffusion.guidance import Guidance
from diffplan.diffusion.samplers import sample_ddim, sample_ddpm

PREDICTIONS = ["clean", "noise", "velocity"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def unconstrained(batch_size):
    constraints = no_constraints(batch_size, HORIZON, TRANSITION_DIM)
    return Constraints(constraints.mask, constraints.values.double())


def sample(sampler, denoiser, constraints, generator, num_sampling_steps, **kwargs):
    if sampler == "ddpm":
        return sample_ddpm(denoiser, constraints, generator, **kwargs)
    return sample_ddim(denoiser, constraints, generator, num_sampling_steps, **kwargs)


def propagate(denoiser, num_sampling_steps, eta):
    """Exact mean and covariance of the samples: with the oracle, each denoising step is affine."""
    oracle, alpha_bars = denoiser.network, denoiser.network.alpha_bars
    mean, covariance = torch.zeros(SIZE, dtype=torch.float64), torch.eye(SIZE, dtype=torch.float64)
    spacing = (len(alpha_bars) - 1) / max(num_sampling_steps - 1, 1)
    steps = [round(len(alpha_bars) - 1 - k * spacing) for k in range(num_sampling_steps)]
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        now, then = alpha_bars[step], 1.0 if following is None else alpha_bars[following]
        added = eta**2 * (1 - then) / (1 - now) * (1 - now / then)
        gain = oracle.gain(step)
        noise_share = ((1 - then - added) / (1 - now)) ** 0.5
        matrix = then**0.5 * gain + noise_share * (torch.eye(SIZE, dtype=torch.float64) - now**0.5 * gain)
        offset_clean = oracle.mean - now**0.5 * gain @ oracle.mean
        mean = matrix @ mean + (then**0.5 - noise_share * now**0.5) * offset_clean
        covariance = matrix @ covariance @ matrix.T + added * torch.eye(SIZE, dtype=torch.float64)
    return mean, covariance


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    ("sampler", "num_sampling_steps", "eta"), [("ddpm", 48, 1.0), ("ddim", 48, 0.0), ("ddim", 7, 0)]
)
def test_samples_of_the_gaussian_oracle_have_the_mean_and_covariance_of_the_steps(
    sampler, num_sampling_steps, eta, prediction
):
    denoiser = make_oracle(48, prediction)
    mean, covariance = propagate(denoiser, num_sampling_steps, eta)
    num_samples = 40_000
    x = sample(sampler, denoiser, unconstrained(num_samples), seeded(), num_sampling_steps).flatten(1)
    variances = covariance.diagonal()
    assert ((x.mean(dim=0) - mean).abs() < 5 * (variances / num_samples).sqrt()).all()
    limits = 5 * ((covariance**2 + torch.outer(variances, variances)) / num_samples).sqrt()
    assert ((torch.cov(x.T) - covariance).abs() < limits).all()


@pytest.mark.parametrize(
    ("eta", "num_steps", "mean_tolerance", "covariance_tolerance"),
    [(1.0, 256, 0.01, 0.03), (0.0, 256, 0.01, 0.03), (1.0, 32, 0.05, 0.15), (0.0, 32, 0.05, 0.15)],
)
def test_samplers_reach_the_data_and_nearer_with_more_steps(eta, num_steps, mean_tolerance, covariance_tolerance):
    denoiser = make_oracle(num_steps)
    mean, covariance = propagate(denoiser, num_steps, eta)
    oracle = denoiser.network
    assert (mean - oracle.mean).norm() < mean_tolerance * oracle.mean.norm()
    assert (covariance - oracle.covariance).norm() < covariance_tolerance * oracle.covariance.norm()


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_kinds_of_prediction_sample_the_same(sampler):
    samples = [sample(sampler, make_oracle(16, p), unconstrained(8), seeded(), 6) for p in PREDICTIONS]
    for other in samples[1:]:
        torch.testing.assert_close(other, samples[0], rtol=1e-8, atol=1e-8)


def test_ancestral_sampling_is_the_published_algorithm_draw_for_draw():
    """Ho et al. 2020, Alg. 2 with the posterior of eq. 7, written out over the same draws."""
    num_steps, temperature = 12, 0.7
    got = sample_ddpm(make_oracle(num_steps), unconstrained(5), seeded(9), temperature=temperature)

    oracle, alpha_bars, generator = make_oracle(num_steps).network, compute_alpha_bars(num_steps), seeded(9)

    def draw():
        return temperature * torch.randn(5, HORIZON, TRANSITION_DIM, generator=generator).double().flatten(1)

    x = draw()
    for step in reversed(range(num_steps)):
        now, then = alpha_bars[step], alpha_bars[step - 1] if step else 1.0
        alpha, beta = now / then, 1 - now / then
        clean = oracle.clean(x, step)
        x = (then**0.5 * beta * clean + alpha**0.5 * (1 - then) * x) / (1 - now)
        if step:
            x = x + ((1 - then) / (1 - now) * beta) ** 0.5 * draw()
    torch.testing.assert_close(got.flatten(1), x, rtol=1e-8, atol=1e-8)


@dataclasses.dataclass
class QuadraticScore:
    """J(plan) = direction . plan - stiffness / 2 |plan - target|², summed over all entries."""

    direction: torch.Tensor
    target: torch.Tensor
    stiffness: float

    def score(self, plans):
        linear = (self.direction * plans).sum(dim=(1, 2))
        return linear - self.stiffness / 2 * (plans - self.target).square().sum(dim=(1, 2))


@pytest.mark.parametrize("stiffness", [0.0, 0.7])
@pytest.mark.parametrize("num_guide_steps", [1, 3])
def test_guided_sampling_is_its_own_recursion(stiffness, num_guide_steps):
    """Deterministic sampling with the oracle and a quadratic guide, written out step by step."""
    num_diffusion_steps, steps, scale = 24, [23, 18, 14, 9, 5, 0], 1.7
    denoiser = make_oracle(num_diffusion_steps)
    units, center = torch.tensor([2.0, 0.5], dtype=torch.float64), torch.tensor([0.3, -1.0], dtype=torch.float64)
    direction = torch.randn(HORIZON, TRANSITION_DIM, generator=seeded(3), dtype=torch.float64)
    target = torch.randn(HORIZON, TRANSITION_DIM, generator=seeded(4), dtype=torch.float64)
    guide = QuadraticScore(direction, target, stiffness)
    guidance = Guidance(guide, lambda plans: plans * units + center, scale, num_guide_steps)
    got = sample_ddim(denoiser, unconstrained(5), seeded(9), len(steps), guidance=guidance)

    alpha_bars = compute_alpha_bars(num_diffusion_steps)
    x = torch.randn(5, HORIZON, TRANSITION_DIM, generator=seeded(9)).double()
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        now, then = alpha_bars[step], 1.0 if following is None else alpha_bars[following]
        clean = denoiser.network.clean(x.flatten(1), step).view_as(x)
        noise = (x - now**0.5 * clean) / (1 - now) ** 0.5
        x = then**0.5 * clean + (1 - then) ** 0.5 * noise
        variance = (1 - then) / (1 - now) * (1 - now / then)  # of the posterior
        for _ in range(num_guide_steps):
            x = x + scale * variance * units * (direction - stiffness * (x * units + center - target))
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)
    unguided = sample_ddim(denoiser, unconstrained(5), seeded(9), len(steps))
    assert (got - unguided).abs().max() > 0.1


class Unusable:
    def score(self, plans):
        raise AssertionError("evaluated")


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_guidance_of_scale_zero_is_no_guidance_to_the_last_bit(sampler):
    denoiser = make_oracle(12)
    guidance = Guidance(Unusable(), lambda plans: plans, 0.0)
    guided = sample(sampler, denoiser, unconstrained(4), seeded(), 5, guidance=guidance)
    assert torch.equal(guided, sample(sampler, denoiser, unconstrained(4), seeded(), 5))
    with pytest.raises(AssertionError, match="evaluated"):
        sample(sampler, denoiser, unconstrained(4), seeded(), 5, guidance=dataclasses.replace(guidance, scale=1e-9))


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_constraints_hold_exactly_after_every_step_and_in_the_result(sampler):
    values = torch.randn(4, 2, generator=seeded(5), dtype=torch.float64)
    constraints = fix(fix(unconstrained(4), 0, [0, 1], values), -1, [1], values[:, :1])
    guide = QuadraticScore(torch.ones(HORIZON, TRANSITION_DIM), torch.zeros(HORIZON, TRANSITION_DIM), 0.5)
    seen = []
    denoiser = make_oracle(12)
    inputs = []
    denoiser.network.register_forward_pre_hook(lambda module, args: inputs.append(args[0].clone()))
    result = sample(
        sampler,
        denoiser,
        constraints,
        seeded(),
        5,
        guidance=Guidance(guide, lambda plans: plans, 1.0),
        callback=seen.append,
    )

    def holds(x):
        return torch.equal(x[:, 0], values) and torch.equal(x[:, -1, 1], values[:, 0])

    num_steps = 12 if sampler == "ddpm" else 5
    assert [state.index for state in seen] == list(range(num_steps))
    assert [seen[0].diffusion_step, seen[-1].diffusion_step] == [11, 0]
    assert len(inputs) == num_steps
    assert all(holds(state.x_noisy) and holds(state.denoised) for state in seen)
    assert all(holds(x) for x in inputs)
    assert torch.equal(seen[-1].x_noisy, result)


def test_too_many_sampling_steps_are_refused():
    with pytest.raises(ValueError, match=r"num_sampling_steps: expected 1 to 12"):
        sample_ddim(make_oracle(12), unconstrained(1), seeded(), 13)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_temperature_zero_does_not_depend_on_the_generator(sampler):
    denoiser = make_oracle(12)
    first = sample(sampler, denoiser, unconstrained(3), seeded(1), 5, temperature=0.0)
    second = sample(sampler, denoiser, unconstrained(3), seeded(2), 5, temperature=0.0)
    assert torch.equal(first, second)
    assert torch.equal(first[0], first[2])
    warm = sample(sampler, denoiser, unconstrained(3), seeded(1), 5)
    assert (warm[0] - warm[2]).abs().max() > 0.01


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_samples_follow_from_the_generator(sampler):
    denoiser = make_oracle(12)
    first, same, other = (sample(sampler, denoiser, unconstrained(3), seeded(s), 5) for s in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_deterministic_sampler_draws_once_and_the_ancestral_one_before_each_but_the_last_step():
    denoiser = make_oracle(12)
    size = 2 * SIZE
    for sampler, num_draws in (("ddim", 1), ("ddpm", 12)):  # the first noise, and 11 steps of 12
        used, fresh = seeded(), seeded()
        sample(sampler, denoiser, unconstrained(2), used, 5)
        for _ in range(num_draws):
            torch.randn(size, generator=fresh)
        assert torch.equal(used.get_state(), fresh.get_state())


class Constant(nn.Module):
    def forward(self, x_noisy, diffusion_step):
        return torch.full_like(x_noisy, 3.0)


@pytest.mark.parametrize(("clip", "expected"), [(True, 1.0), (False, 3.0)])
def test_estimates_are_clipped_where_the_config_says(clip, expected):
    denoiser = Denoiser.make(Constant(), DiffusionConfig(num_diffusion_steps=8, clip_denoised=clip))
    assert (denoiser(torch.zeros(2, 3, 2), 4) == expected).all()
    assert (sample_ddim(denoiser, no_constraints(2, 3, 2), seeded(), 4) == expected).all()


def test_sampling_leaves_no_graph():
    network = nn.Linear(TRANSITION_DIM, TRANSITION_DIM)

    class Trainable(nn.Module):
        def forward(self, x_noisy, diffusion_step):
            return network(x_noisy)

    denoiser = Denoiser.make(Trainable(), DiffusionConfig(num_diffusion_steps=8))
    assert not sample_ddim(denoiser, no_constraints(2, 3, 2), seeded(), 4).requires_grad

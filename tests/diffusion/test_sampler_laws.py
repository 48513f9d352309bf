"""The law of the samples where the best denoiser is known: Gaussian data."""

import math
from itertools import pairwise

import pytest
import torch
from gaussian_oracle import (
    PREDICTIONS,
    SCHEDULES,
    SIZE,
    even_steps,
    log_snr,
    make_oracle,
    measure_law,
    propagate,
    seeded,
    unconstrained,
)

from diffplan.diffusion.samplers import SAMPLERS

MEAN_TOLERANCE = 0.01
COVARIANCE_TOLERANCE = {"ddpm": 0.06, "ddim": 0.03, "dpm_solver": 0.002}  # relative, of 200 steps


def relative(got, expected):
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_have_the_mean_and_covariance_of_the_data(sampler, prediction, schedule):
    denoiser = make_oracle(200, prediction, schedule)
    mean, covariance = measure_law(denoiser, sampler, even_steps(199, 200))
    assert relative(mean, denoiser.network.mean) < MEAN_TOLERANCE
    assert relative(covariance, denoiser.network.covariance) < COVARIANCE_TOLERANCE[sampler]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [even_steps(47, 48), even_steps(47, 7), [40, 39, 21, 20, 3], [13]])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_mean_and_covariance_are_those_of_the_steps(sampler, steps, prediction, schedule):
    denoiser = make_oracle(48, prediction, schedule)
    mean, covariance = measure_law(denoiser, sampler, steps)
    expected_mean, expected_covariance = propagate(denoiser, sampler, steps)
    torch.testing.assert_close(mean, expected_mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(covariance, expected_covariance, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_twice_the_steps_come_nearer_to_the_data(sampler, schedule):
    errors = []
    for num_steps in (50, 100, 200):
        denoiser = make_oracle(num_steps, "clean", schedule)
        _, covariance = propagate(denoiser, sampler, even_steps(num_steps - 1, num_steps))
        errors.append(relative(covariance, denoiser.network.covariance))
    factor = 0.35 if sampler == "dpm_solver" else 0.6
    assert errors[1] < factor * errors[0]
    assert errors[2] < factor * errors[1]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_drawn_samples_have_that_law(sampler):
    """Once with the random numbers themselves, within five standard errors."""
    denoiser, steps, num_samples = make_oracle(48), even_steps(47, 24), 20_000
    mean, covariance = propagate(denoiser, sampler, steps)
    x = SAMPLERS[sampler](denoiser, unconstrained(num_samples), seeded(), steps).flatten(1)
    variances = covariance.diagonal()
    assert ((x.mean(dim=0) - mean).abs() < 5 * (variances / num_samples).sqrt()).all()
    limits = 5 * ((covariance**2 + torch.outer(variances, variances)) / num_samples).sqrt()
    assert ((torch.cov(x.T) - covariance).abs() < limits).all()


# Orders of convergence: the sampler against the exact flow, on an interval inside the schedule, since the step to the
# clean trajectory is always of first order.
FINE_STEPS = 2**12 + 1
INTERVALS = {"edm": (3328, 1280), "linear": (2560, 512)}  # differences are multiples of 2^11
COUNTS = [32, 64, 128, 256]


def measure_order(sampler, schedule):
    """Slope of log(error) over log(greatest step in log-SNR), and the errors."""
    denoiser = make_oracle(FINE_STEPS, "noise", schedule)
    first, last = INTERVALS[schedule]
    alpha_bars = denoiser.network.alpha_bars
    widths, errors = [], []
    for count in COUNTS:
        steps = list(range(first, last - 1, (last - first) // count))
        states = []
        SAMPLERS[sampler](denoiser, unconstrained(20), seeded(), steps, callback=states.append)
        start = torch.randn(20, 3, 2, generator=seeded()).double().flatten(1)
        exact = denoiser.network.flow(start, alpha_bars[first], alpha_bars[last])
        errors.append(float((states[-2].x_noisy.flatten(1) - exact).abs().max()))
        snrs = [log_snr(alpha_bars[step]) for step in steps]
        widths.append(max(b - a for a, b in pairwise(snrs)))
    x, y = (torch.tensor([math.log(v) for v in values], dtype=torch.float64) for values in (widths, errors))
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return float(slope), errors


@pytest.mark.parametrize("schedule", INTERVALS)
@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpm_solver", 2)])
def test_solvers_converge_to_the_exact_flow_with_their_order(sampler, order, schedule):
    slope, errors = measure_order(sampler, schedule)
    assert slope == pytest.approx(order, abs=0.15)
    assert errors[-1] < 1e-2 / 100 ** (order - 1)


def test_exact_flow_carries_the_law_of_one_noise_level_to_another():
    oracle = make_oracle(16).network
    now, then = oracle.alpha_bars[12], oracle.alpha_bars[3]
    images = oracle.flow(torch.cat([torch.zeros(1, SIZE), torch.eye(SIZE)]).double(), now, then)
    matrix = (images[1:] - images[0]).T
    torch.testing.assert_close(matrix @ oracle.noisy_covariance(now) @ matrix.T, oracle.noisy_covariance(then))
    moved = oracle.flow(now**0.5 * oracle.mean[None], now, then)
    torch.testing.assert_close(moved, then**0.5 * oracle.mean[None])

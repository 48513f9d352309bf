"""The exact denoiser of Gaussian data, and all that follows from it: the law of the samples, the exact flow.

Schedules and steps of samplers are written here a second time, in plain floats and from the papers, so that nothing of
the package is compared with itself.
"""

import functools
import math
from unittest import mock

import torch
from torch import nn

from diffplan.diffusion.constraints import Constraints, no_constraints
from diffplan.diffusion.denoiser import Denoiser
from diffplan.diffusion.samplers import SAMPLERS
from diffplan.diffusion.schedule import make_schedule

HORIZON, TRANSITION_DIM = 3, 2
SIZE = HORIZON * TRANSITION_DIM
SCHEDULES = ["cosine", "linear", "edm"]
PREDICTIONS = ["clean", "noise", "velocity"]


@functools.cache
def compute_alpha_bars(num_diffusion_steps, schedule="cosine"):
    """Schedules in plain floats."""
    n = num_diffusion_steps
    if schedule == "edm":  # Karras et al. 2022, eq. 5: sigma of the step, counted here from the least
        low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
        sigmas = [(low + k / (n - 1) * (high - low)) ** 7 for k in range(n)]
        return tuple(1 / (1 + sigma**2) for sigma in sigmas)
    if schedule == "linear":  # Ho et al. 2020, section 4, for 1000 steps; scaled for fewer
        betas = [min(1000 / n * (1e-4 + k / (n - 1) * (0.02 - 1e-4)), 0.999) for k in range(n)]
    else:  # `cosine_beta_schedule` of Janner et al. 2022
        points = [k * (n + 1) / n for k in range(n + 1)]
        cosines = [math.cos((p / (n + 1) + 0.008) / 1.008 * math.pi / 2) ** 2 for p in points]
        betas = [min(1 - cosines[k + 1] / cosines[k], 0.999) for k in range(n)]
    alpha_bars, product = [], 1.0
    for beta in betas:
        product *= 1 - beta
        alpha_bars.append(product)
    return tuple(alpha_bars)


class GaussianOracle(nn.Module):
    """Predicts exactly what the best network would, for trajectories drawn from N(mean, covariance).

    E[x_clean | x] = mean + a S (a² S + s² I)^-1 (x - a mean), with a² + s² = 1.
    """

    def __init__(self, mean, covariance, alpha_bars, prediction):
        super().__init__()
        self.mean, self.covariance, self.prediction = mean, covariance, prediction
        self.alpha_bars = alpha_bars

    def gain(self, diffusion_step):
        """The matrix a S (a² S + s² I)^-1."""
        alpha_bar = self.alpha_bars[diffusion_step]
        return alpha_bar**0.5 * self.covariance @ torch.linalg.inv(self.noisy_covariance(alpha_bar))

    def noisy_covariance(self, alpha_bar):
        """a² S + s² I."""
        return alpha_bar * self.covariance + (1 - alpha_bar) * torch.eye(SIZE, dtype=torch.float64)

    def clean(self, x, diffusion_step):
        signal = self.alpha_bars[diffusion_step] ** 0.5
        return self.mean + (x - signal * self.mean) @ self.gain(diffusion_step).T

    def flow(self, x, alpha_bar, next_alpha_bar):
        """The exact solution of the probability flow: every coordinate in the eigenbasis of S stays at its quantile."""
        variances, basis = torch.linalg.eigh(self.covariance)
        before = alpha_bar * variances + 1 - alpha_bar
        after = next_alpha_bar * variances + 1 - next_alpha_bar
        standardized = ((x - alpha_bar**0.5 * self.mean) @ basis) / before.sqrt()
        return next_alpha_bar**0.5 * self.mean + (standardized * after.sqrt()) @ basis.T

    def forward(self, x_noisy, diffusion_step):
        step = int(diffusion_step[0])
        signal, sigma = self.alpha_bars[step] ** 0.5, (1 - self.alpha_bars[step]) ** 0.5
        x = x_noisy.flatten(1)
        clean = self.clean(x, step)
        noise = (x - signal * clean) / sigma
        output = {"clean": clean, "noise": noise, "velocity": signal * noise - sigma * clean}[self.prediction]
        return output.view_as(x_noisy)


def make_oracle(num_diffusion_steps, prediction="clean", schedule="cosine"):
    """A denoiser with an oracle of correlated trajectories far from standard normal."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.linspace(-0.8, 0.6, SIZE, dtype=torch.float64)
    root = 0.5 * torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    covariance = root @ root.T / SIZE + 0.05 * torch.eye(SIZE, dtype=torch.float64)
    network = GaussianOracle(mean, covariance, compute_alpha_bars(num_diffusion_steps, schedule), prediction)
    return Denoiser(network, make_schedule(schedule, num_diffusion_steps), prediction)


def unconstrained(batch_size):
    """No constraints, in double precision."""
    constraints = no_constraints(batch_size, HORIZON, TRANSITION_DIM)
    return Constraints(constraints.mask, constraints.values.double())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def even_steps(first, num_steps):
    """The diffusion steps of a sampler that is given a number."""
    return [round(first - k * first / max(num_steps - 1, 1)) for k in range(num_steps)]


def log_snr(alpha_bar):
    return 0.5 * math.log(alpha_bar / (1 - alpha_bar))


def step_coefficients(sampler, now, then, before=None):
    """The shares of x, of the estimate and of the estimate before it in the next x, and the variance that is added.

    Args:
        sampler: its name.
        now: alpha_bar of this step.
        then: that of the next; 1 where there is none.
        before: that of the step before; None where there is none.
    """
    if then == 1:
        return 0.0, 1.0, 0.0, 0.0
    if sampler == "ddpm":  # Ho et al. 2020, eq. 6 and 7
        alpha, beta = now / then, 1 - now / then
        variance = (1 - then) / (1 - now) * beta
        return alpha**0.5 * (1 - then) / (1 - now), then**0.5 * beta / (1 - now), 0.0, variance
    noise_share = ((1 - then) / (1 - now)) ** 0.5
    if sampler == "ddim":  # Song et al. 2021, eq. 12: the noise in x is scaled
        return noise_share, then**0.5 - noise_share * now**0.5, 0.0, 0.0
    width = log_snr(then) - log_snr(now)  # Lu et al. 2022, Alg. 2
    clean_share = then**0.5 * (1 - math.exp(-width))
    if before is None:
        return noise_share, clean_share, 0.0, 0.0
    ratio = (log_snr(now) - log_snr(before)) / width
    return noise_share, clean_share * (1 + 1 / (2 * ratio)), -clean_share / (2 * ratio), 0.0


def iterate_steps(alpha_bars, steps):
    """(step, next step, alpha_bar, the next, the one before) of each denoising step; -1, 1 and None where missing."""
    for i, step in enumerate(steps):
        following = steps[i + 1] if i + 1 < len(steps) else -1
        then = alpha_bars[following] if following >= 0 else 1.0
        yield step, following, alpha_bars[step], then, alpha_bars[steps[i - 1]] if i else None


def propagate(denoiser, sampler, steps):
    """Exact mean and covariance of the samples: with the oracle each denoising step is affine.

    The state is x together with the estimate before, since DPM-Solver++ remembers it.
    """
    oracle, identity = denoiser.network, torch.eye(SIZE, dtype=torch.float64)
    zero = torch.zeros_like(identity)
    mean = torch.zeros(2 * SIZE, dtype=torch.float64)
    covariance = torch.block_diag(identity, zero)
    for step, _, now, then, before in iterate_steps(oracle.alpha_bars, steps):
        of_x, of_clean, of_previous, added = step_coefficients(sampler, now, then, before)
        gain = oracle.gain(step)
        offset = oracle.mean - now**0.5 * gain @ oracle.mean
        matrix = torch.cat(
            [torch.cat([of_x * identity + of_clean * gain, of_previous * identity], dim=1), torch.cat([gain, zero], 1)]
        )
        mean = matrix @ mean + torch.cat([of_clean * offset, offset])
        covariance = matrix @ covariance @ matrix.T + torch.block_diag(added * identity, zero)
    return mean[:SIZE], covariance[:SIZE, :SIZE]


def measure_law(denoiser, sampler, steps, **kwargs):
    """Exact mean and covariance of what a sampler returns, without sampling error.

    With the oracle, samples are affine in the normal numbers that are drawn. So rows of one batch get a single 1 among
    all their draws in place of random numbers, each row at another place, and one row gets none.
    """
    num_draws = len(steps) if sampler == "ddpm" else 1
    units = torch.eye(num_draws * SIZE + 1, dtype=torch.float64)[:, 1:]  # row 0 is all 0
    draws = iter(units.view(-1, num_draws, HORIZON, TRANSITION_DIM).unbind(dim=1))
    with mock.patch.object(torch, "randn", side_effect=draws):
        x = SAMPLERS[sampler](denoiser, unconstrained(len(units)), seeded(), steps, **kwargs).flatten(1)
    assert next(draws, None) is None
    responses = x[1:] - x[0]
    return x[0], responses.T @ responses

"""The exact denoiser of Gaussian data, and schedules and transitions written independently of the package."""

import math

import torch
from torch import nn

from diffplan.diffusion.denoiser import Denoiser
from diffplan.diffusion.schedule import make_cosine_schedule

HORIZON, TRANSITION_DIM = 3, 2
SIZE = HORIZON * TRANSITION_DIM


def compute_alpha_bars(num_diffusion_steps):
    """Cosine schedule of `cosine_beta_schedule` of Janner et al. 2022, in plain floats."""
    grid_size = num_diffusion_steps + 1
    points = [k * grid_size / (grid_size - 1) for k in range(grid_size)]
    cosines = [math.cos((p / grid_size + 0.008) / 1.008 * math.pi / 2) ** 2 for p in points]
    alpha_bars, product = [], 1.0
    for k in range(num_diffusion_steps):
        product *= 1 - min(1 - cosines[k + 1] / cosines[k], 0.999)
        alpha_bars.append(product)
    return alpha_bars


class GaussianOracle(nn.Module):
    """Predicts exactly what the best network would, for trajectories drawn from N(mean, covariance).

    E[x_clean | x] = mean + a S (a² S + s² I)^-1 (x - a mean), with a² + s² = 1.
    """

    def __init__(self, mean, covariance, num_diffusion_steps, prediction):
        super().__init__()
        self.mean, self.covariance, self.prediction = mean, covariance, prediction
        self.alpha_bars = compute_alpha_bars(num_diffusion_steps)

    def gain(self, diffusion_step):
        """The matrix a S (a² S + s² I)^-1."""
        alpha_bar = self.alpha_bars[diffusion_step]
        noisy = alpha_bar * self.covariance + (1 - alpha_bar) * torch.eye(len(self.mean), dtype=torch.float64)
        return alpha_bar**0.5 * self.covariance @ torch.linalg.inv(noisy)

    def clean(self, x, diffusion_step):
        signal = self.alpha_bars[diffusion_step] ** 0.5
        return self.mean + (x - signal * self.mean) @ self.gain(diffusion_step).T

    def forward(self, x_noisy, diffusion_step):
        step = int(diffusion_step[0])
        signal, sigma = self.alpha_bars[step] ** 0.5, (1 - self.alpha_bars[step]) ** 0.5
        x = x_noisy.flatten(1)
        clean = self.clean(x, step)
        noise = (x - signal * clean) / sigma
        output = {"clean": clean, "noise": noise, "velocity": signal * noise - sigma * clean}[self.prediction]
        return output.view_as(x_noisy)


def make_oracle(num_diffusion_steps, prediction="clean"):
    """A denoiser with an oracle of correlated trajectories far from standard normal."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.linspace(-0.8, 0.6, SIZE, dtype=torch.float64)
    root = 0.5 * torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    covariance = root @ root.T / SIZE + 0.05 * torch.eye(SIZE, dtype=torch.float64)
    network = GaussianOracle(mean, covariance, num_diffusion_steps, prediction)
    return Denoiser(network, make_cosine_schedule(num_diffusion_steps), prediction)

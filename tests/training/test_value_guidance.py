"""A learned value as a guide: trajectories are independent normal numbers, and their value is the mean of a column."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from diffplan.config import NetworkConfig
from diffplan.diffusion.constraints import no_constraints
from diffplan.diffusion.denoiser import Denoiser
from diffplan.diffusion.guidance import Guidance, PlanBatch
from diffplan.diffusion.guides import Value
from diffplan.diffusion.samplers import SAMPLERS
from diffplan.diffusion.schedule import make_schedule
from diffplan.diffusion.value_loss import compute_value_loss
from diffplan.layout import Layout
from diffplan.networks.value_network import ValueNetwork

HORIZON, TRANSITION_DIM, REWARD_COLUMN = 8, 3, 1
MEAN, STD = 0.2, 0.5
NUM_DIFFUSION_STEPS = 16
SCHEDULE = make_schedule("cosine", NUM_DIFFUSION_STEPS)
NUM_PLANS = 128


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def compute_values(x):
    return x[:, :, REWARD_COLUMN].mean(dim=1)


class Oracle(nn.Module):
    """The clean trajectory to be expected: MEAN + a S² / (a² S² + s²) (x - a MEAN), with a² + s² = 1."""

    def forward(self, x_noisy, diffusion_step):
        alpha_bar = SCHEDULE.alpha_bar[diffusion_step][:, None, None].to(x_noisy)
        signal = alpha_bar.sqrt()
        gain = signal * STD**2 / (alpha_bar * STD**2 + 1 - alpha_bar)
        return MEAN + gain * (x_noisy - signal * MEAN)


def draw_batch(generator, num_rows):
    shape = (num_rows, HORIZON, TRANSITION_DIM)
    x_clean = MEAN + STD * torch.randn(shape, generator=generator)
    diffusion_step = torch.randint(NUM_DIFFUSION_STEPS, (num_rows,), generator=generator)
    return x_clean, torch.randn(shape, generator=generator), diffusion_step


@pytest.fixture(scope="module")
def network():
    """A value network after 300 steps."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ValueNetwork(TRANSITION_DIM, NetworkConfig(dim=16, dim_mults=(1, 2)))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    generator, nothing_known = seeded(1), torch.zeros(1, HORIZON, TRANSITION_DIM, dtype=torch.bool)
    for _ in range(300):
        x_clean, noise, diffusion_step = draw_batch(generator, 64)
        values = compute_values(x_clean)
        loss = compute_value_loss(network, SCHEDULE, x_clean, noise, diffusion_step, nothing_known, values)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval().requires_grad_(requires_grad=False)


def sample(network, sampler, target, scale):
    guidance = Guidance(Value(network), view, scale, target=target)
    return SAMPLERS[sampler](
        Denoiser(Oracle(), SCHEDULE, "clean"),
        no_constraints(NUM_PLANS, HORIZON, TRANSITION_DIM),
        seeded(2),
        NUM_DIFFUSION_STEPS,
        guidance=guidance,
    )


def view(x, rows, diffusion_step):
    return PlanBatch(x, x, Layout(TRANSITION_DIM), (0,), (), 1.0, diffusion_step)


def test_values_of_noisy_trajectories_come_near_what_is_to_be_expected_of_them(network):
    x_clean, noise, _ = draw_batch(seeded(3), 1000)
    values = compute_values(x_clean)
    for step in (0, 5, 10, 15):
        steps = torch.full((1000,), step)
        x_noisy = SCHEDULE.add_noise(x_clean, noise, steps)
        expected = compute_values(Oracle()(x_noisy, steps))
        found = network(x_noisy, steps)
        assert (found - expected).square().mean() < 0.15 * values.var()


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("target", ["noisy", "denoised", "network"])
def test_stronger_guidance_gives_plans_of_higher_value(network, sampler, target):
    samples = [sample(network, sampler, target, scale) for scale in (0.0, 1.0, 2.0, 4.0)]
    means = [float(compute_values(x).mean()) for x in samples]
    assert means[0] == pytest.approx(MEAN, abs=0.05)
    for lower, higher in pairwise(means):
        assert higher > lower + 0.01
    moved = (samples[-1] - samples[0]).mean(dim=(0, 1))
    assert moved[REWARD_COLUMN] > 3 * moved.abs()[[0, 2]].max()

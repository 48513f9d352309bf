"""The samplers against those of Hugging Face diffusers: equal betas, equal noise, one small network."""

import diffusers
import numpy as np
import pytest
import torch
from covering import cover_pairs
from torch import nn

from diffplan.diffusion.constraints import no_constraints
from diffplan.diffusion.denoiser import Denoiser
from diffplan.diffusion.samplers import SAMPLERS
from diffplan.diffusion.schedule import NoiseSchedule, make_schedule

# numpy's, about the tensors that diffusers gives it
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NUM_DIFFUSION_STEPS = 100
SHAPE = (6, 5, 3)
TOLERANCE = 1e-5
NAMES = {"clean": "sample", "noise": "epsilon", "velocity": "v_prediction"}


class Curved(nn.Module):
    """A fixed network that is not linear, in the plan or in the diffusion step."""

    def __init__(self):
        super().__init__()
        self.first = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))

    def forward(self, x_noisy, diffusion_step):
        phase = 0.05 * diffusion_step[:, None, None]
        return 0.6 * x_noisy + 0.4 * torch.tanh(x_noisy @ self.first.to(x_noisy) + torch.sin(phase)).roll(1, dims=1)


def make_betas(kind):
    alpha_bar = make_schedule(kind, NUM_DIFFUSION_STEPS).alpha_bar.numpy()
    return 1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])


def sample_ours(sampler, prediction, betas, steps, clip):
    schedule = NoiseSchedule(torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), dim=0))
    denoiser = Denoiser(Curved(), schedule, prediction, 1.0 if clip else None)
    return SAMPLERS[sampler](denoiser, no_constraints(*SHAPE), torch.Generator().manual_seed(7), steps)


def make_theirs(kind, betas, prediction, **settings):
    """A scheduler of theirs, with its table in double precision: 1 - alpha_bar loses too much in single."""
    scheduler = getattr(diffusers, kind)(
        NUM_DIFFUSION_STEPS, trained_betas=betas, prediction_type=NAMES[prediction], **settings
    )
    precise = torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), dim=0)
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), precise, rtol=1e-4, atol=0)
    scheduler.alphas_cumprod = precise
    return scheduler


def sample_theirs(scheduler, steps, **kwargs):
    """Their loop, over the same draws: the first noise, and whatever the scheduler draws from the same generator."""
    assert scheduler.timesteps.tolist() == steps
    network, generator = Curved(), torch.Generator().manual_seed(7)
    x = torch.randn(SHAPE, generator=generator) * scheduler.init_noise_sigma
    for step in scheduler.timesteps:
        output = network(x, step.expand(SHAPE[0]))
        x = scheduler.step(output, step, x, generator=generator, **kwargs).prev_sample
    return x


def assert_same(ours, theirs):
    scale = float(theirs.abs().max())
    assert ours.shape == SHAPE
    assert scale > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE * max(1.0, scale))


KINDS = ("linear", "cosine", "edm")
STEPS = {
    "full": list(range(NUM_DIFFUSION_STEPS - 1, -1, -1)),
    "trailing": list(range(NUM_DIFFUSION_STEPS - 1, 0, -10)),
    "uneven": [99, 80, 79, 50, 31, 30, 10, 4, 0],
    # Less so: DPM-Solver++ extrapolates by the ratio of two steps, and theirs does in single precision.
    "less uneven": [99, 85, 74, 60, 45, 31, 22, 12, 4, 0],
}


@pytest.mark.parametrize(
    ("prediction", "spacing", "kind", "clip"),
    cover_pairs([*NAMES], ["full", "trailing", "uneven"], KINDS, [False, True]),
)
def test_ddpm(prediction, spacing, kind, clip):
    betas, steps = make_betas(kind), STEPS[spacing]
    scheduler = make_theirs("DDPMScheduler", betas, prediction, clip_sample=clip)
    scheduler.set_timesteps(timesteps=steps)
    assert_same(sample_ours("ddpm", prediction, betas, steps, clip), sample_theirs(scheduler, steps))


@pytest.mark.parametrize(
    ("prediction", "kind", "spacing", "clip"), cover_pairs([*NAMES], KINDS, ["full", "trailing"], [False, True])
)
def test_ddim(prediction, kind, spacing, clip):
    betas, steps = make_betas(kind), STEPS[spacing]
    scheduler = make_theirs("DDIMScheduler", betas, prediction, clip_sample=clip, timestep_spacing="trailing")
    scheduler.set_timesteps(len(steps))
    # The noise in x is what the clipped estimate leaves, as it is for us; by default theirs is not.
    theirs = sample_theirs(scheduler, steps, use_clipped_model_output=True)
    assert_same(sample_ours("ddim", prediction, betas, steps, clip), theirs)


@pytest.mark.parametrize(
    ("prediction", "spacing", "kind"), cover_pairs([*NAMES], ["full", "trailing", "less uneven"], KINDS)
)
def test_dpm_solver(prediction, spacing, kind):
    betas, steps = make_betas(kind), STEPS[spacing]
    scheduler = make_theirs(
        "DPMSolverMultistepScheduler",
        betas,
        prediction,
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        euler_at_final=True,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(timesteps=steps)
    assert_same(sample_ours("dpm_solver", prediction, betas, steps, clip=False), sample_theirs(scheduler, steps))

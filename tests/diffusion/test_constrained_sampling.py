"""Constraints and trajectories of different lengths inside samplers."""

from unittest import mock

import pytest
import torch
from torch import nn

from diffplan.diffusion.constraints import bound, fix, no_constraints
from diffplan.diffusion.denoiser import Denoiser
from diffplan.diffusion.guidance import Guidance, PlanBatch
from diffplan.diffusion.samplers import SAMPLERS
from diffplan.diffusion.schedule import make_schedule
from diffplan.layout import Layout

LENGTHS = torch.tensor([6, 3, 5, 3])
BATCH, HORIZON, DIM = 4, 6, 3
STEPS = [19, 14, 9, 4, 0]


class Mixing(nn.Module):
    """Not linear, mixes the steps of a trajectory, and takes no heed of what stands behind it."""

    def __init__(self):
        super().__init__()
        self.weights, self.mixed = torch.randn(2, DIM, DIM, generator=torch.Generator().manual_seed(0))
        self.inputs = []

    def forward(self, x_noisy, diffusion_step, lengths=None):
        self.inputs.append(x_noisy.detach().clone())
        ends = torch.full((len(x_noisy),), x_noisy.shape[1]) if lengths is None else lengths
        real = (torch.arange(x_noisy.shape[1]) < ends[:, None])[:, :, None]
        mean = torch.where(real, x_noisy, 0.0).sum(dim=1, keepdim=True) / ends[:, None, None]
        late = x_noisy.gather(1, (ends - 1)[:, None, None].expand(-1, 1, DIM))
        output = torch.tanh(x_noisy @ self.weights + (mean - late) @ self.mixed + 0.1 * diffusion_step[:, None, None])
        return torch.where(real, output, torch.nan)  # what the network says of padding must not matter


def make_denoiser(prediction="clean", clip=None):
    return Denoiser(Mixing(), make_schedule("cosine", 20), prediction, clip)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_constraints(lengths=None, rows=slice(None)):
    """Start, goal and waypoints in a band, at steps of each row's own."""
    values = 0.3 * draw(BATCH, DIM, seed=1)[rows]
    num_rows = len(values)
    horizon = HORIZON if lengths is None else int(lengths.max())
    constraints = fix(no_constraints(num_rows, horizon, DIM, lengths), 0, [0, 1, 2], values)
    constraints = fix(constraints, -1, [1], values[:, :1])
    constraints = fix(constraints, torch.tensor([1, 1, 3, -2])[rows], [2, 0], values[:, 1:])
    limit = torch.full((1, 1), 0.9)
    return bound(constraints, [1], -limit, limit), values


def holds(x, values, lengths):
    ends = [HORIZON] * BATCH if lengths is None else lengths.tolist()
    middle = [1, 1, 3, ends[3] - 2]
    return all(
        torch.equal(x[row, 0], values[row])
        and x[row, end - 1, 1] == values[row, 0]
        and torch.equal(x[row, middle[row], [2, 0]], values[row, 1:])
        and (x[row, end:] == 0).all()
        for row, end in enumerate(ends)
    )


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["one_length", "ragged"])
@pytest.mark.parametrize("prediction", ["clean", "noise", "velocity"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("repeats", [1, 3])
def test_constraints_hold_exactly_at_every_step(sampler, prediction, lengths, repeats):
    constraints, values = make_constraints(lengths)
    denoiser, seen = make_denoiser(prediction), []
    result = SAMPLERS[sampler](
        denoiser, constraints, torch.Generator().manual_seed(0), STEPS, repeats=repeats, callback=seen.append
    )
    assert len(denoiser.network.inputs) == repeats * len(seen) == repeats * len(STEPS)
    for x in [result, *denoiser.network.inputs, *(s.x_noisy for s in seen), *(s.denoised for s in seen)]:
        assert holds(x, values, lengths)
        assert x.isfinite().all()
    for x in [result, *(s.denoised for s in seen)]:
        assert (x[:, :, 1].abs() <= 0.9).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_bounds_bind_estimates_and_leave_noisy_plans_free(sampler):
    constraints, _ = make_constraints()
    tight = torch.full((1, 2), 0.35)
    denoiser, seen = make_denoiser("noise"), []
    constraints = bound(constraints, [1, 2], -tight, torch.full((1, 2), torch.inf), slice(1, 5))
    SAMPLERS[sampler](denoiser, constraints, torch.Generator().manual_seed(0), STEPS, callback=seen.append)
    free = ~constraints.mask.expand(BATCH, -1, -1)
    for state in seen:
        below = (state.denoised < constraints.lower) & free
        above = (state.denoised > constraints.upper) & free
        assert not below.any()
        assert not above.any()
    assert ((seen[-1].denoised == constraints.lower) & free).any()
    assert ((denoiser.network.inputs[0] < constraints.lower) & free).any()


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("target", [None, "noisy", "denoised", "network"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_row_of_a_ragged_batch_is_sampled_as_if_it_were_alone(sampler, target, warm):
    denoiser = make_denoiser("velocity", clip=1.0)
    noise, initial = draw(len(STEPS), BATCH, HORIZON, DIM, seed=2), draw(BATCH, HORIZON, DIM, seed=3)

    class Score:
        def score(self, plans):
            return -(plans.transitions - 0.5).square().mean(dim=(1, 2)) - plans.transitions[:, -1].square().sum(dim=1)

    def view(x, rows, diffusion_step):
        return PlanBatch(x, x, Layout(DIM), (0, 1), (), 1.0, diffusion_step)

    def sample(rows, lengths):
        draws = iter(noise[:, rows, : int(LENGTHS[rows].max())])
        guidance = None if target is None else Guidance(Score(), view, 0.5, target=target)
        constraints, _ = make_constraints(lengths, rows)
        start = initial[rows, : constraints.values.shape[1]] if warm else None
        with mock.patch.object(torch, "randn", side_effect=draws):
            return SAMPLERS[sampler](
                denoiser,
                constraints,
                torch.Generator(),
                STEPS,
                guidance=guidance,
                initial=start,
            )

    together = sample(slice(None), LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        one = slice(row, row + 1)
        alone = sample(one, LENGTHS[one])
        assert (together[row, length:] == 0).all()
        torch.testing.assert_close(together[one, :length], alone, rtol=1e-5, atol=1e-5)


def test_a_ragged_batch_of_full_lengths_is_an_ordinary_batch():
    full = torch.full((BATCH,), HORIZON)
    samples = [
        SAMPLERS["ddim"](make_denoiser(), make_constraints(lengths)[0], torch.Generator().manual_seed(0), STEPS)
        for lengths in (None, full)
    ]
    assert torch.equal(*samples)

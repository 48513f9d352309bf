import pytest
import torch
from torch import nn

from diffplan.config import DiffusionConfig
from diffplan.diffusion.constraints import endpoint_mask
from diffplan.diffusion.denoiser import Denoiser
from diffplan.diffusion.loss import compute_loss, make_loss_weights
from diffplan.diffusion.prediction import to_target

BATCH, HORIZON, DIM = 5, 4, 3
MASK = endpoint_mask(HORIZON, DIM, start=(1, 2), goal=(1,))


class Free(nn.Module):
    """A network whose output is a parameter; keeps what it was called with."""

    def __init__(self, output):
        super().__init__()
        self.output = nn.Parameter(output.clone())

    def forward(self, x_noisy, diffusion_step):
        self.seen = x_noisy, diffusion_step
        return self.output


def make_batch():
    generator = torch.Generator().manual_seed(0)
    x_clean, noise, output = (torch.randn(BATCH, HORIZON, DIM, generator=generator) for _ in range(3))
    return x_clean, noise, torch.tensor([0, 2, 4, 6, 7]), output


def loss_of(output, prediction="clean", weights=None):
    x_clean, noise, steps, _ = make_batch()
    network = Free(output)
    denoiser = Denoiser.make(network, DiffusionConfig(num_diffusion_steps=8, prediction=prediction))
    weights = torch.ones(HORIZON, DIM) if weights is None else weights
    return compute_loss(network, denoiser, x_clean, noise, steps, MASK, weights), network


def make_target(prediction):
    x_clean, noise, steps, _ = make_batch()
    schedule = Denoiser.make(nn.Identity(), DiffusionConfig(num_diffusion_steps=8)).schedule
    return to_target(prediction, x_clean, noise, *schedule.signal_and_noise(steps, x_clean))


@pytest.mark.parametrize("prediction", ["clean", "noise", "velocity"])
def test_known_entries_cost_nothing_and_have_no_gradient(prediction):
    wrong_where_known = make_target(prediction) + 100.0 * MASK
    loss, _ = loss_of(wrong_where_known, prediction)
    assert loss == 0
    loss, network = loss_of(make_target(prediction) + 1.0, prediction)
    loss.backward()
    mask = MASK.expand(BATCH, -1, -1)
    assert (network.output.grad[mask] == 0).all()
    assert (network.output.grad[~mask] > 0).all()


def test_loss_is_the_weighted_mean_written_out():
    x_clean, _, _, output = make_batch()
    weights = torch.arange(1.0, HORIZON * DIM + 1).view(HORIZON, DIM)
    total = 0.0
    for b in range(BATCH):
        for h in range(HORIZON):
            for d in range(DIM):
                if not MASK[0, h, d]:
                    total += float(weights[h, d]) * float(output[b, h, d] - x_clean[b, h, d]) ** 2
    assert loss_of(output, weights=weights)[0].item() == pytest.approx(total / (BATCH * HORIZON * DIM), rel=1e-5)


def test_network_sees_noise_everywhere_but_in_the_known_entries():
    x_clean, noise, steps, output = make_batch()
    _, network = loss_of(output)
    x_noisy, seen_steps = network.seen
    schedule = Denoiser.make(nn.Identity(), DiffusionConfig(num_diffusion_steps=8)).schedule
    expected = schedule.add_noise(x_clean, noise, steps)
    mask = MASK.expand(BATCH, -1, -1)
    assert torch.equal(x_noisy[mask], x_clean[mask])
    assert torch.equal(x_noisy[~mask], expected[~mask])
    assert torch.equal(seen_steps, steps)


def test_weights_are_one_without_discount_but_for_the_first_action():
    weights = make_loss_weights(4, 5, 2, DiffusionConfig(action_weight=10.0))
    expected = torch.ones(4, 5)
    expected[0, :2] = 10.0
    assert torch.equal(weights, expected)


def test_discounted_weights_fall_geometrically_around_mean_one():
    weights = make_loss_weights(6, 3, 0, DiffusionConfig(loss_discount=0.5, action_weight=10.0))
    torch.testing.assert_close(weights[1:] / weights[:-1], torch.full((5, 3), 0.5))
    torch.testing.assert_close(weights.mean(dim=0), torch.ones(3))

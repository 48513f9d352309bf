import pytest
import torch
from torch import nn

from diffplan.diffusion.classifier_free import ClassifierFreeDenoiser
from diffplan.diffusion.constraints import no_constraints
from diffplan.diffusion.denoiser import Denoiser
from diffplan.diffusion.samplers import SAMPLERS
from diffplan.diffusion.schedule import make_schedule

CONDITION = torch.tensor([0.5, -0.25, 1.0])
X = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([4, 2, 3])


class Told(nn.Module):
    """Says twice the condition, or 0.3 where it is withheld; keeps what it was called with."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x_noisy, diffusion_step, **told):
        self.calls.append((x_noisy, diffusion_step, told))
        condition = told.get("condition")
        said = torch.full((len(x_noisy),), torch.nan) if condition is None else 2.0 * condition
        return 0.5 * x_noisy + said.nan_to_num(nan=0.3)[:, None, None]


def make(scale, condition=CONDITION, prediction="clean", clip=None):
    network = Told()
    denoiser = Denoiser(network, make_schedule("cosine", 8), prediction, clip)
    return ClassifierFreeDenoiser(denoiser, condition, scale), denoiser, network


@pytest.mark.parametrize("condition", [CONDITION, torch.tensor([2.0, 0.0, 1.0])], ids=["returns", "tasks"])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_scales_zero_and_one_ask_the_network_once(scale, lengths, condition):
    guided, denoiser, network = make(scale, condition)
    got = guided(X, 5, lengths)
    ((x, steps, told),) = network.calls
    assert torch.equal(x, X)
    assert steps.tolist() == [5]
    expected = ({} if lengths is None else {"lengths": lengths}) | ({"condition": condition} if scale else {})
    assert told.keys() == expected.keys()
    assert all(torch.equal(told[name], expected[name]) for name in expected)
    assert torch.equal(got, denoiser(X, 5, lengths, condition if scale else None))


@pytest.mark.parametrize("prediction", ["clean", "noise", "velocity"])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("scale", [0.4, 1.8, -1.0])
def test_other_scales_go_from_without_the_condition_to_with_it_and_beyond(scale, lengths, prediction):
    guided, denoiser, network = make(scale, prediction=prediction)
    got = guided(X, 5, lengths)
    ((x, steps, told),) = network.calls
    assert torch.equal(x, torch.cat([X, X]))
    assert steps.tolist() == [5]
    torch.testing.assert_close(told["condition"], torch.cat([CONDITION, torch.full((3,), torch.nan)]), equal_nan=True)
    assert ("lengths" in told) == (lengths is not None)
    if lengths is not None:
        assert torch.equal(told["lengths"], torch.cat([LENGTHS, LENGTHS]))
    without, with_condition = denoiser(X, 5, lengths), denoiser(X, 5, lengths, CONDITION)
    torch.testing.assert_close(got, (1 - scale) * without + scale * with_condition)


def test_scale_acts_on_the_predicted_noise_alike():
    """Ho and Salimans 2022, eq. 6 is written for the noise: (1 + w) with - w without."""
    scale, step = 2.5, 5
    guided, denoiser, network = make(scale, prediction="noise")
    got = guided(X, step)
    steps = torch.full((3,), step)
    noise = scale * network(X, steps, condition=CONDITION) + (1 - scale) * network(X, steps)
    alpha_bar = denoiser.schedule.alpha_bar_at(step)
    torch.testing.assert_close(got, (X - (1 - alpha_bar) ** 0.5 * noise) / alpha_bar**0.5)


def test_what_is_exaggerated_is_clipped_all_the_same():
    guided, _, _ = make(9.0, clip=1.0)
    assert guided(X, 5).abs().max() == 1.0
    unclipped, _, _ = make(9.0)
    torch.testing.assert_close(guided(X, 5), unclipped(X, 5).clamp(-1, 1))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_take_it_for_a_denoiser(sampler):
    def sample(denoiser):
        return SAMPLERS[sampler](denoiser, no_constraints(3, 4, 2), torch.Generator().manual_seed(0), 5)

    without, conditioned, beyond = (sample(make(scale)[0]) for scale in (0.0, 1.0, 3.0))
    assert torch.equal(without, sample(make(0.0)[1]))
    direction = (2.0 * CONDITION - 0.3).sign()[:, None, None]
    assert ((conditioned - without) * direction > 0).all()
    assert ((beyond - conditioned) * direction > 0).all()

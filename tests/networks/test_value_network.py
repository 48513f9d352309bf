from itertools import pairwise

import pytest
import torch

from diffplan.config import NetworkConfig
from diffplan.networks.blocks import ResidualTemporalBlock
from diffplan.networks.factory import count_parameters
from diffplan.networks.value_network import ValueNetwork


def make_network(transition_dim=5, dim=16, dim_mults=(1, 2, 4)):
    torch.manual_seed(0)
    return ValueNetwork(transition_dim, NetworkConfig(dim=dim, dim_mults=dim_mults))


def test_every_horizon_from_2_up_gives_a_value():
    network = make_network()
    for horizon in range(2, 101):
        values = network(torch.randn(2, horizon, 5), torch.arange(2))
        assert values.shape == (2,)
        assert torch.isfinite(values).all()


@pytest.mark.parametrize("horizon", [0, 1])
def test_shorter_horizon_is_refused(horizon):
    with pytest.raises(ValueError, match=rf"^horizon: expected at least 2 for this network, got {horizon}$"):
        make_network()(torch.zeros(1, horizon, 5), torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize(("dim", "dim_mults"), [(8, (1,)), (8, (1, 1, 1)), (24, (1, 3)), (32, (1, 2, 4, 8))])
def test_one_short_trajectory_has_a_value_at_any_size(dim, dim_mults):
    network = make_network(dim=dim, dim_mults=dim_mults)
    x = torch.randn(1, 2, 5)
    step = torch.zeros(1, dtype=torch.long)
    assert network(x, step) != network(x + 1, step)


def count_from_the_release(transition_dim, dim, mults):
    """Parameters of the layers of `ValueFunction`, added up by hand, where one step is left to flatten."""

    def residual_block(inputs, outputs):  # two convolutions of 5 with normalisation, embedding, shortcut
        shortcut = inputs * outputs + outputs if inputs != outputs else 0
        return 5 * outputs * (inputs + outputs) + 6 * outputs + dim * outputs + outputs + shortcut

    def downsample(channels):
        return 3 * channels * channels + channels

    channels = [transition_dim, *(dim * mult for mult in mults)]
    total = dim * 4 * dim + 4 * dim + 4 * dim * dim + dim
    for inputs, outputs in pairwise(channels):
        total += residual_block(inputs, outputs) + residual_block(outputs, outputs) + downsample(outputs)
    middle = channels[-1]
    for inputs, outputs in pairwise([middle, middle // 2, middle // 4]):
        total += residual_block(inputs, outputs) + downsample(outputs)
    flat = middle // 4
    return total + (flat + dim) * (flat // 2) + flat // 2 + flat // 2 + 1


@pytest.mark.parametrize(("transition_dim", "dim_mults", "millions"), [(14, (1, 2, 4, 8), 2.29), (23, (1, 4, 8), 2.18)])
def test_parameters_are_those_of_the_published_network(transition_dim, dim_mults, millions):
    count = count_parameters(make_network(transition_dim, dim=32, dim_mults=dim_mults))
    assert count == count_from_the_release(transition_dim, 32, dim_mults)
    assert round(count / 1e6, 2) == millions


def test_layers_are_those_of_the_paper():
    """Published hopper size: four levels that all halve the length, then 128 and 64 channels."""
    network = make_network(14, dim=32, dim_mults=(1, 2, 4, 8))
    for (first, second, downsample), (inputs, outputs) in zip(
        network.levels, pairwise([14, 32, 64, 128, 256]), strict=True
    ):
        assert (first.first.convolution.in_channels, first.first.convolution.out_channels) == (inputs, outputs)
        assert (second.first.convolution.in_channels, second.first.convolution.out_channels) == (outputs, outputs)
        assert (downsample.kernel_size, downsample.stride, downsample.padding) == ((3,), (2,), (1,))
    sizes = [(block.first.convolution.in_channels, down.out_channels) for block, down in network.narrowing]
    assert sizes == [(256, 128), (128, 64)]
    groups = {m.first.normalization.num_groups for m in network.modules() if isinstance(m, ResidualTemporalBlock)}
    assert groups == {8}


def test_value_depends_on_the_diffusion_step_of_its_own_row_only():
    network = make_network()
    x = torch.randn(3, 8, 5)
    first, second = network(x, torch.tensor([1, 1, 1])), network(x, torch.tensor([1, 2, 1]))
    torch.testing.assert_close(first[[0, 2]], second[[0, 2]])
    assert (first[1] - second[1]).abs() > 1e-5


def test_gradient_is_that_of_finite_differences():
    network = make_network(transition_dim=2, dim=8, dim_mults=(1, 2)).double()
    x = torch.randn(2, 6, 2, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([4, 6])
    assert torch.autograd.gradcheck(lambda x: network(x, torch.tensor([1, 5]), lengths=lengths), x)


def test_it_fits_the_sum_of_a_column_at_all_lengths():
    network = make_network(transition_dim=2, dim=16, dim_mults=(1, 2))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)

    def compute_error(batch_size):
        lengths = torch.randint(6, 17, (batch_size,), generator=generator)
        level = torch.rand(batch_size, 1, 1, generator=generator) * 2 - 1
        x = level + 0.3 * torch.randn(batch_size, 16, 2, generator=generator)
        return (network(x, torch.zeros(batch_size, dtype=torch.long), lengths=lengths) - level[:, 0, 0]).square().mean()

    variance = 1 / 3
    for _ in range(150):
        loss = compute_error(64)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert compute_error(512).item() < 0.1 * variance

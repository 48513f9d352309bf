import pytest
import torch

from diffplan.config import NetworkConfig
from diffplan.networks.blocks import Conv1dBlock
from diffplan.networks.factory import make_network
from diffplan.networks.packing import Packing, group_norm
from diffplan.networks.ragged import repeat_last_step, valid_steps
from diffplan.networks.value_network import ValueNetwork

TRANSITION_DIM = 5
GARBAGE = {"noise": 1.0, "large": 1e30, "infinite": torch.inf, "nan": torch.nan}
CONFIGS = {
    "unet": NetworkConfig(dim=16, dim_mults=(1, 2, 4)),
    "unet_one_level": NetworkConfig(dim=16, dim_mults=(2,)),
    "unet_four_levels": NetworkConfig(dim=8, dim_mults=(1, 2, 2, 4)),
    "unet_attention": NetworkConfig(dim=16, dim_mults=(1, 2, 4), attention=True),
    "unet_returns": NetworkConfig(dim=16, dim_mults=(1, 2), condition="returns"),
    "transformer": NetworkConfig(kind="transformer", dim=32, depth=2),
    "transformer_task": NetworkConfig(kind="transformer", dim=32, depth=2, condition="task", num_tasks=3),
    "value": NetworkConfig(dim=16, dim_mults=(1, 2, 4)),
    "value_narrow": NetworkConfig(dim=8, dim_mults=(1, 1)),
}


def make(name):
    torch.manual_seed(0)
    config = CONFIGS[name]
    network = (
        ValueNetwork(TRANSITION_DIM, config) if name.startswith("value") else make_network(TRANSITION_DIM, config, 2)
    )
    with torch.no_grad():  # as after some training: what starts at 0 does so no longer
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def make_batch(network, garbage, horizon=19):
    lengths = torch.tensor([*range(network.min_horizon, horizon + 1), horizon])
    x = torch.randn(len(lengths), horizon, TRANSITION_DIM)
    padding = ~valid_steps(lengths, horizon)
    x[padding] = garbage * torch.randn(int(padding.sum()), TRANSITION_DIM).sign()
    return x, torch.randint(0, 32, (len(lengths),)), lengths


def condition_of(name, batch_size):
    if name.endswith("returns"):
        return {"condition": torch.rand(batch_size)}
    return {"condition": torch.arange(batch_size) % 4 - 1} if name.endswith("task") else {}


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("name", CONFIGS)
def test_each_row_is_that_of_the_row_alone(name, garbage):
    network = make(name)
    x, diffusion_step, lengths = make_batch(network, GARBAGE[garbage])
    condition = condition_of(name, len(x))
    output = network(x, diffusion_step, lengths=lengths, **condition)
    assert torch.isfinite(output).all()
    for i, length in enumerate(lengths.tolist()):
        alone = {key: value[i : i + 1] for key, value in condition.items()}
        expected = network(x[i : i + 1, :length], diffusion_step[i : i + 1], **alone)[0]
        row = output[i] if output.ndim == 1 else output[i, :length]
        torch.testing.assert_close(row, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_of_full_length_are_those_without_lengths(name):
    network = make(name)
    x, diffusion_step = torch.randn(3, 11, TRANSITION_DIM), torch.arange(3)
    full = network(x, diffusion_step, lengths=torch.full((3,), 11, dtype=torch.int32))
    torch.testing.assert_close(full, network(x, diffusion_step), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_those_of_the_row_alone_and_none_reach_the_padding(name):
    network = make(name).double()
    lengths = torch.tensor([9, 13, 16])
    x = torch.randn(3, 16, TRANSITION_DIM, dtype=torch.float64, requires_grad=True)
    valid = valid_steps(lengths, 16)
    output = network(x, torch.arange(3), lengths=lengths)
    loss = output.square().sum() if output.ndim == 1 else output[valid].square().sum()
    (gradient,) = torch.autograd.grad(loss, x)
    assert (gradient[~valid] == 0).all()
    for i, length in enumerate(lengths.tolist()):
        row = x[i : i + 1, :length].detach().requires_grad_()
        (expected,) = torch.autograd.grad(network(row, torch.tensor([i])).square().sum(), row)
        torch.testing.assert_close(gradient[i, :length], expected[0], rtol=1e-6, atol=1e-8)
        assert (gradient[i, :length].abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("name", ["unet", "transformer", "value"])
@pytest.mark.parametrize("wrong", ["short", "long"])
def test_impossible_lengths_are_refused(name, wrong):
    network = make(name)
    got = network.min_horizon - 1 if wrong == "short" else 13
    pattern = rf"^lengths: expected at least {network.min_horizon} and at most the horizon 12, got {got}$"
    with pytest.raises(ValueError, match=pattern):
        network(torch.zeros(2, 12, TRANSITION_DIM), torch.zeros(2, dtype=torch.long), lengths=torch.tensor([12, got]))


def test_last_step_is_repeated():
    x = torch.tensor([[[1.0], [2.0], [torch.nan]], [[3.0], [4.0], [5.0]]])
    repeated = repeat_last_step(x, torch.tensor([2, 3]), 4)
    assert repeated[:, :, 0].tolist() == [[1, 2, 2, 2], [3, 4, 5, 5]]


def test_packed_group_norm_is_group_norm_of_each_trajectory():
    torch.manual_seed(0)
    layer = Conv1dBlock(3, 16).normalization
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    x, lengths = 100 + torch.randn(4, 7, 16), torch.tensor([1, 2, 6, 7])
    packing = Packing(lengths)
    output = packing.pad(group_norm(packing.pack(x), packing, layer), 7)
    for i, length in enumerate(lengths.tolist()):
        expected = layer(x[i : i + 1, :length].transpose(1, 2))[0].T
        torch.testing.assert_close(output[i, :length], expected, rtol=1e-3, atol=1e-3)

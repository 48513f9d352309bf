from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffplan.config import NetworkConfig
from diffplan.networks import temporal_unet
from diffplan.networks.blocks import (
    ActivatedBefore,
    Conv1dBlock,
    LinearAttention,
    ResidualTemporalBlock,
    SinusoidalEmbedding,
    as_images,
)
from diffplan.networks.factory import count_parameters
from diffplan.networks.temporal_unet import TemporalUnet
from diffplan.tasks.registry import get_preset

PUBLISHED = {  # transition_dim, dim_mults, attention, parameters in millions
    "maze2d": (6, (1, 4, 8), False, 3.68),
    "hopper": (14, (1, 2, 4, 8), False, 3.96),
    "halfcheetah": (23, (1, 4, 8), True, 4.11),
}


def count_from_the_paper(transition_dim, dim, mults, attention):
    """Parameters of the layer list of Janner et al. 2022, appendix C, added up by hand."""

    def convolution(inputs, outputs, kernel_size):
        return inputs * outputs * kernel_size + outputs

    def linear(inputs, outputs):
        return inputs * outputs + outputs

    def block(inputs, outputs):  # convolution of 5, then scale and shift of the group normalisation
        return convolution(inputs, outputs, 5) + 2 * outputs

    def residual_block(inputs, outputs):
        shortcut = convolution(inputs, outputs, 1) if inputs != outputs else 0
        return block(inputs, outputs) + block(outputs, outputs) + linear(dim, outputs) + shortcut

    def attention_block(channels):  # normalisation, queries, keys and values of 4 heads of 32, projection back
        return (2 * channels + channels * 3 * 128 + convolution(128, channels, 1)) if attention else 0

    total = linear(dim, 4 * dim) + linear(4 * dim, dim)
    levels = list(pairwise([transition_dim, *(dim * m for m in mults)]))
    for i, (inputs, outputs) in enumerate(levels):
        total += residual_block(inputs, outputs) + residual_block(outputs, outputs) + attention_block(outputs)
        total += convolution(outputs, outputs, 3) if i < len(levels) - 1 else 0
    deepest = levels[-1][1]
    total += 2 * residual_block(deepest, deepest) + attention_block(deepest)
    for inputs, outputs in levels[1:]:
        total += residual_block(2 * outputs, inputs) + residual_block(inputs, inputs) + attention_block(inputs)
        total += convolution(inputs, inputs, 4)
    first = dim * mults[0]
    return total + block(first, first) + convolution(first, transition_dim, 1)


def make_network(dim_mults=(1, 2, 4), transition_dim=5, attention=False, dim=16):
    torch.manual_seed(0)
    return TemporalUnet(transition_dim, NetworkConfig(dim=dim, dim_mults=dim_mults, attention=attention))


def make_input(network, horizon, batch_size=3, transition_dim=5):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch_size, horizon, transition_dim, generator=generator)
    return x, torch.arange(batch_size) * 3


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_published_network(name):
    transition_dim, mults, attention, millions = PUBLISHED[name]
    count = count_parameters(make_network(mults, transition_dim, attention, dim=32))
    assert count == count_from_the_paper(transition_dim, 32, mults, attention)
    assert round(count / 1e6, 2) == millions


def test_parameters_of_the_published_maze2d_network():
    assert count_parameters(TemporalUnet(6, get_preset("janner-maze2d-large").network)) == 3_682_118


@pytest.mark.parametrize("dim_mults", [(1,), (1, 2), (1, 2, 4), (1, 2, 2, 4)])
@pytest.mark.parametrize("attention", [False, True])
def test_every_horizon_from_the_shortest_up_keeps_its_shape(dim_mults, attention):
    network = make_network(dim_mults, attention=attention)
    shortest = 2 ** (len(dim_mults) - 1)
    for horizon in [*range(shortest, shortest + 10), 31, 33]:
        x, steps = make_input(network, horizon)
        output = network(x, steps)
        assert output.shape == x.shape
        assert torch.isfinite(output).all()


def test_every_horizon_up_to_100_keeps_its_shape():
    network = make_network()
    for horizon in range(4, 101):
        x, steps = make_input(network, horizon, batch_size=1)
        assert network(x, steps[:1]).shape == x.shape


def test_names_of_the_weights_are_those_of_older_checkpoints():
    names = {name.split(".")[0] for name in make_network(attention=True).state_dict()}
    assert names == {"embedding", "down", "middle_first", "middle_attention", "middle_second", "up", "final"}


@pytest.mark.parametrize("dim_mults", [(1, 2), (1, 2, 4), (1, 2, 2, 4)])
def test_shorter_horizon_is_refused(dim_mults):
    network = make_network(dim_mults)
    shortest = 2 ** (len(dim_mults) - 1)
    x, steps = make_input(network, shortest - 1)
    with pytest.raises(ValueError, match=rf"at least {shortest} .*got {shortest - 1}"):
        network(x, steps)


def test_only_what_the_levels_do_not_divide_is_padded(monkeypatch):
    network, widths = make_network(), []
    monkeypatch.setattr(temporal_unet, "as_images", lambda x: widths.append(x.shape[1]) or as_images(x))
    for horizon in (4, 7, 8, 9):
        network(*make_input(network, horizon))
    assert widths == [4, 8, 8, 12]


def test_other_horizon_is_the_padded_one_cropped():
    network = make_network()
    x, steps = make_input(network, 6)
    padded = torch.cat([x, x[:, -1:], x[:, -1:]], dim=1)
    torch.testing.assert_close(network(x, steps), network(padded, steps)[:, :6], rtol=0, atol=0)


def test_output_depends_on_the_diffusion_step_of_its_own_row_only():
    network = make_network()
    x, _ = make_input(network, 8)
    first = network(x, torch.tensor([1, 1, 1]))
    second = network(x, torch.tensor([1, 2, 1]))
    torch.testing.assert_close(first[[0, 2]], second[[0, 2]])
    assert (first[1] - second[1]).abs().max() > 1e-4


def test_sinusoidal_embedding_is_its_formula():
    features = SinusoidalEmbedding(8)(torch.tensor([0, 1, 7]))
    for row, step in zip(features, (0, 1, 7), strict=True):
        angles = [step * 10_000 ** (-k / 3) for k in range(4)]
        expected = [f(torch.tensor(angle)) for f in (torch.sin, torch.cos) for angle in angles]
        torch.testing.assert_close(row, torch.stack(expected))


def assert_residual_block(block, inputs, outputs):
    assert isinstance(block, ResidualTemporalBlock)
    for part, channels in ((block.first, inputs), (block.second, outputs)):
        convolution, normalization = part.convolution, part.normalization
        assert (convolution.in_channels, convolution.out_channels) == (channels, outputs)
        assert (convolution.kernel_size, convolution.stride, convolution.padding) == ((5,), (1,), (2,))
        assert (normalization.num_groups, normalization.num_channels) == (8, outputs)
    assert isinstance(block.embedding[0], ActivatedBefore)
    if inputs == outputs:
        assert isinstance(block.residual, nn.Identity)
    else:
        assert block.residual.kernel_size == (1,)


def test_layers_are_those_of_the_paper():
    network = make_network((1, 2, 4))
    for i, (level, (inputs, outputs)) in enumerate(zip(network.down, [(5, 16), (16, 32), (32, 64)], strict=True)):
        first, second, _, downsample = level
        assert_residual_block(first, inputs, outputs)
        assert_residual_block(second, outputs, outputs)
        if i < 2:
            assert isinstance(downsample, nn.Conv1d)
            assert (downsample.kernel_size, downsample.stride, downsample.padding) == ((3,), (2,), (1,))
        else:
            assert isinstance(downsample, nn.Identity)
    assert_residual_block(network.middle_first, 64, 64)
    assert_residual_block(network.middle_second, 64, 64)
    for level, (inputs, outputs) in zip(network.up, [(128, 32), (64, 16)], strict=True):
        first, second, _, upsample = level
        assert_residual_block(first, inputs, outputs)
        assert_residual_block(second, outputs, outputs)
        assert isinstance(upsample, nn.ConvTranspose1d)
        assert (upsample.kernel_size, upsample.stride, upsample.padding) == ((4,), (2,), (1,))
    block, last = network.final
    assert isinstance(block, Conv1dBlock)
    assert block.convolution.kernel_size == (5,)
    assert (last.kernel_size, last.in_channels, last.out_channels) == ((1,), 16, 5)


def test_linear_attention_is_its_sums():
    """y_i = x_i + W sum_j k_j (q_i . ...) written out with loops over heads and steps."""
    torch.manual_seed(0)
    layer = LinearAttention(6, num_heads=2, head_dim=3).double()
    with torch.no_grad():
        layer.gain.normal_()
        layer.bias.normal_()
    x = torch.randn(1, 6, 5, dtype=torch.float64)
    columns = [(x[0, :, t] - x[0, :, t].mean()) / (x[0, :, t].var(unbiased=False) + 1e-5).sqrt() for t in range(5)]
    normalized = torch.stack(columns, dim=1) * layer.gain[0] + layer.bias[0]
    queries, keys, values = (layer.to_qkv.weight[:, :, 0] @ normalized).chunk(3)
    heads = []
    for head in range(2):
        rows = slice(3 * head, 3 * head + 3)
        q, k, v = queries[rows] / 3**0.5, keys[rows].exp(), values[rows]
        k = k / k.sum(dim=1, keepdim=True)  # over time
        heads.append(sum(torch.outer(v[:, j], k[:, j]) for j in range(5)) @ q)
    expected = x[0] + layer.to_out.weight[:, :, 0] @ torch.cat(heads) + layer.to_out.bias[:, None]
    torch.testing.assert_close(layer(x[:, :, None])[0, :, 0], expected)


@pytest.mark.parametrize("attention", [False, True])
def test_forward_pass_is_the_papers_layer_by_layer(attention):
    """The pass of `diffuser/models/temporal.py` written with plain functions and the weights of the network."""
    network = make_network((1, 2, 4), attention=attention)
    weights = network.state_dict()
    x, steps = make_input(network, 12)

    def convolution_block(h, name):
        h = F.conv1d(h, weights[f"{name}.convolution.weight"], weights[f"{name}.convolution.bias"], padding=2)
        h = F.group_norm(h, 8, weights[f"{name}.normalization.weight"], weights[f"{name}.normalization.bias"])
        return h * torch.tanh(F.softplus(h))  # Mish

    def linear(h, name):
        return h @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def residual_block(h, name):
        shortcut = h
        if f"{name}.residual.weight" in weights:
            shortcut = F.conv1d(h, weights[f"{name}.residual.weight"], weights[f"{name}.residual.bias"])
        added = linear(F.mish(embedding), f"{name}.embedding.1")[:, :, None]
        return convolution_block(convolution_block(h, f"{name}.first") + added, f"{name}.second") + shortcut

    def attend(h, name):
        return network.get_submodule(name)(h[:, :, None])[:, :, 0]

    embedding = SinusoidalEmbedding(16)(steps)
    embedding = linear(F.mish(linear(embedding, "embedding.1")), "embedding.3")
    h, skips = x.transpose(1, 2), []
    for i in range(3):
        h = attend(residual_block(residual_block(h, f"down.{i}.0"), f"down.{i}.1"), f"down.{i}.2")
        skips.append(h)
        if i < 2:
            h = F.conv1d(h, weights[f"down.{i}.3.weight"], weights[f"down.{i}.3.bias"], stride=2, padding=1)
    h = residual_block(attend(residual_block(h, "middle_first"), "middle_attention"), "middle_second")
    for i in range(2):
        h = torch.cat([h, skips[2 - i]], dim=1)
        h = attend(residual_block(residual_block(h, f"up.{i}.0"), f"up.{i}.1"), f"up.{i}.2")
        h = F.conv_transpose1d(h, weights[f"up.{i}.3.weight"], weights[f"up.{i}.3.bias"], stride=2, padding=1)
    h = F.conv1d(convolution_block(h, "final.0"), weights["final.1.weight"], weights["final.1.bias"])
    torch.testing.assert_close(network(x, steps), h.transpose(1, 2), rtol=1e-4, atol=1e-5)

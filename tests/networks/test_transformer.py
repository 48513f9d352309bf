import pytest
import torch
from torch.nn import functional as F

from diffplan.config import NetworkConfig
from diffplan.networks.transformer import TemporalTransformer


def make_network(transition_dim=5, trained=True, **sizes):
    torch.manual_seed(0)
    sizes = {"dim": 32, "depth": 2, **sizes}
    network = TemporalTransformer(transition_dim, NetworkConfig(kind="transformer", **sizes))
    if trained:  # what starts at 0 does so no longer
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def test_output_is_0_at_first():
    network = make_network(trained=False)
    assert (network(torch.randn(3, 9, 5), torch.arange(3)) == 0).all()


def test_every_block_passes_its_input_on_at_first():
    network = make_network(trained=False, depth=3)
    x = torch.randn(2, 6, 32)
    *modulations, _ = network._modulations(torch.randn(2, 32))
    assert len(modulations) == 3
    for block, modulation in zip(network.blocks, modulations, strict=True):
        torch.testing.assert_close(block(x, modulation, network._rotation(6), None), x, rtol=0, atol=0)


def test_every_horizon_from_2_up_keeps_its_shape():
    network = make_network(depth=1)
    for horizon in range(2, 101):
        output = network(torch.randn(2, horizon, 5), torch.arange(2))
        assert output.shape == (2, horizon, 5)
        assert torch.isfinite(output).all()


@pytest.mark.parametrize("horizon", [0, 1])
def test_shorter_horizon_is_refused(horizon):
    with pytest.raises(ValueError, match=rf"^horizon: expected at least 2 for this network, got {horizon}$"):
        make_network()(torch.zeros(1, horizon, 5), torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize("sizes", [{"dim": 8, "num_heads": 4}, {"dim": 24, "num_heads": 3}, {"num_heads": 1}])
def test_sizes_may_be_any_that_the_config_allows(sizes):
    assert make_network(**sizes)(torch.randn(2, 7, 5), torch.arange(2)).shape == (2, 7, 5)


def test_every_step_of_the_output_depends_on_every_step_of_the_input():
    network = make_network()
    x = torch.randn(1, 12, 5)
    jacobian = torch.autograd.functional.jacobian(lambda x: network(x, torch.tensor([3])).sum(dim=(0, 2)), x)
    assert (jacobian[:, 0].abs().sum(dim=-1) > 0).all()


def test_steps_that_look_alike_are_told_apart_by_their_place():
    network = make_network()
    output = network(torch.ones(1, 10, 5), torch.zeros(1, dtype=torch.long))[0]
    distances = torch.cdist(output, output) + torch.eye(10)
    assert distances.min() > 1e-3


def test_the_end_is_known_wherever_it_is():
    """Without attention a step knows only itself and its place, so the last differs from the same one further in."""
    network = make_network()
    with torch.no_grad():
        for block in network.blocks:
            block.to_out.weight.zero_()
            block.to_out.bias.zero_()
    step = torch.zeros(1, dtype=torch.long)
    short, long = network(torch.ones(1, 10, 5), step)[0], network(torch.ones(1, 20, 5), step)[0]
    assert (short[-1] - long[9]).abs().max() > 1e-3
    with torch.no_grad():
        network.from_end.weight.zero_()
    short, long = network(torch.ones(1, 10, 5), step)[0], network(torch.ones(1, 20, 5), step)[0]
    torch.testing.assert_close(short[-1], long[9])
    assert (short[0] - short[1]).abs().max() > 1e-3


def test_output_depends_on_the_diffusion_step_of_its_own_row_only():
    network = make_network()
    x = torch.randn(3, 8, 5)
    first, second = network(x, torch.tensor([1, 1, 1])), network(x, torch.tensor([1, 2, 1]))
    torch.testing.assert_close(first[[0, 2]], second[[0, 2]])
    assert (first[1] - second[1]).abs().max() > 1e-4


def test_rotation_is_its_formula_and_relative():
    """Products of rotated vectors written out as complex numbers: they depend on the distance of the steps only."""
    network = make_network(dim=16, num_heads=2)
    cosines, signed_sines = (part[:, 0, 0] for part in network._rotation(6))
    vector = torch.randn(8)
    rotated = vector * cosines + vector.roll(4) * signed_sines
    planes = torch.complex(vector[:4], vector[4:])
    for step in range(6):
        angles = torch.tensor([step * 10_000 ** (-i / 4) for i in range(4)])
        expected = planes * torch.polar(torch.ones(4), angles)
        torch.testing.assert_close(rotated[step], torch.cat([expected.real, expected.imag]))
    products = rotated @ rotated.T
    torch.testing.assert_close(products.diagonal(2), products[0, 2].expand(4), rtol=1e-4, atol=1e-4)


def test_forward_pass_is_that_of_dit_written_out():
    """Adaptive normalisation, attention by explicit sums for each head, gates; all in double precision."""
    network = make_network(dim=16, num_heads=2, depth=2).double()
    x, steps = torch.randn(2, 7, 5, dtype=torch.float64), torch.tensor([3, 8])
    embedding = network.embedding(steps)
    *modulations, (scale, shift) = network._modulations(embedding)
    cosines, signed_sines = (part[:, 0, 0] for part in network._rotation(7))
    features = network.position_features(torch.arange(7))
    hidden = network.to_hidden(x) + network.from_start(features) + network.from_end(features.flip(0))

    def normalize(h):
        return (h - h.mean(-1, keepdim=True)) / (h.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()

    def rotate(h):
        return h * cosines + h.roll(4, -1) * signed_sines

    for block, (scale_1, shift_1, gate_1, scale_2, shift_2, gate_2) in zip(network.blocks, modulations, strict=True):
        q, k, v = block.to_qkv(normalize(hidden) * scale_1 + shift_1).chunk(3, dim=-1)
        heads = []
        for head in (slice(0, 8), slice(8, 16)):
            logits = rotate(q[..., head]) @ rotate(k[..., head]).transpose(1, 2) / 8**0.5
            heads.append(logits.softmax(dim=-1) @ v[..., head])
        hidden = hidden + gate_1 * block.to_out(torch.cat(heads, dim=-1))
        inner = F.gelu(block.mlp[0](normalize(hidden) * scale_2 + shift_2), approximate="tanh")
        hidden = hidden + gate_2 * block.mlp[2](inner)
    expected = network.to_output(normalize(hidden) * scale + shift)
    torch.testing.assert_close(network(x, steps), expected, rtol=1e-5, atol=1e-6)


def test_it_learns_to_join_two_ends_by_a_straight_line():
    """Everything between the first and the last step is noise; lengths vary, so the end must be found by its place."""
    network = make_network(2, trained=False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)

    def compute_error(batch_size):
        lengths = torch.randint(4, 13, (batch_size,), generator=generator)
        start, end = torch.rand(2, batch_size, 1, 2, generator=generator) * 2 - 1
        fraction = (torch.arange(12) / (lengths[:, None] - 1))[:, :, None]
        line = start + (end - start) * fraction
        x = torch.randn(line.shape, generator=generator)
        is_end = (fraction == 0) | (fraction == 1)
        predicted = network(torch.where(is_end, line, x), torch.zeros(batch_size, dtype=torch.long), lengths=lengths)
        return (predicted - line)[(fraction <= 1)[:, :, 0]].square().mean()

    before = compute_error(256).item()
    for _ in range(250):
        loss = compute_error(64)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert compute_error(256).item() < 0.1 * before

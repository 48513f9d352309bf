import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from diffplan.config import NetworkConfig
from diffplan.networks.blocks import as_images
from diffplan.networks.packing import FEW_MULTIPLICATIONS, Conv1d, Packing, Packings, Upsample1d, group_norm, multiply
from diffplan.networks.temporal_unet import TemporalUnet

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def make_packed(lengths, channels, seed=0):
    """A packing, its steps in double precision, and the trajectories one by one, as images one pixel high."""
    torch.manual_seed(seed)
    packing = Packing(torch.tensor(lengths, dtype=torch.int32))
    x = torch.randn(sum(lengths), channels, dtype=torch.float64)
    return packing, x, [as_images(row[None]) for row in x.split(lengths)]


def joined(rows):
    return torch.cat([row[0, :, 0].T for row in rows])


@given(LENGTHS)
def test_packing_and_padding_undo_each_other_and_nothing_of_the_padding_is_taken(lengths):
    packing, x, rows = make_packed(lengths, 3)
    assert len(packing) == sum(lengths)
    padded = packing.pad(x, 11)
    for i, row in enumerate(rows):
        assert torch.equal(padded[i, : lengths[i]], row[0, :, 0].T)
        assert (padded[i, lengths[i] :] == 0).all()
        padded[i, lengths[i] :] = torch.nan
    assert torch.equal(packing.pack(padded), x)
    assert torch.equal(packing.pad(x, 2), torch.nan_to_num(padded)[:, :2])


@given(LENGTHS)
def test_sums_and_spreads_are_those_of_each_trajectory(lengths):
    packing, x, rows = make_packed(lengths, 3)
    sums = packing.sum(x)
    assert packing.spread(sums).shape == x.shape
    torch.testing.assert_close(sums, torch.cat([row.sum(dim=(2, 3)) for row in rows]))
    expected = torch.cat([total.expand(length, -1) for total, length in zip(sums, lengths, strict=True)])
    assert torch.equal(packing.spread(sums), expected)


@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 1), (3, 1), (5, 1), (3, 2), (5, 2)])
@given(lengths=LENGTHS)
def test_convolution_is_that_of_each_trajectory_alone(kernel_size, stride, lengths):
    packing, x, rows = make_packed(lengths, 3)
    layer = Conv1d(3, 4, kernel_size, stride).double()
    packed = layer(x, packing)
    torch.testing.assert_close(packed, joined([layer(row) for row in rows]))
    if stride == 2:
        assert len(packing.halved) == len(packed)


@given(lengths=LENGTHS)
def test_upsampling_is_that_of_each_trajectory_alone(lengths):
    packing, x, rows = make_packed(lengths, 3)
    layer = Upsample1d(3).double()
    torch.testing.assert_close(layer(x, packing), joined([layer(row) for row in rows]))


@given(lengths=st.lists(st.integers(2, 9), min_size=1, max_size=6))
def test_group_norm_is_that_of_each_trajectory_alone(lengths):
    packing, x, rows = make_packed(lengths, 6)
    layer = torch.nn.GroupNorm(3, 6).double()
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    torch.testing.assert_close(group_norm(x, packing, layer), joined([layer(row) for row in rows]))


@pytest.mark.parametrize("layer", [Conv1d(3, 3, 5), Conv1d(3, 3, 3, stride=2), Upsample1d(3)])
def test_gradients_of_steps_and_weights_are_those_of_each_trajectory_alone(layer):
    layer = copy.deepcopy(layer).double()
    packing, x, rows = make_packed([4, 1, 7], 3)
    x.requires_grad_()
    got = torch.autograd.grad(layer(x, packing).square().sum(), [x, layer.weight, layer.bias])
    rows = [row.detach().requires_grad_() for row in rows]
    loss = sum(layer(row).square().sum() for row in rows)
    *of_rows, weight, bias = torch.autograd.grad(loss, [*rows, layer.weight, layer.bias])
    for one, other in zip(got, (joined(of_rows), weight, bias), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(
    "layer", [Conv1d(3, 4, 1), Conv1d(3, 4, 5), Conv1d(3, 3, 3, stride=2), Conv1d(4, 3, 1), Upsample1d(3)]
)
def test_of_images_one_pixel_high_it_is_what_torch_makes_of_a_single_dimension(layer, apart):
    layer = copy.deepcopy(layer).double()
    torch.manual_seed(0)
    x = torch.randn(2, 7, layer.in_channels, dtype=torch.float64, requires_grad=True)
    images = as_images(x).contiguous() if apart else as_images(x)
    of_torch = F.conv_transpose1d if isinstance(layer, Upsample1d) else F.conv1d
    expected = of_torch(x.mT, layer.weight, layer.bias, layer.stride, layer.padding)
    expected_gradients = torch.autograd.grad(expected.square().sum(), [x, layer.weight, layer.bias])
    got = layer(images)
    torch.testing.assert_close(got[:, :, 0], expected)
    assert apart or got.is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(
        torch.autograd.grad(got.square().sum(), [x, layer.weight, layer.bias]), expected_gradients, strict=True
    ):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(layer(images), got)


def test_channels_of_a_trajectory_stay_next_to_each_other():
    x = torch.randn(2, 7, 3)
    assert as_images(x).shape == (2, 3, 1, 7)
    assert as_images(x).data_ptr() == x.data_ptr()
    assert as_images(x).is_contiguous(memory_format=torch.channels_last)


def change_in_place(layer):  # as averages of weights do, which are never trained
    with torch.no_grad():
        layer.weight.mul_(2)


def take_an_optimizer_step(layer):
    optimizer = torch.optim.Adam(layer.train().parameters(), lr=0.1, fused=True)
    layer(torch.ones(1, 3, 1, 6, dtype=layer.weight.dtype)).square().sum().backward()
    optimizer.step()


def load_other_weights(layer):
    layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()})


def put_other_weights(layer):
    layer.weight = torch.nn.Parameter(torch.ones_like(layer.weight))


@pytest.mark.parametrize("make", [lambda: Conv1d(3, 3, 5), lambda: Upsample1d(3)])
@pytest.mark.parametrize(
    "change",
    [change_in_place, take_an_optimizer_step, load_other_weights, put_other_weights, lambda layer: layer.float()],
)
def test_weights_that_changed_are_laid_out_anew(make, change):
    layer = make().double().eval()
    packing, x, _ = make_packed([2, 6], 3)
    with torch.no_grad():
        before = layer(x, packing)
        assert torch.equal(layer(x, packing), before)
        with torch.enable_grad():
            change(layer)
        x = x.to(layer.weight.dtype)
        after = layer(x, packing)
        expected = joined([layer(as_images(row[None])) for row in x.split([2, 6])])
    torch.testing.assert_close(after, expected)
    assert after.dtype != before.dtype or not torch.allclose(after, before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_have_weights_of_their_own(copied):
    layer = Conv1d(3, 3, 5).double().eval()
    packing, x, _ = make_packed([2, 6], 3)
    with torch.no_grad():
        before = layer(x, packing)
        other = copied(layer)
        assert torch.equal(other(x, packing), before)
        other.weight.zero_()
        assert torch.equal(other(x, packing), other.bias.expand(8, 3))
        assert torch.equal(layer(x, packing), before)


def test_it_is_laid_out_once_where_nothing_changes(monkeypatch):
    layer, packing = Conv1d(3, 4, 5).eval(), Packing(torch.tensor([2]))
    laid_out, calls = Conv1d._lay_out, []
    monkeypatch.setattr(Conv1d, "_lay_out", lambda self: calls.append(1) or laid_out(self))
    with torch.no_grad():
        for _ in range(3):
            layer(torch.zeros(2, 3), packing)
        assert len(calls) == 1
        layer.train()
        for _ in range(2):
            layer(torch.zeros(2, 3), packing)
        assert len(calls) == 3


def test_what_is_laid_out_is_no_part_of_the_state():
    layer = Conv1d(3, 4, 5).eval()
    with torch.no_grad():
        layer(torch.zeros(2, 3), Packing(torch.tensor([2])))
    assert set(layer.state_dict()) == {"weight", "bias"}


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("steps", [1, 7, 400, 3001])
def test_products_by_one_dnn_are_those_of_torch(steps):
    torch.manual_seed(0)
    x, matrix, bias = torch.randn(steps, 320), torch.randn(320, 64), torch.randn(64)
    expected = (x.double() @ matrix.double() + bias).float()
    with torch.no_grad(), torch.profiler.profile() as profile:
        product = multiply(x, matrix, bias)
    torch.testing.assert_close(product, expected, atol=1e-4, rtol=1e-5)
    called = {event.key for event in profile.key_averages()}
    assert ("mkldnn::_linear_pointwise" in called) == (x.numel() * 64 >= FEW_MULTIPLICATIONS)


def test_products_have_gradients():
    x, matrix, bias = torch.randn(3000, 64), torch.randn(64, 32), torch.randn(32)
    x.requires_grad_()
    multiply(x, matrix, bias).sum().backward()
    torch.testing.assert_close(x.grad, matrix.sum(dim=1).expand(3000, -1))


def test_passes_over_the_same_trajectories_share_one_packing():
    torch.manual_seed(0)
    network = TemporalUnet(4, NetworkConfig(dim=8, dim_mults=(1, 2))).eval()
    x, steps, lengths = torch.randn(3, 12, 4), torch.tensor([2]), torch.tensor([5, 12, 8])
    packings = Packings()
    with torch.no_grad():
        expected = network(x, steps, lengths=lengths)
        assert torch.equal(network(x, steps, lengths=lengths, packings=packings), expected)
        packing = packings.of(lengths, network.min_horizon)
        assert torch.equal(network(x, steps, lengths=lengths, packings=packings), expected)
    assert packings.of(lengths, network.min_horizon) is packing
    assert packings.of(lengths.clone(), network.min_horizon) is not packing
    assert packing.lengths.tolist() == [6, 12, 8]

"""Passes that are filled up to one of a few shapes and recorded as CUDA graphs, against those that are not."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffplan.config import NetworkConfig
from diffplan.networks.factory import make_network
from diffplan.networks.packing import Packing
from diffplan.networks.recorded import RecordedNetwork, Shape, record_passes, run_filled

TRANSITION_DIM = 6
CONFIG = NetworkConfig(dim=8, dim_mults=(1, 2, 4))
MULTIPLE = CONFIG.min_horizon
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="records CUDA graphs")


def make(config=CONFIG):
    torch.manual_seed(0)
    network = make_network(TRANSITION_DIM, config, 2).eval()
    for parameter in network.parameters():  # some start as zeros
        torch.nn.init.normal_(parameter, std=0.1)
    return network


NETWORK = make()


@given(
    num_rows=st.integers(1, 600), lengths=st.lists(st.integers(MULTIPLE, 64), min_size=1, max_size=50), data=st.data()
)
def test_shapes_hold_what_they_are_made_for_and_little_more(num_rows, lengths, data):
    lengths = torch.tensor(lengths * (num_rows // len(lengths) + 1))[:num_rows]
    total = int((-(-lengths // MULTIPLE) * MULTIPLE).sum())
    shape = Shape.holding(num_rows, total, int(lengths.max()), MULTIPLE)
    assert num_rows <= shape.num_rows < 2 * num_rows
    assert int(lengths.max()) <= shape.horizon < 2 * int(lengths.max())
    assert shape.horizon % MULTIPLE == 0
    least = total + (shape.num_rows - num_rows) * MULTIPLE
    assert least + MULTIPLE <= shape.num_steps <= 1.25 * (least + MULTIPLE) + 64
    assert shape.num_steps % MULTIPLE == 0


def test_shapes_are_few():
    shapes = {Shape.holding(rows, rows * mean, 64, 4) for rows in range(1, 513) for mean in range(8, 64, 4)}
    assert len(shapes) < 200


@settings(max_examples=30)
@given(lengths=st.lists(st.integers(MULTIPLE, 24), min_size=1, max_size=7), spare=st.integers(1, 30))
def test_filled_passes_are_the_network_for_each_trajectory(lengths, spare):
    lengths = torch.tensor(lengths)
    generator = torch.Generator().manual_seed(len(lengths))
    x = torch.randn(len(lengths), 24, TRANSITION_DIM, generator=generator)
    diffusion_step = torch.randint(50, (len(lengths),), generator=generator)
    num_steps = int((-(-lengths // MULTIPLE) * MULTIPLE).sum()) + spare * MULTIPLE
    with torch.no_grad():
        expected = NETWORK(x, diffusion_step, lengths=lengths)
        got = run_filled(NETWORK, x, diffusion_step, lengths, num_steps)
    assert got.shape == expected.shape
    for row, length in enumerate(lengths):
        torch.testing.assert_close(got[row, :length], expected[row, :length])


def test_attention_looks_at_nothing_that_fills_a_batch():
    network = make(NetworkConfig(dim=8, dim_mults=(1, 2), attention=True))
    lengths, x = torch.tensor([4, 7, 6]), torch.randn(3, 8, TRANSITION_DIM)
    steps = torch.tensor([3, 9, 3])
    with torch.no_grad():
        expected = network(x, steps, lengths=lengths)
        got = run_filled(network, x, steps, lengths, 40)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(got[row, :length], expected[row, :length])


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 20))
def test_filled_packings_are_packings_with_one_more_trajectory(lengths, spare):
    lengths = 4 * torch.tensor(lengths)
    total = int(lengths.sum())
    filled = Packing.filled(lengths, 4, total + 4 * spare, int(lengths.max()))
    plain = Packing(torch.cat([lengths, torch.tensor([4 * spare])]))
    for one, other in ((filled, plain), (filled.halved, plain.halved), (filled.halved.halved, plain.halved.halved)):
        assert len(one) == len(other)
        assert torch.equal(one.lengths, other.lengths)
        assert torch.equal(one.rows, other.rows)
        assert torch.equal(one.steps, other.steps)


def test_on_a_cpu_networks_are_what_they_are():
    assert record_passes(NETWORK, "cpu") is NETWORK
    transformer = make_network(TRANSITION_DIM, NetworkConfig(kind="transformer", dim=16, depth=1, num_heads=2), 2)
    assert record_passes(transformer, "cuda") is transformer
    x, lengths = torch.randn(2, 8, TRANSITION_DIM), torch.tensor([8, 5])
    with torch.no_grad():
        got = RecordedNetwork(NETWORK)(x, torch.tensor([3]), lengths=lengths)
        assert torch.equal(got, NETWORK(x, torch.tensor([3]), lengths=lengths))


def test_what_cannot_be_recorded_is_computed_all_the_same(monkeypatch):
    def fail(self, shape, like):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(RecordedNetwork, "_can_record", lambda self, device: True)
    monkeypatch.setattr(RecordedNetwork, "_record", fail)
    x, lengths = torch.randn(2, 8, TRANSITION_DIM), torch.tensor([8, 5])
    pattern = (
        "^a pass on the GPU could not be recorded, and takes longer: operation not permitted when stream is capturing$"
    )
    with torch.no_grad(), pytest.warns(UserWarning, match=pattern):
        got = RecordedNetwork(NETWORK)(x, torch.tensor([3]), lengths=lengths)
    with torch.no_grad():
        assert torch.equal(got, NETWORK(x, torch.tensor([3]), lengths=lengths))


@needs_gpu
def test_recorded_passes_are_the_network_whatever_was_recorded_before():
    network = copy.deepcopy(NETWORK).cuda()
    recorded = record_passes(network, "cuda")
    assert isinstance(recorded, RecordedNetwork)
    generator = torch.Generator().manual_seed(0)
    problems = []
    for batch, horizon in [(3, 12), (40, 30), (1, 9), (3, 12), (33, 64), (5, 12), (40, 30)]:
        lengths = torch.randint(MULTIPLE, horizon + 1, (batch,), generator=generator)
        x = torch.randn(batch, horizon, TRANSITION_DIM, generator=generator)
        steps = torch.randint(50, (batch,), generator=generator)
        problems.append((x.cuda(), steps.cuda(), lengths.cuda()))
    with torch.no_grad():
        for x, steps, lengths in 2 * problems:
            expected = network(x, steps, lengths=lengths)
            got = recorded(x, steps, lengths=lengths)
            for row, length in enumerate(lengths.tolist()):
                torch.testing.assert_close(got[row, :length], expected[row, :length], rtol=1e-3, atol=1e-4)
            one = recorded(x, steps[:1])
            torch.testing.assert_close(one, network(x, steps[:1]), rtol=1e-2, atol=1e-2)  # convolved in TF32
    assert 1 < len(recorded._recordings) <= 10
    x, steps, lengths = problems[0]
    x.requires_grad_()
    recorded(x, steps, lengths=lengths).sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).any()


@needs_gpu
def test_lengths_that_change_in_place_are_seen():
    network = copy.deepcopy(NETWORK).cuda()
    recorded = record_passes(network, "cuda")
    x, steps, lengths = torch.randn(2, 16, TRANSITION_DIM).cuda(), torch.tensor([3]).cuda(), torch.tensor([5, 8]).cuda()
    with torch.no_grad():
        recorded(x, steps, lengths=lengths)
        lengths.fill_(16)
        got, expected = recorded(x, steps, lengths=lengths), network(x, steps, lengths=lengths)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)

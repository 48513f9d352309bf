import threading

import pytest
import torch
from torch import nn

from diffplan.config import NetworkConfig
from diffplan.networks.gathering import GatheringNetwork
from diffplan.networks.temporal_unet import TemporalUnet


class Gate(nn.Module):
    """A network that holds its first call until it is opened, and notes the rows and lengths of every call."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.calls = []
        self.entered, self.opened = threading.Event(), threading.Event()

    def forward(self, x, diffusion_step, **told):
        """What the network gives."""
        self.calls.append((len(x), None if told.get("lengths") is None else told["lengths"].tolist()))
        self.entered.set()
        assert self.opened.wait(30)
        return self.network(x, diffusion_step, **told)


def make_network(**config):
    torch.manual_seed(0)
    return TemporalUnet(4, NetworkConfig(dim=16, dim_mults=(1, 2), **config)).eval()


def call_while_busy(gathering, gate, calls):
    """Make calls by threads of their own while another keeps the network busy; their outputs or errors in order."""
    results = [None] * len(calls)

    def call(i, args, told):
        with torch.no_grad():
            try:
                results[i] = gathering(*args, **told)
            except Exception as error:
                results[i] = error

    first = threading.Thread(target=call, args=(0, *calls[0]))
    first.start()
    assert gate.entered.wait(30)
    others = [threading.Thread(target=call, args=(i, *calls[i])) for i in range(1, len(calls))]
    for thread in others:
        thread.start()
    while len(gathering._waiting) < len(others):
        threading.Event().wait(0.01)
    gate.opened.set()
    for thread in [first, *others]:
        thread.join(30)
    return results


def make_call(num, horizon, step, lengths=None, **told):
    x = torch.randn(num, horizon, 4, generator=torch.Generator().manual_seed(horizon))
    if lengths is not None:
        told["lengths"] = torch.tensor(lengths)
    return (x, torch.full((num,), step)), told


def test_calls_made_while_it_is_busy_are_computed_together():
    network = make_network()
    gate = Gate(network)
    calls = [make_call(2, 8, 3), make_call(1, 12, 7), make_call(3, 20, 1, lengths=[8, 20, 11]), make_call(2, 8, 0)]
    results = call_while_busy(GatheringNetwork(gate), gate, calls)
    assert gate.calls[0] == (2, None)
    assert len(gate.calls) == 2
    assert sorted(gate.calls[1][1]) == sorted([12, 8, 20, 11, 8, 8])
    for (args, told), result in zip(calls, results, strict=True):
        with torch.no_grad():
            alone = network(*args, **told)
        assert result.shape == alone.shape
        for row, length in enumerate(told.get("lengths", torch.full((len(alone),), alone.shape[1])).tolist()):
            torch.testing.assert_close(result[row, :length], alone[row, :length], rtol=1e-4, atol=1e-5)


def test_one_thread_alone_gets_what_the_network_gives_to_the_last_bit():
    network = make_network()
    for args, told in (make_call(3, 12, 2), make_call(2, 16, 2, lengths=[9, 16])):
        with torch.no_grad():
            assert torch.equal(GatheringNetwork(network)(*args, **told), network(*args, **told))


def test_conditions_told_and_withheld_are_not_mixed():
    network = make_network(condition="returns")
    gate = Gate(network)
    told = [make_call(1, 8, 3, condition=torch.tensor([0.1 * i])) for i in range(3)]
    calls = [*told, make_call(1, 8, 3), make_call(2, 8, 5)]
    results = call_while_busy(GatheringNetwork(gate), gate, calls)
    assert sorted(num for num, _ in gate.calls) == [1, 2, 3]
    for (args, more), result in zip(calls, results, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(result, network(*args, **more), rtol=1e-4, atol=1e-5)


def test_an_error_reaches_everybody_it_concerns_and_nobody_else():
    gate = Gate(make_network())
    calls = [make_call(1, 8, 3), make_call(1, 8, 3, condition=torch.ones(1)), make_call(1, 8, 3)]
    results = call_while_busy(GatheringNetwork(gate), gate, calls)
    assert isinstance(results[1], ValueError)
    assert torch.equal(results[0], results[2])


def test_gradients_go_through_it():
    network = make_network()
    (x, step), _ = make_call(2, 8, 3)
    leaves = [x.clone().requires_grad_(True) for _ in range(2)]
    for module, leaf in zip((GatheringNetwork(network), network), leaves, strict=True):
        module(leaf, step).sum().backward()
    assert torch.equal(leaves[0].grad, leaves[1].grad)
    assert leaves[0].grad.abs().max() > 0


@pytest.mark.parametrize("num_threads", [8])
def test_many_threads_each_get_their_own(num_threads):
    network = make_network()
    gathering = GatheringNetwork(network)
    wrong = []

    def ask(seed):
        for i in range(5):
            args, told = make_call(1 + seed % 3, 4 * (2 + (seed + i) % 3), i)
            with torch.no_grad():
                if not torch.allclose(gathering(*args, **told), network(*args, **told), atol=1e-4):
                    wrong.append(seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong

"""Layers that are applied as functions: the numbers, gradients and weights are those of `nn.Sequential`."""

import torch
from torch import nn

from diffplan.networks.layers import Layers


class Doubled(nn.Linear):
    """A layer of another kind, though it is a linear one."""

    def forward(self, input):
        return 2 * super().forward(input)


def test_results_and_gradients_are_those_of_sequential_to_the_last_bit():
    torch.manual_seed(0)
    parts = [nn.LayerNorm(6), nn.Linear(6, 8), nn.SiLU(), Doubled(8, 8), nn.Linear(8, 3, bias=False), nn.Mish()]
    plain, fast = nn.Sequential(*parts), Layers(*parts)
    assert plain.state_dict().keys() == fast.state_dict().keys()
    found = []
    for layers in (plain, fast):
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
        layers.zero_grad()
        out = layers(x)
        out.square().sum().backward()
        found.append([out, x.grad, *(parameter.grad.clone() for parameter in layers.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain(torch.ones(2, 6)), fast(torch.ones(2, 6)))

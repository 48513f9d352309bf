import pytest
import torch
from torch import nn

from diffplan.config import NetworkConfig
from diffplan.networks.factory import count_parameters, make_network
from diffplan.networks.perceptron import PerceptronDenoiser
from diffplan.networks.temporal_unet import TemporalUnet
from diffplan.networks.transformer import TemporalTransformer


@pytest.mark.parametrize(
    ("kind", "expected"), [("unet", TemporalUnet), ("transformer", TemporalTransformer), ("mlp", PerceptronDenoiser)]
)
def test_network_is_of_the_kind_asked_for(kind, expected):
    network = make_network(4, NetworkConfig(kind=kind), 8)
    assert type(network) is expected
    assert network.min_horizon == NetworkConfig(kind=kind).min_horizon
    assert network(torch.zeros(2, 8, 4), torch.zeros(2, dtype=torch.long)).shape == (2, 8, 4)


def test_frozen_parameters_are_not_counted():
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    assert count_parameters(layer) == 6

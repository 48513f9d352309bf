"""The denoising network of a config."""

from __future__ import annotations

from torch import nn

from diffplan.config import NetworkConfig
from diffplan.networks.perceptron import PerceptronDenoiser
from diffplan.networks.temporal_unet import TemporalUnet
from diffplan.networks.transformer import TemporalTransformer


def make_network(transition_dim: int, config: NetworkConfig, horizon: int, num_known: int = 0) -> nn.Module:
    """A denoising network with fresh weights; called as (x, diffusion_step, *, lengths=None, condition=None).

    Args:
        transition_dim: columns of a transition.
        config: kind and sizes.
        horizon: steps of the longest trajectory; the only horizon of a perceptron.
        num_known: columns that it is told of whether they are known at the last step; 0 unless it is a perceptron.
    """
    if config.kind == "mlp":
        return PerceptronDenoiser(transition_dim, config, horizon, num_known)
    kinds = {"unet": TemporalUnet, "transformer": TemporalTransformer}
    return kinds[config.kind](transition_dim, config)


def count_parameters(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)

"""Layers in a row, for networks that are so small that calling a module costs as much as a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Layers(nn.Sequential):
    """As `nn.Sequential`, with the same weights and results to the last bit, but common layers are called as functions.

    Hooks of these layers are not called.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The output of the last layer."""
        x = input
        for layer in self._modules.values():
            if type(layer) is nn.Linear:
                x = F.linear(x, layer._parameters["weight"], layer._parameters["bias"])  # type: ignore[arg-type]
            elif type(layer) is nn.LayerNorm:
                own = layer._parameters
                x = torch.layer_norm(x, layer.normalized_shape, own["weight"], own["bias"], layer.eps)
            elif type(layer) is nn.SiLU:
                x = F.silu(x)
            else:
                assert layer is not None
                x = layer(x)
        return x

"""All parameters of a network in one tensor, and their gradients in another.

Clipping, the optimizer and the moving average then are a few passes over one array each, in place of several calls for
each of some hundred tensors: on a CPU a fifth of a small network's step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

ALIGNMENT = 16
"""Every parameter begins at a multiple of so many numbers (64 bytes in single precision), as libraries like it."""


def uses_channels_last(device: torch.device) -> bool:
    """Whether weights of convolutions have their channels next to each other in memory, on a device."""
    return device.type == "cpu"


class FlatParameters(nn.Module):
    """Moves the parameters of a network into one, of which they are views from then on.

    The network's state dict, its forward and its backward pass stay what they were.

    On a CPU the weights of convolutions lie as the images that they are applied to, channels next to each other
    (`networks.packing.convolve`), which would otherwise be made of them in every pass. Files hold them in the order of
    their shape (`to_plain`), so that training can go on on another device.

    Args:
        network: all of its parameters are trained, and of one dtype and on one device.

    Attributes:
        flat: all parameters, one after the other; 0 in the gaps between them.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        parameters = list(network.parameters())
        self._offsets: list[int] = []
        self._shapes = [parameter.shape for parameter in parameters]
        self._are_images = uses_channels_last(parameters[0].device)
        size = 0
        for parameter in parameters:
            self._offsets.append(size)
            size += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
        self.flat = nn.Parameter(parameters[0].new_zeros(size))
        self.flat.grad = torch.zeros_like(self.flat)
        self.tie(network)

    @property
    def gradient(self) -> Tensor:
        """All gradients, one after the other; 0 in the gaps between them."""
        assert self.flat.grad is not None
        return self.flat.grad

    @torch.no_grad()
    def tie(self, network: nn.Module) -> None:
        """Take the values of a network of the same shape, and make its parameters views of these from now on."""
        for parameter, values, gradient in zip(
            network.parameters(), self._views(self.flat), self._views(self.gradient), strict=True
        ):
            values.copy_(parameter)
            parameter.data = values
            parameter.grad = gradient

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Set all gradients to 0; they are never None, for the network's are views of them."""
        self.gradient.zero_()

    @torch.no_grad()
    def copy_to(self, network: nn.Module) -> None:
        """Write the values into the parameters of a network of the same shape."""
        for parameter, values in zip(network.parameters(), self._views(self.flat), strict=True):
            parameter.copy_(values)

    def to_plain(self, flat: Tensor) -> Tensor:
        """A copy of an array like `flat` (its moments, its average), each parameter in the order of its shape."""
        plain = torch.zeros_like(flat)
        for values, laid_out in zip(self._views(plain, are_images=False), self._views(flat), strict=True):
            values.copy_(laid_out)
        return plain

    def from_plain(self, plain: Tensor) -> Tensor:
        """An array like `flat` from what `to_plain` has made of it, on this or on another device."""
        flat = torch.zeros_like(plain)
        for laid_out, values in zip(self._views(flat), self._views(plain, are_images=False), strict=True):
            laid_out.copy_(values)
        return flat

    def _views(self, flat: Tensor, are_images: bool | None = None) -> list[Tensor]:
        """The parameters in an array like `flat`; where weights are no images, they lie in the order of their shape."""
        are_images = self._are_images if are_images is None else are_images
        views = []
        for offset, shape in zip(self._offsets, self._shapes, strict=True):
            values = flat.detach()[offset : offset + shape.numel()]
            if are_images and len(shape) == 3:
                views.append(values.view(shape[0], shape[2], shape[1]).transpose(1, 2))
            else:
                views.append(values.view(shape))
        return views

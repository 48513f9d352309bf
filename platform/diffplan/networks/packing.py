"""Batches of trajectories of different lengths without padding: the steps of all trajectories, concatenated.

In a packed batch every layer is one matrix product over all steps; a padded batch also computes the padding, and needs
masks around every layer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

FEW_MULTIPLICATIONS = 1_000_000
"""Multiplications up to which MKL's products are faster, because oneDNN's calls have a higher overhead."""


class Packing:
    """The places of the steps of each trajectory in a packed batch, float[steps, channels].

    Args:
        lengths: steps of each trajectory, at least 1.
        num_steps: sum of the lengths, if it is known; on a GPU computing it would wait for the device.
        longest: greatest length of the trajectories (without filling), if it is known.
    """

    @classmethod
    def filled(cls, lengths: Int[Tensor, " batch"], multiple: int, num_steps: int, longest: int) -> Packing:
        """A packing of a given number of steps, so that its shapes do not depend on the lengths.

        Args:
            lengths: steps of each trajectory; rounded up to a multiple of `multiple`.
            multiple: number of steps.
            num_steps: steps of the batch. The remaining steps form an additional last trajectory, without a meaning.
            longest: upper bound of the lengths.
        """
        lengths = -(-lengths // multiple) * multiple
        return cls(torch.cat([lengths, (num_steps - lengths.sum())[None]]), num_steps, longest)

    def __init__(
        self, lengths: Int[Tensor, " batch"], num_steps: int | None = None, longest: int | None = None
    ) -> None:
        self.lengths = lengths.long()
        self._is_filled = num_steps is not None
        num_steps = int(self.lengths.sum()) if num_steps is None else num_steps
        numbers = torch.arange(len(lengths), device=lengths.device)
        self.rows = torch.repeat_interleave(numbers, self.lengths, output_size=num_steps)
        """The trajectory that each step belongs to."""
        self.starts = self.lengths.cumsum(0) - self.lengths
        """First step of each trajectory in the batch."""
        self.longest = int(self.lengths.max()) if longest is None else longest
        self.order = torch.arange(len(self.rows), device=lengths.device)
        self.steps = self.order - self.starts[self.rows]
        """The number of each step in its trajectory."""
        self._windows: dict[int, Tensor] = {}
        self._paddings: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def halved(self) -> Packing:
        """Every other step of each trajectory, the first one included."""
        if not self._is_filled:
            return Packing((self.lengths + 1) // 2)
        return Packing((self.lengths + 1) // 2, (len(self) + 1) // 2, (self.longest + 1) // 2)

    def pack(self, x: Float[Tensor, "batch horizon channels"]) -> Float[Tensor, "steps channels"]:
        """Pack a padded batch; the filling of a filled packing is undefined."""
        if not self._is_filled:
            return x[self.rows, self.steps]
        return x[self.rows.clamp(max=len(x) - 1), self.steps.clamp(max=x.shape[1] - 1)]

    def pad(self, x: Float[Tensor, "steps channels"], horizon: int) -> Float[Tensor, "batch horizon channels"]:
        """The trajectories as a padded batch, 0 behind their ends; steps beyond the horizon are dropped."""
        if horizon not in self._paddings:
            steps = torch.arange(horizon, device=self.rows.device)
            index = (self.starts[:, None] + steps).clamp(max=len(self) - 1)
            self._paddings[horizon] = index.view(-1), (steps >= self.lengths[:, None])[:, :, None]
        index, behind = self._paddings[horizon]
        return x.index_select(0, index).view(-1, horizon, x.shape[1]).masked_fill(behind, 0.0)

    def sum(self, x: Float[Tensor, "steps channels"]) -> Float[Tensor, "batch channels"]:
        """Sums over the steps of each trajectory; undefined for the filling of a filled packing.

        Not by `embedding_bag` on a GPU: one thread there would add all steps of a trajectory, one after the other.
        """
        if x.device.type == "cuda":
            return self.pad(x, self.longest).sum(dim=1)
        return F.embedding_bag(self.order, x, self.starts, mode="sum")

    def spread(self, values: Float[Tensor, "batch channels"]) -> Float[Tensor, "steps channels"]:
        """The value of each trajectory at each of its steps."""
        return values.index_select(0, self.rows)

    def windows(
        self, x: Float[Tensor, "steps channels"], kernel_size: int, stride: int = 1
    ) -> Float[Tensor, "windows kernel_channels"]:
        """The steps around each step (or every other one), side by side, 0 beyond the ends of a trajectory.

        Args:
            x: the batch.
            kernel_size: steps of a window; odd.
            stride: 1, or 2 for windows around every other step, which are those of `halved`.
        """
        key = kernel_size * stride
        if key not in self._windows:
            offsets = torch.arange(kernel_size, device=self.rows.device) - kernel_size // 2
            middles = self if stride == 1 else self.halved
            around = stride * middles.steps[:, None] + offsets
            inside = (around >= 0) & (around < self.lengths[middles.rows][:, None])
            index = self.starts[middles.rows][:, None] + around
            self._windows[key] = torch.where(inside, index, len(self)).view(-1)  # the index of a step of zeros
        with_zeros = torch.cat([x, x.new_zeros(1, x.shape[1])])
        return with_zeros.index_select(0, self._windows[key]).view(-1, kernel_size * x.shape[1])


class Packings:
    """Caches the packing that the passes of a sampler share, because they are over the same plans."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, int, Packing] | None = None

    def of(self, lengths: Int[Tensor, " batch"], multiple: int) -> Packing:
        """The packing of lengths rounded up to a multiple; the cached one if it was made from the same tensor."""
        if self._last is None or self._last[0] is not lengths or self._last[1] != multiple:
            self._last = (lengths, multiple, Packing(-(-lengths // multiple) * multiple))
        return self._last[2]


def multiply(
    x: Float[Tensor, "steps inputs"], matrix: Float[Tensor, "inputs outputs"], bias: Float[Tensor, " outputs"]
) -> Float[Tensor, "steps outputs"]:
    """The matrix product plus the bias, by oneDNN if that is faster and no gradient is needed.

    On a CPU torch uses MKL for products in single precision, which takes twice as long as oneDNN on processors that
    are not Intel's. The operator that calls oneDNN is one that torch's compiler generates; it has no public name.
    """
    if (
        x.device.type != "cpu"
        or x.dtype != torch.float32
        or x.numel() * matrix.shape[1] < FEW_MULTIPLICATIONS
        or torch.is_grad_enabled()
        or not torch.backends.mkldnn.is_available()
    ):
        return torch.addmm(bias, x, matrix)
    return torch.ops.mkldnn._linear_pointwise(x, matrix.t(), bias, "none", [], "")


class _LaidOut(nn.Module):
    """A layer whose weights are rearranged to a matrix for `multiply`.

    The matrix is cached in evaluation mode, until the mode is set again or the version of the weights changes. Fused
    optimizers change weights without a new version, so in training mode and with gradients it is made in every pass.
    """

    weight: Tensor
    _matrix: Tensor | None = None
    _made_of: tuple[object, ...] = ()

    def _lay_out(self) -> Tensor:
        """The matrix of the weights."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> _LaidOut:
        """Set the mode; see `torch.nn.Module.train`."""
        self._matrix = None
        return super().train(mode)

    def _get_matrix(self) -> Tensor:
        weight = self.weight
        if self.training or (torch.is_grad_enabled() and weight.requires_grad):
            return self._lay_out()
        made_of = (weight.data_ptr(), weight._version, weight.dtype, weight.device)
        if self._matrix is None or made_of != self._made_of:
            self._made_of, self._matrix = made_of, self._lay_out().detach()
        return self._matrix


def convolve(
    x: Float[Tensor, "batch inputs 1 horizon"],
    weight: Float[Tensor, "..."],
    bias: Float[Tensor, " outputs"],
    convolution: Callable[..., Tensor],
    **settings: Any,
) -> Float[Tensor, "batch outputs 1 new_horizon"]:
    """A convolution over time, computed on images one pixel high.

    On a CPU (channels last) a convolution of kernel size 1 is a matrix product. With gradients, the bias is added
    separately, because its gradient is slow in oneDNN, and the weights are converted to channels last once for both
    passes; those of `training.flat_parameters` already are.
    """
    if x.device.type == "cpu" and weight.shape[2] == 1:
        return F.linear(x.movedim(1, -1), weight[:, :, 0], bias).movedim(-1, 1)
    weight = weight[:, :, None]
    if x.device.type != "cpu" or not torch.is_grad_enabled():
        return convolution(x, weight, bias, **settings)
    weight = weight.contiguous(memory_format=torch.channels_last)
    return convolution(x, weight, **settings).add_(bias[:, None, None])


class Conv1d(_LaidOut, nn.Conv1d):
    """A convolution over time, of odd kernel size and a stride of 1 or 2, of batches of one length or packed ones."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2)

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "..."], packing: Packing | None = None
    ) -> Float[Tensor, "..."]:
        """The convolution of each trajectory: [batch, channels, 1, horizon], or [steps, channels] with a packing.

        With a stride of 2 the result is packed as `packing.halved`.
        """
        assert self.bias is not None
        size, stride = self.kernel_size[0], self.stride[0]
        if packing is None:
            return convolve(x, self.weight, self.bias, F.conv2d, stride=(1, stride), padding=(0, size // 2))
        windows = x if size == 1 else packing.windows(x, size, stride)
        return multiply(windows, self._get_matrix(), self.bias)

    def _lay_out(self) -> Float[Tensor, "inputs outputs"]:
        return self.weight.permute(2, 1, 0).reshape(-1, self.out_channels).contiguous()


class Upsample1d(_LaidOut, nn.ConvTranspose1d):
    """A transposed convolution that doubles the length, of batches of one length or packed ones."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 4, stride=2, padding=1)

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "..."], packing: Packing | None = None
    ) -> Float[Tensor, "..."]:
        """See `Conv1d.forward`; the result is in a packing of twice the lengths."""
        assert self.bias is not None
        if packing is None:
            return convolve(x, self.weight, self.bias, F.conv_transpose2d, stride=(1, 2), padding=(0, 1))
        both = multiply(packing.windows(x, 3), self._get_matrix(), self.bias.repeat(2))
        return both.view(-1, self.out_channels)

    def _lay_out(self) -> Float[Tensor, "inputs outputs"]:
        """The matrix from the steps before, at and after a step to the two output steps.

        A transposed convolution adds x[i] w[k] to step 2 i + k - 1, so step 2 i takes w[3] of the step before and w[1]
        of step i, and step 2 i + 1 takes w[2] of step i and w[0] of the one after.
        """
        weight = self.weight
        nothing = torch.zeros_like(weight[:, :, 0])
        blocks = [[weight[:, :, 3], nothing], [weight[:, :, 1], weight[:, :, 2]], [nothing, weight[:, :, 0]]]
        return torch.cat([torch.cat(row, dim=1) for row in blocks])


def group_norm(x: Float[Tensor, "steps channels"], packing: Packing, layer: nn.GroupNorm) -> Tensor:
    """A group normalisation of each trajectory of a packed batch."""
    batch, channels = len(packing.lengths), x.shape[1]
    size = channels // layer.num_groups
    share = 1 / (size * packing.lengths[:, None].to(x))

    def average(values: Tensor) -> Tensor:
        """Mean over the steps and channels of each group, [batch, groups]."""
        return packing.sum(values).view(batch, layer.num_groups, size).sum(dim=2) * share

    def widen(values: Tensor) -> Tensor:
        """The value of each group for each of its channels."""
        return values[:, :, None].expand(-1, -1, size).reshape(batch, channels)

    centered = x - packing.spread(widen(average(x)))
    gain = widen((average(centered.square()) + layer.eps).rsqrt()) * layer.weight
    return torch.addcmul(layer.bias, centered, packing.spread(gain))

"""Building blocks of the temporal U-Net.

Inside, trajectories of one length are [batch, channels, 1, horizon], as images one pixel high (`as_images`); those of
different lengths are packed as [steps, channels], described by a `packing`.

Source: Janner et al. 2022, appendix C, and `diffuser/models/helpers.py` of its code release (sizes and order of
layers).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diffplan.networks.packing import Conv1d, Packing, group_norm
from diffplan.networks.ragged import valid_steps

FEW_NUMBERS = 4096
"""Size up to which torch's own function is faster than several elementwise calls."""


class SinusoidalEmbedding(nn.Module):
    """Sine and cosine features of a diffusion step.

    Args:
        dim: number of features; even and at least 4.
    """

    frequencies: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        frequencies = torch.exp(torch.arange(half) * -(math.log(10_000) / (half - 1)))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, diffusion_step: Int[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
        """Features of diffusion steps."""
        angles = diffusion_step[:, None].float() * self.frequencies[None]
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


def as_images(x: Float[Tensor, "batch horizon channels"]) -> Float[Tensor, "batch channels 1 horizon"]:
    """Trajectories of one length as input of the blocks: images one pixel high.

    On a CPU the channels stay contiguous in memory (channels last), which is faster in oneDNN; torch preserves this
    memory format for images only. On a GPU the steps are contiguous.
    """
    images = x.transpose(1, 2)[:, :, None]
    return images if x.device.type == "cpu" else images.contiguous()


class _Mish(torch.autograd.Function):
    """Mish that saves its derivative for the backward pass instead of its argument; both need one sigmoid.

    With s = sigmoid(x) and n = s (2 - s): t = tanh(softplus(x)) = n / (2 - n), so that mish(x) = x t, and
    mish'(x) = t + x s (1 - t^2).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        s = x.sigmoid()
        n = (2 - s).mul_(s)
        t = n.div_(2 - n)
        ctx.save_for_backward(torch.ops.aten.tanh_backward(s.mul_(x), t).add_(t))  # y (1 - t^2) in one call
        return t.mul_(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (derivative,) = ctx.saved_tensors
        return gradient * derivative


def mish(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Mish, x tanh(softplus(x)); on a CPU by one sigmoid s, x n / (2 - n) with n = s (2 - s).

    For large tensors that takes a third of the time of torch's function, which took a third of a denoising step and a
    fifth of a training step. For small tensors, on a GPU and in bfloat16, torch's single call is faster.
    """
    if x.numel() < FEW_NUMBERS or x.device.type != "cpu" or x.dtype == torch.bfloat16:
        return F.mish(x)
    if torch.is_grad_enabled() and x.requires_grad:
        return _Mish.apply(x)  # type: ignore[return-value]
    s = x.sigmoid()
    n = (2 - s).mul_(s)
    return n.div_(2 - n).mul_(x)


class Conv1dBlock(nn.Module):
    """Convolution over time, group normalisation, Mish; keeps the length."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 5, num_groups: int = 8) -> None:
        super().__init__()
        self.convolution = Conv1d(in_channels, out_channels, kernel_size)
        self.normalization = nn.GroupNorm(num_groups, out_channels)

    def forward(self, x: Float[Tensor, "..."], packing: Packing | None = None) -> Float[Tensor, "..."]:
        """Apply the block."""
        x = self.convolution(x, packing)
        return mish(self.normalization(x) if packing is None else group_norm(x, packing, self.normalization))


class ActivatedBefore(nn.Identity):
    """Placeholder for the Mish of the embedding in each block of the release; it is computed once for all blocks."""


class ResidualTemporalBlock(nn.Module):
    """Two convolution blocks with the embedding added in between, and a residual connection.

    The input is the Mish of the embedding.
    """

    def __init__(
        self, in_channels: int, out_channels: int, embedding_dim: int, kernel_size: int = 5, num_groups: int = 8
    ) -> None:
        super().__init__()
        self.first = Conv1dBlock(in_channels, out_channels, kernel_size, num_groups)
        self.second = Conv1dBlock(out_channels, out_channels, kernel_size, num_groups)
        self.embedding = nn.Sequential(ActivatedBefore(), nn.Linear(embedding_dim, out_channels))
        self.residual = Conv1d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "..."],
        embedding: Float[Tensor, "#batch embedding"],
        packing: Packing | None = None,
    ) -> Float[Tensor, "..."]:
        """Apply the block."""
        added = self.embedding(embedding)
        if packing is None:
            added = added[:, :, None, None]
        elif len(added) > 1:  # a single embedding is broadcast
            added = packing.spread(added)
        hidden = self.second(self.first(x, packing) + added, packing)
        return hidden + (self.residual(x, packing) if isinstance(self.residual, Conv1d) else x)


class NoAttention(nn.Module):
    """Placeholder for no attention."""

    def forward(self, x: Float[Tensor, "..."], packing: Packing | None = None) -> Float[Tensor, "..."]:
        """Return the input."""
        return x


class LinearAttention(nn.Module):
    """Channel normalisation and linear attention over time, with a residual connection."""

    def __init__(self, channels: int, num_heads: int = 4, head_dim: int = 32) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = head_dim**-0.5
        self.gain = nn.Parameter(torch.ones(1, channels, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1))
        self.to_qkv = nn.Conv1d(channels, 3 * num_heads * head_dim, 1, bias=False)
        self.to_out = nn.Conv1d(num_heads * head_dim, channels, 1)

    def forward(self, x: Float[Tensor, "..."], packing: Packing | None = None) -> Float[Tensor, "..."]:
        """Apply the block."""
        if packing is None:
            return self._attend(x[:, :, 0], None)[:, :, None]
        horizon = packing.longest
        padded = packing.pad(x, horizon).transpose(1, 2)  # attention is over all steps, so they cannot be a batch axis
        attended = self._attend(padded, valid_steps(packing.lengths, horizon))
        return packing.pack(attended.transpose(1, 2))

    def _attend(
        self, x: Float[Tensor, "batch channels horizon"], valid: Bool[Tensor, "batch horizon"] | None
    ) -> Float[Tensor, "batch channels horizon"]:
        variance, mean = torch.var_mean(x, dim=1, unbiased=False, keepdim=True)
        normalized = (x - mean) / (variance + 1e-5).sqrt() * self.gain + self.bias
        q, k, v = rearrange(self.to_qkv(normalized), "b (three n c) h -> three b n c h", three=3, n=self.num_heads)
        if valid is not None:
            k = k.masked_fill(~valid[:, None, None], -torch.inf)
        context = torch.einsum("bndh,bneh->bnde", k.softmax(dim=-1), v)
        attended = torch.einsum("bnde,bndh->bneh", context, q * self.scale)
        return x + self.to_out(rearrange(attended, "b n c h -> b (n c) h"))

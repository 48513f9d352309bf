"""Building blocks of the temporal U-Net; tensors are [batch, channels, horizon] inside.

Source: Janner et al. 2022, appendix C, and `diffuser/models/helpers.py` of its code release (sizes and order of
layers).
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


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


class Conv1dBlock(nn.Module):
    """Convolution over time, group normalisation, Mish; keeps the length."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 5, num_groups: int = 8) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.normalization = nn.GroupNorm(num_groups, out_channels)

    def forward(self, x: Float[Tensor, "batch in horizon"]) -> Float[Tensor, "batch out horizon"]:
        """Apply the block."""
        return F.mish(self.normalization(self.convolution(x)))


class ResidualTemporalBlock(nn.Module):
    """Two convolution blocks with the embedding added in between, and a residual connection."""

    def __init__(self, in_channels: int, out_channels: int, embedding_dim: int, kernel_size: int = 5) -> None:
        super().__init__()
        self.first = Conv1dBlock(in_channels, out_channels, kernel_size)
        self.second = Conv1dBlock(out_channels, out_channels, kernel_size)
        self.embedding = nn.Sequential(nn.Mish(), nn.Linear(embedding_dim, out_channels))
        self.residual = nn.Conv1d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(
        self, x: Float[Tensor, "batch in horizon"], embedding: Float[Tensor, "batch embedding"]
    ) -> Float[Tensor, "batch out horizon"]:
        """Apply the block."""
        hidden = self.first(x) + self.embedding(embedding)[:, :, None]
        return self.second(hidden) + self.residual(x)


class LinearAttention(nn.Module):
    """Linear attention over time behind a channel normalisation, with a residual connection."""

    def __init__(self, channels: int, num_heads: int = 4, head_dim: int = 32) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = head_dim**-0.5
        self.gain = nn.Parameter(torch.ones(1, channels, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1))
        self.to_qkv = nn.Conv1d(channels, 3 * num_heads * head_dim, 1, bias=False)
        self.to_out = nn.Conv1d(num_heads * head_dim, channels, 1)

    def forward(self, x: Float[Tensor, "batch channels horizon"]) -> Float[Tensor, "batch channels horizon"]:
        """Apply the block."""
        variance, mean = torch.var_mean(x, dim=1, unbiased=False, keepdim=True)
        normalized = (x - mean) / (variance + 1e-5).sqrt() * self.gain + self.bias
        q, k, v = rearrange(self.to_qkv(normalized), "b (three n c) h -> three b n c h", three=3, n=self.num_heads)
        context = torch.einsum("bndh,bneh->bnde", k.softmax(dim=-1), v)
        attended = torch.einsum("bnde,bndh->bneh", context, q * self.scale)
        return x + self.to_out(rearrange(attended, "b n c h -> b (n c) h"))

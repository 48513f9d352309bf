"""A diffusion transformer over the steps of a trajectory.

Source: Peebles & Xie 2023, section 3.2 (adaLN-Zero); Su et al. 2021, equation 34 (rotary positions). Deviation: each
step also has features of its distances from the first and from the last step. Rotary positions are relative, so without
these features a step could not be recognised as one of the two ends, which constraints fix.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diffplan.config import NetworkConfig
from diffplan.networks.blocks import SinusoidalEmbedding
from diffplan.networks.condition import ConditionEmbedding
from diffplan.networks.ragged import check_lengths, repeat_last_step, valid_steps

_MLP_RATIO = 4
_NUM_MODULATIONS = 6  # of a block: scale, shift and gate of attention and of the MLP


class TransformerBlock(nn.Module):
    """Attention and MLP, each after a layer normalisation, with modulation by the embedding.

    Args:
        dim: features of a step.
        num_heads: attention heads.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.normalized_shape = (dim,)
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.to_out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, _MLP_RATIO * dim), nn.GELU(approximate="tanh"), nn.Linear(_MLP_RATIO * dim, dim)
        )

    def forward(
        self,
        x: Float[Tensor, "batch horizon embed"],
        modulation: tuple[Float[Tensor, "#batch 1 embed"], ...],
        rotation: tuple[Float[Tensor, "horizon 1 1 head"], Float[Tensor, "horizon 1 1 head"]],
        mask: Tensor | None,
    ) -> Float[Tensor, "batch horizon embed"]:
        """Apply the block.

        Args:
            x: features of the steps.
            modulation: scale, shift and gate of attention, then of the MLP; a scale of 1 is the identity.
            rotation: cosines and signed sines of the rotary positions.
            mask: steps to attend to, in the format of `scaled_dot_product_attention`; None for all.
        """
        scale, shift, gate, mlp_scale, mlp_shift, mlp_gate = modulation
        hidden = torch.addcmul(shift, F.layer_norm(x, self.normalized_shape), scale)
        x = torch.addcmul(x, gate, self._attend(hidden, rotation, mask))
        hidden = torch.addcmul(mlp_shift, F.layer_norm(x, self.normalized_shape), mlp_scale)
        return torch.addcmul(x, mlp_gate, self.mlp(hidden))

    def _attend(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        batch_size, horizon, dim = x.shape
        qkv = self.to_qkv(x).view(batch_size, horizon, 3, self.num_heads, -1)
        cosines, signed_sines = rotation
        qk = qkv[:, :, :2]
        # Rolling by half a head swaps the two coordinates of each rotated plane, (a, b) -> (b, a).
        qk = torch.addcmul(qk * cosines, qk.roll(qk.shape[-1] // 2, dims=-1), signed_sines)
        q, k = qk.permute(2, 0, 3, 1, 4)
        v = qkv[:, :, 2].transpose(1, 2)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.to_out(attended.transpose(1, 2).reshape(batch_size, horizon, dim))


class TemporalTransformer(nn.Module):
    """A transformer that denoises trajectories; its initial prediction is 0.

    Args:
        transition_dim: columns of a transition.
        config: sizes; `dim`, `depth` and `num_heads` are used.
    """

    rotary_frequencies: Tensor

    def __init__(self, transition_dim: int, config: NetworkConfig) -> None:
        super().__init__()
        dim = config.dim
        head_dim = dim // config.num_heads
        self.min_horizon = config.min_horizon
        self.embedding = nn.Sequential(SinusoidalEmbedding(dim), nn.Linear(dim, dim), nn.Mish(), nn.Linear(dim, dim))
        self.to_hidden = nn.Linear(transition_dim, dim)
        self.position_features = SinusoidalEmbedding(dim)
        self.from_start = nn.Linear(dim, dim, bias=False)
        self.from_end = nn.Linear(dim, dim, bias=False)
        self.blocks = nn.ModuleList(TransformerBlock(dim, config.num_heads) for _ in range(config.depth))
        # One product for the modulations of all blocks and the output: many small ones would cost more than the blocks.
        self.to_modulation = nn.Linear(dim, (_NUM_MODULATIONS * config.depth + 2) * dim)
        self.to_output = nn.Linear(dim, transition_dim)
        frequencies = 10_000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
        self.register_buffer("rotary_frequencies", frequencies, persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                zero = module is self.to_modulation or module is self.to_output
                nn.init.zeros_(module.weight) if zero else nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.condition = ConditionEmbedding(config, dim)  # keeps its own initial weights

    def forward(
        self,
        x: Float[Tensor, "batch horizon transition"],
        diffusion_step: Int[Tensor, " #batch"],
        *,
        lengths: Int[Tensor, " batch"] | None = None,
        condition: Float[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch horizon transition"]:
        """Predict for noisy trajectories.

        Args:
            x: noisy trajectories in model space, of a horizon of at least 2.
            diffusion_step: noise level of each trajectory; one number if all are equal.
            lengths: steps of each trajectory, at least 2; the padding behind them has no effect. None for all steps.
            condition: return or task of each trajectory; see `ConditionEmbedding`.

        Returns:
            The prediction of the network, in model space; undefined in the padding.

        Raises:
            ValueError: a trajectory is too short, or the network does not take this condition.
        """
        horizon = x.shape[1]
        check_lengths(horizon, lengths, self.min_horizon)
        mask = None
        if lengths is not None:
            x = repeat_last_step(x, lengths, horizon)
            mask = valid_steps(lengths, horizon)[:, None, None]
        hidden = self.to_hidden(x) + self._embed_positions(horizon, lengths)
        rotation = self._rotation(horizon)
        embedding = self.condition(self.embedding(diffusion_step), condition)
        *modulations, (scale, shift) = self._modulations(embedding)
        for block, modulation in zip(self.blocks, modulations, strict=True):
            hidden = block(hidden, modulation, rotation, mask)
        return self.to_output(torch.addcmul(shift, F.layer_norm(hidden, hidden.shape[-1:]), scale))

    def _modulations(self, embedding: Tensor) -> list[tuple[Tensor, ...]]:
        """Scale, shift and gate of attention and MLP in each block; last, scale and shift of the output."""
        num_norms = 2 * len(self.blocks) + 1
        modulation = self.to_modulation(F.silu(embedding)).unflatten(1, (-1, 1, embedding.shape[1]))
        scales = (1 + modulation[:, :num_norms]).unbind(1)
        shifts = modulation[:, num_norms : 2 * num_norms].unbind(1)
        gates = modulation[:, 2 * num_norms :].unbind(1)
        triples = list(zip(scales, shifts, gates, strict=False))
        blocks = [(*triples[index], *triples[index + 1]) for index in range(0, num_norms - 1, 2)]
        return [*blocks, (scales[-1], shifts[-1])]

    def _embed_positions(self, horizon: int, lengths: Tensor | None) -> Tensor:
        """Features of the distances from the first and the last step, [horizon, embed]; of each row, if ragged."""
        distance = torch.arange(horizon, device=self.rotary_frequencies.device)
        features = self.position_features(distance)
        from_start, from_end = self.from_start(features), self.from_end(features)
        if lengths is None:
            return from_start + from_end.flip(0)
        return from_start + from_end[(lengths[:, None] - 1 - distance).clamp(min=0)]

    def _rotation(self, horizon: int) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines of the rotation of queries and keys, [horizon, 1, 1, head]."""
        steps = torch.arange(horizon, device=self.rotary_frequencies.device)
        angles = steps[:, None, None, None] * self.rotary_frequencies
        sines = angles.sin()
        return angles.cos().repeat(1, 1, 1, 2), torch.cat([-sines, sines], dim=-1)

"""Constraints: values fixed at given steps and columns of a plan (inpainting).

Source: Janner et al. 2022, section 4.2: after every denoising step the constrained entries are replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Constraints:
    """Entries of a batch of trajectories that are known.

    Attributes:
        mask: which entries are fixed; one row serves the whole batch.
        values: their values in model space; 0 elsewhere.
    """

    mask: Bool[Tensor, "#batch horizon transition"]
    values: Float[Tensor, "batch horizon transition"]

    def project(self, x: Float[Tensor, "batch horizon transition"]) -> Float[Tensor, "batch horizon transition"]:
        """Put the fixed entries of x in place; idempotent."""
        return torch.where(self.mask, self.values, x)


def no_constraints(batch_size: int, horizon: int, transition_dim: int) -> Constraints:
    """Constraints that fix nothing."""
    return Constraints(
        torch.zeros(1, horizon, transition_dim, dtype=torch.bool), torch.zeros(batch_size, horizon, transition_dim)
    )


def fix(
    constraints: Constraints, step: int, columns: Sequence[int], values: Float[Tensor, "batch columns"]
) -> Constraints:
    """Constraints that also fix columns of one step.

    Args:
        constraints: what is fixed already.
        step: step of the plan; negative counts from its end.
        columns: columns of a transition.
        values: one for each column, in model space.

    Raises:
        ValueError: a step outside the plan, or an entry fixed before to another value.
    """
    horizon = constraints.mask.shape[1]
    if not -horizon <= step < horizon:
        raise ValueError(f"constraint: expected a step in a plan of horizon {horizon}, got {step}")
    columns, values = list(columns), values.to(constraints.values)
    mask, fixed = constraints.mask.clone(), constraints.values.clone()
    before = mask[:, step, columns] & (fixed[:, step, columns] != values)
    if before.any():
        raise ValueError(f"constraint: step {step} was fixed before to other values; remove one of the two")
    mask[:, step, columns] = True
    fixed[:, step, columns] = values
    return Constraints(mask, fixed)


def endpoint_mask(
    horizon: int, transition_dim: int, start: Sequence[int], goal: Sequence[int]
) -> Bool[Tensor, "1 horizon transition"]:
    """The mask of training: columns `start` of the first step and `goal` of the last."""
    mask = torch.zeros(1, horizon, transition_dim, dtype=torch.bool)
    mask[:, 0, list(start)] = True
    mask[:, -1, list(goal)] = True
    return mask

"""Constraints: values fixed at given steps and columns of a plan (inpainting).

Source: Janner et al. 2022, section 4.2: after every denoising step the constrained entries are replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Constraints:
    """Entries of a batch of trajectories that are known.

    Attributes:
        mask: which entries are fixed, bool[1 or batch, horizon, transition_dim].
        values: their values in model space, float[batch, horizon, transition_dim]; 0 elsewhere.
    """

    mask: Tensor
    values: Tensor

    def project(self, x: Tensor) -> Tensor:
        """Put the fixed entries of x in place; idempotent."""
        return torch.where(self.mask, self.values, x)


def no_constraints(batch_size: int, horizon: int, transition_dim: int) -> Constraints:
    """Constraints that fix nothing."""
    return Constraints(
        torch.zeros(1, horizon, transition_dim, dtype=torch.bool), torch.zeros(batch_size, horizon, transition_dim)
    )


def fix(constraints: Constraints, step: int, columns: Sequence[int], values: Tensor) -> Constraints:
    """Constraints that also fix columns of one step.

    Args:
        constraints: what is fixed already.
        step: step of the plan; negative counts from its end.
        columns: columns of a transition.
        values: float[batch, len(columns)] in model space.

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


def endpoint_mask(horizon: int, transition_dim: int, start: Sequence[int], goal: Sequence[int]) -> Tensor:
    """The mask of training: columns `start` of the first step and `goal` of the last, bool[1, horizon, dim]."""
    mask = torch.zeros(1, horizon, transition_dim, dtype=torch.bool)
    mask[:, 0, list(start)] = True
    mask[:, -1, list(goal)] = True
    return mask

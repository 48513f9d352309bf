"""Constraints: entries of a plan that are known (inpainting) or bounded.

Fixed entries are set after every denoising step, in the noisy plan and in every estimate of the clean plan. Bounds
apply to clean plans only, because noise exceeds them: each estimate is projected into the bounds, and so is the result
of the sampler. Everything here is in model space.
Source: Janner et al. 2022, section 4.2 (inpainting); Lou and Ermon 2023, section 3 (why estimates, not noisy plans, are
projected).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Constraints:
    """The known entries and bounds of a batch of trajectories.

    Attributes:
        mask: fixed entries; one row is broadcast over the batch.
        values: values of the fixed entries in model space; 0 elsewhere.
        lower: lower bounds in model space, -inf for unbounded entries; None for no bounds.
        upper: upper bounds, inf for unbounded entries.
        lengths: steps of each trajectory if they differ; the padding behind them is fixed to 0. None if all have the
            whole horizon.
    """

    mask: Bool[Tensor, "#batch horizon transition"]
    values: Float[Tensor, "batch horizon transition"]
    lower: Float[Tensor, "#batch horizon transition"] | None = None
    upper: Float[Tensor, "#batch horizon transition"] | None = None
    lengths: Int[Tensor, " batch"] | None = None

    def to(self, device: torch.device) -> Constraints:
        """The constraints on a device."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        lower, upper, lengths = moved(self.lower), moved(self.upper), moved(self.lengths)
        return Constraints(self.mask.to(device), self.values.to(device), lower, upper, lengths)

    def project(self, x: Float[Tensor, "batch horizon transition"]) -> Float[Tensor, "batch horizon transition"]:
        """Set the fixed entries of x; idempotent."""
        return torch.where(self.mask, self.values, x)

    def project_clean(self, x: Float[Tensor, "batch horizon transition"]) -> Float[Tensor, "batch horizon transition"]:
        """The nearest trajectory within the bounds and with the fixed entries; idempotent."""
        return self.project(x if self.lower is None else torch.clamp(x, self.lower, self.upper))


def no_constraints(
    batch_size: int, horizon: int, transition_dim: int, lengths: Int[Tensor, " batch"] | None = None
) -> Constraints:
    """Constraints that fix nothing; with `lengths`, for trajectories of different lengths."""
    values = torch.zeros(batch_size, horizon, transition_dim)
    if lengths is None:
        return Constraints(torch.zeros(1, horizon, transition_dim, dtype=torch.bool), values)
    behind = torch.arange(horizon)[None, :, None] >= lengths[:, None, None]
    return Constraints(behind.repeat(1, 1, transition_dim), values, lengths=lengths)


def fix(
    constraints: Constraints,
    step: int | Int[Tensor, " batch"],
    columns: Sequence[int],
    values: Float[Tensor, "batch columns"],
) -> Constraints:
    """Add fixed values for columns of one step.

    Args:
        constraints: the present constraints.
        step: step of the plan, one for all or one for each; negative steps count from the end of each trajectory.
        columns: columns of a transition.
        values: value of each column, in model space.

    Raises:
        ValueError: a step outside the plan, an entry that is already fixed to another value, a value outside its
            bounds, or a column given twice.
    """
    batch_size, horizon = constraints.values.shape[:2]
    columns, values = list(columns), values.to(constraints.values)
    if len(set(columns)) < len(columns):
        raise ValueError(f"constraint: expected each column once, got {columns}")
    ends = horizon if constraints.lengths is None else constraints.lengths
    steps = torch.as_tensor(step)
    outside = (steps < -ends) | (steps >= ends)
    if bool(outside.any()):
        wrong = int(steps.expand(outside.shape)[outside][0])
        length = int(torch.as_tensor(ends).expand(outside.shape)[outside][0])
        raise ValueError(f"constraint: expected a step in a plan of horizon {length}, got {wrong}")
    steps = torch.where(steps < 0, steps + ends, steps)
    uniform = steps.dim() == 0 and len(constraints.mask) == 1
    mask = constraints.mask.clone() if uniform else constraints.mask.expand_as(constraints.values).clone()
    fixed = constraints.values.clone()
    rows = torch.arange(batch_size)[:, None]
    steps = steps.expand(batch_size)[:, None]
    column_index = torch.as_tensor(columns, dtype=torch.long)[None]
    contradicted = mask.expand_as(fixed)[rows, steps, column_index] & (fixed[rows, steps, column_index] != values)
    if bool(contradicted.any()):
        wrong = int(steps[contradicted.any(dim=1)][0])
        raise ValueError(f"constraint: step {wrong} was fixed before to other values; remove one of the two")
    if uniform:
        mask[:, int(steps[0]), columns] = True
    else:
        mask[rows, steps, column_index] = True
    fixed[rows, steps, column_index] = values
    result = replace(constraints, mask=mask, values=fixed)
    _check_feasible(result)
    return result


def bound(
    constraints: Constraints,
    columns: Sequence[int],
    lower: Float[Tensor, "#batch columns"],
    upper: Float[Tensor, "#batch columns"],
    steps: slice = slice(None),
) -> Constraints:
    """Add bounds of columns; they are intersected with the present bounds.

    Args:
        constraints: the present constraints.
        columns: columns of a transition.
        lower: lower bounds, -inf for none.
        upper: upper bounds, inf for none.
        steps: steps of the plan with these bounds, counted from its start.

    Raises:
        ValueError: no value is within the bounds, or a fixed entry is not.
    """
    like, columns = constraints.values, list(columns)
    num_rows = max(len(lower), len(upper), 1 if constraints.lower is None else len(constraints.lower))
    shape = (num_rows, *like.shape[1:])
    low = like.new_full(shape, -torch.inf) if constraints.lower is None else constraints.lower.expand(shape).clone()
    high = like.new_full(shape, torch.inf) if constraints.upper is None else constraints.upper.expand(shape).clone()
    low[:, steps, columns] = torch.maximum(low[:, steps, columns], lower[:, None].to(like))
    high[:, steps, columns] = torch.minimum(high[:, steps, columns], upper[:, None].to(like))
    result = replace(constraints, lower=low, upper=high)
    _check_feasible(result)
    return result


def _check_feasible(constraints: Constraints) -> None:
    if constraints.lower is None or constraints.upper is None:
        return
    empty = constraints.lower > constraints.upper
    if bool(empty.any()):
        _, step, column = (int(i) for i in empty.nonzero()[0])
        raise ValueError(f"constraint: no value of column {column} is within the bounds of step {step}; widen them")
    # Values and bounds have the same normalisation, which preserves their order up to rounding.
    slack = 1e-6
    values = constraints.values
    outside = (values < constraints.lower - slack) | (values > constraints.upper + slack)
    fixed = constraints.mask.expand_as(values)
    if constraints.lengths is not None:
        fixed = fixed & (torch.arange(values.shape[1])[None, :, None] < constraints.lengths[:, None, None])
    if bool((fixed & outside).any()):
        _, step, column = (int(i) for i in (fixed & outside).nonzero()[0])
        raise ValueError(
            f"constraint: column {column} of step {step} is fixed outside its bounds; change one of the two"
        )


def endpoint_mask(
    horizon: int, transition_dim: int, start: Sequence[int], goal: Sequence[int]
) -> Bool[Tensor, "1 horizon transition"]:
    """The mask of training: columns `start` of the first step and `goal` of the last."""
    mask = torch.zeros(1, horizon, transition_dim, dtype=torch.bool)
    mask[:, 0, list(start)] = True
    mask[:, -1, list(goal)] = True
    return mask

"""Guides for block stacking: plans that obey contact, and what they should build.

There is one of each for plans of positions of the cup and of joint angles, whose columns differ; the number of blocks
follows from the number of columns. Distances are in units of a block's edge.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diffplan.diffusion.guidance import PlanBatch
from diffplan.errors import PlanningError

if TYPE_CHECKING:
    from diffplan_envs.stacking_spaces import StackingSpace

Space = Literal["joints", "cup"]

_NEAR = 1.3
"""A block released at most this far aside from another comes to lie on it."""


_CUP_HEIGHT = 0.52
"""Of the cup over the middle of what it holds: half an edge, and the arm's sag."""
_MOVED = 0.5
"""A block that a plan moves less than this far counts as not moved."""


@dataclass(frozen=True)
class _Parts:
    """What a plan says about the arm and the blocks, in units of a block's edge.

    Attributes:
        cups: positions of the cup, float[batch, horizon, 3].
        blocks: positions of the blocks, float[batch, horizon, blocks, 3].
        held: 1 where a block is held and 0 where not, without gradient, float[batch, horizon, blocks].
    """

    cups: Tensor
    blocks: Tensor
    held: Tensor


@dataclass(frozen=True)
class Contact:
    """Obey contact: blocks move only while they are held, the cup is on what it holds, and what it lets go is at rest.

    The score is minus the sum of the squared distances from that: of the cup from the top of a block that is held or
    about to be; of blocks from where they lay, before they are held; of blocks from where they end, once they are let
    go; and of a block that was let go from its place on the block below it, or on the floor.

    Attributes:
        space: what observations say about the arm, `cup` or `joints`.
        miss: subtracted for a plan that holds no block or several, that takes one twice, or that never lets go.
    """

    space: Space
    miss: float = 3.0
    takes_lengths: ClassVar[bool] = False

    @property
    def moving(self) -> Contact:
        """The part with a gradient: without the misses, which only rank plans."""
        return replace(self, miss=0.0)

    def score(self, plans: PlanBatch) -> Tensor:
        """Scores, in squared block edges."""
        parts = _read(plans, self.space)
        blocks, held = parts.blocks, parts.held
        with torch.no_grad():  # where and when things are to be; few operations, for it runs many times in a plan
            later = F.pad(held, (0, 0, 0, 1))[:, 1:]
            reached = torch.maximum(held, later)  # the cup is there one step before it holds
            was_held = held.cumsum(dim=1) > 0.5
            still = ~was_held | (later < 0.5)  # from the last step at which it is held
            targets = torch.where(was_held[..., None], blocks[:, -1:], blocks[:, :1])
            moved = held.amax(dim=1) * (1 - held[:, -1])
            rest = _find_rest(blocks[:, -1], blocks[:, 0], moved)
            targets[:, -1] = torch.where(moved[..., None] > 0.5, rest, targets[:, -1])
        off_cup = parts.cups[:, :, None] - blocks - blocks.new_tensor([0.0, 0.0, _CUP_HEIGHT])
        off = off_cup.square() * reached[..., None] + (blocks - targets).square() * still[..., None]
        total = -off.sum(dim=(1, 2, 3))
        return total - self.miss * self._count_misses(held) if self.miss else total

    @staticmethod
    def _count_misses(held: Tensor) -> Tensor:
        num_taken = held.amax(dim=1).sum(dim=1)
        begins = (held.diff(dim=1) > 0.5).sum(dim=(1, 2)) + (held[:, 0] > 0.5).sum(dim=1)
        return (num_taken - 1).abs() + (begins - num_taken).clamp(min=0) + held[:, -1].amax(dim=1)


@dataclass(frozen=True)
class Tower:
    """Build a tall tower: the blocks in the tallest tower once those that a plan moved are at rest.

    It has no gradient, so it only ranks plans.

    Attributes:
        space: what observations say about the arm, `cup` or `joints`.
        weight: score of each block.
    """

    space: Space
    weight: float = 3.0
    takes_lengths: ClassVar[bool] = False
    has_gradient: ClassVar[bool] = False

    def score(self, plans: PlanBatch) -> Tensor:
        """Numbers of blocks times the weight."""
        blocks = _read(plans, self.space).blocks.detach()
        ends = _settle(blocks[:, 0], blocks[:, -1])
        apart = ends[:, :, None] - ends[:, None]
        aside, above = apart[..., :2].norm(dim=-1), apart[..., 2]
        on = (aside < 0.5) & (above > 0.7) & (above < 1.3)
        heights = torch.ones(ends.shape[:2], device=ends.device)
        for _ in range(ends.shape[1] - 1):
            heights = 1 + torch.where(on, heights[:, None], 0.0).amax(dim=2)
        return self.weight * heights.amax(dim=1)


@dataclass(frozen=True)
class Settle:
    """Moves the ends of plans to possible ones: `settle` of `planning.selection.refine`.

    Attributes:
        space: what observations say about the arm, `cup` or `joints`.
    """

    space: Space

    def __call__(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Last observations in which the block that was moved furthest is at rest, and all others are as at first.

        Args:
            first: float[batch, observation_dim].
            last: the planned last ones, of the same shape.
        """
        from diffplan_envs.arm import BLOCK_SIZE

        space = _find_space(self.space, first.shape[1])
        starts, ends = (torch.from_numpy(space.read_blocks(each) / BLOCK_SIZE) for each in (first, last))
        settled = last.copy()
        settled[:, space.block_columns] = _settle(starts, ends).flatten(1).numpy() * BLOCK_SIZE
        return settled


def _settle(starts: Tensor, ends: Tensor) -> Tensor:
    """Where blocks are in the end if the one that was moved furthest comes to rest, float[batch, blocks, 3]."""
    ways = (ends - starts).norm(dim=-1)
    moved = (ways == ways.amax(dim=1, keepdim=True)) & (ways > _MOVED)
    return torch.where(moved[..., None], _find_rest(ends, starts, moved.to(ends.dtype)), starts)


def _find_rest(ends: Tensor, starts: Tensor, moved: Tensor) -> Tensor:
    """Where blocks come to rest from where they are let go, float[batch, blocks, 3], without gradient.

    Args:
        ends: where they are let go, float[batch, blocks, 3].
        starts: where they lay before, of the same shape.
        moved: 1 for blocks that were moved, float[batch, blocks].
    """
    ends = ends.detach()
    aside = (ends[:, :, None, :2] - starts[:, None, :, :2]).norm(dim=-1)
    itself = torch.eye(ends.shape[1], device=ends.device, dtype=torch.bool)
    is_below = (aside < _NEAR) & ~itself & (moved[:, None] < 0.5)
    top, support = torch.where(is_below, starts[:, None, :, 2], -torch.inf).max(dim=2)
    on_block = starts.gather(1, support[..., None].expand_as(ends)) + ends.new_tensor([0.0, 0.0, 1.0])
    on_floor = torch.cat([ends[..., :2], torch.full_like(ends[..., 2:], 0.5)], dim=-1)
    return torch.where(torch.isfinite(top)[..., None], on_block, on_floor)


def _read(plans: PlanBatch, name: Space) -> _Parts:
    from diffplan_envs.arm import BLOCK_SIZE

    observations = plans.observations
    space = _find_space(name, observations.shape[2])
    blocks = observations[:, :, space.num_arm :].unflatten(2, (space.num_blocks, space.num_each))
    arm = observations[:, :, : space.num_arm]
    cups = arm if space.name == "cup" else _find_cup(arm)
    return _Parts(cups / BLOCK_SIZE, blocks[..., :3] / BLOCK_SIZE, (blocks[..., -1].detach() > 0.5).to(blocks.dtype))


def _find_space(name: Space, observation_dim: int) -> StackingSpace:
    """The columns of observations of a size."""
    from diffplan_envs.stacking_rules import MAX_BLOCKS, MIN_BLOCKS
    from diffplan_envs.stacking_spaces import StackingSpace

    for num_blocks in range(MIN_BLOCKS, MAX_BLOCKS + 1):
        space = StackingSpace(name, num_blocks)
        if space.observation_size == observation_dim:
            return space
    raise PlanningError(
        f"guide: expected plans of block stacking in the space {name}, got observations of {observation_dim} columns"
    )


def _find_cup(joints: Tensor) -> Tensor:
    """Positions of the cup for joint angles float[..., 7], as far as joints 3, 5 and 7 are at 0."""
    from diffplan_envs.arm import FOREARM, SHOULDER_HEIGHT, TOOL, UPPER_ARM

    first, second = joints[..., 1], joints[..., 1] + joints[..., 3]
    third = second + joints[..., 5]
    radius = UPPER_ARM * first.sin() + FOREARM * second.sin() + TOOL * third.sin()
    height = SHOULDER_HEIGHT + UPPER_ARM * first.cos() + FOREARM * second.cos() + TOOL * third.cos()
    return torch.stack([radius * joints[..., 0].cos(), radius * joints[..., 0].sin(), height], dim=-1)


GUIDES = {"contact": Contact, "tower": Tower}
"""Guides of the task by name."""

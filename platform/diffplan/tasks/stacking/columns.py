"""What an environment of this family is: the columns of its observations, and how long a step takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diffplan.config import EnvConfig
from diffplan.environments import find_spec

if TYPE_CHECKING:
    from diffplan_envs.stacking_spaces import StackingSpace

NUM_BLOCKS = 4
"""Blocks of an environment that is not told how many."""


def find_space(env: EnvConfig) -> StackingSpace:
    """The columns of observations and actions in an environment."""
    from diffplan_envs.stacking_spaces import StackingSpace

    kwargs = {**find_spec(env).kwargs, **env.env_kwargs}
    return StackingSpace(kwargs.get("space", "joints"), kwargs.get("num_blocks", NUM_BLOCKS))


def is_fine(env: EnvConfig) -> bool:
    """Whether a step of an environment is 0.05 s, not a whole move."""
    return {**find_spec(env).kwargs, **env.env_kwargs}.get("move_steps") is not None


def read_pairs(goal: np.ndarray | None) -> np.ndarray:
    """Pairs (top, bottom), int[pairs, 2], of a goal float[2 * pairs] that has -1 where there are none."""
    pairs = np.zeros((0, 2)) if goal is None else np.asarray(goal).reshape(-1, 2)
    return pairs[pairs[:, 0] >= 0].astype(int)

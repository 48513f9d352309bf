"""What the next plan of an episode is asked for: where all blocks are to be at its end.

A script chooses the next placement for the pairs that an episode asks for; the plan says how to make it. Episodes that
ask for a tower of any blocks fix nothing: guides choose among plans.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffplan.config import EnvConfig
from diffplan.errors import ConfigError
from diffplan.planning.constraints import Fixed
from diffplan.tasks.contracts import Ask
from diffplan.tasks.stacking.columns import find_space, read_pairs


def ask_for_pairs(env: EnvConfig, observations: np.ndarray, infos: Mapping[str, Any]) -> Ask:
    """Ask for the pairs of the infos, one placement after another; for nothing in episodes without pairs.

    Raises:
        ConfigError: some episodes of the batch have pairs and some have none.
    """
    del observations
    if infos.get("goal") is None:
        return Ask()
    goals = np.asarray(infos["goal"], dtype=np.float64)
    pairs = [read_pairs(goal) for goal in goals]
    num_with = sum(len(each) > 0 for each in pairs)
    if not num_with:
        return Ask()
    if num_with < len(pairs):
        raise ConfigError("infos: expected a goal of pairs in all episodes of a batch or in none, got both")
    space = find_space(env)

    def choose(observations: np.ndarray, envs: np.ndarray) -> Ask:
        ends = space.read_blocks(observations).copy()
        for end, asked in zip(ends, (pairs[env] for env in envs), strict=True):
            place_next(end, asked)
        return Ask(constraints=(Fixed(ends.reshape(len(ends), -1), columns=space.block_columns, step=-1),))

    return Ask(goals=goals, stage=choose)


def place_next(positions: np.ndarray, pairs: np.ndarray) -> None:
    """Move the block of the next placement in positions float[blocks, 3], in place; none if all pairs are stacked."""
    from diffplan.tasks.stacking.script import find_next
    from diffplan_envs.arm import BLOCK_SIZE
    from diffplan_envs.stacking_rules import find_freest_spot

    placement = find_next(positions, pairs)
    if placement is None:
        return
    if placement.support is None:
        positions[placement.block] = find_freest_spot(positions, placement.block)
    else:
        positions[placement.block] = positions[placement.support] + [0, 0, BLOCK_SIZE]

"""Metrics of an episode of stacking, beyond its return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from diffplan.tasks.contracts import FinishedEpisodes, Metric
from diffplan.tasks.stacking.columns import find_space, read_pairs

METRICS = {
    "paper_score": Metric("score by the rule of the paper"),
    "tower": Metric("blocks in the tallest tower", format=".2f"),
    "all_stacked": Metric("share with all that was asked", format=".2f"),
}
"""Metrics of this family by name."""


def measure(episodes: FinishedEpisodes) -> Mapping[str, np.ndarray]:
    """The metrics of each episode, at its end.

    `paper_score` is 100 times the share of what was asked that is done, by the rule of Janner et al. 2022, and 0 while
    a block is held; the score itself is by the strict rule. `tower` counts blocks by the strict rule. `all_stacked` is
    1 if all that was asked is done by the strict rule.
    """
    from diffplan_envs.stacking_rules import measure_tower

    space = find_space(episodes.env)
    lengths = episodes.steps.lengths
    ends = episodes.steps.observations[lengths, np.arange(len(lengths))]
    found: dict[str, list[float]] = {name: [] for name in METRICS}
    for i, (start, end) in enumerate(zip(episodes.starts, ends, strict=True)):
        pairs = read_pairs(None if episodes.goals is None else episodes.goals[i])
        before, after, is_held = space.read_blocks(start), space.read_blocks(end), space.read_held(end).any()
        found["paper_score"].append(0.0 if is_held else 100 * measure_progress(before, after, pairs, "paper"))
        found["tower"].append(measure_tower(after))
        found["all_stacked"].append(not is_held and measure_progress(before, after, pairs, "strict") >= 1)
    return {name: np.array(values, dtype=float) for name, values in found.items()}


def measure_progress(
    before: np.ndarray, after: np.ndarray, pairs: np.ndarray, rule: Literal["strict", "paper"]
) -> float:
    """The share of what was asked that is done, from 0 to 1.

    Args:
        before: positions of the blocks at the start of an episode, float[blocks, 3].
        after: those at its end.
        pairs: the pairs asked for, int[pairs, 2]; none for a tower of all blocks.
        rule: what counts as stacked.
    """
    from diffplan_envs.stacking_rules import count_right, measure_tower

    if len(pairs):
        return count_right(after, pairs, rule) / len(pairs)
    height = measure_tower(before, rule)
    return (measure_tower(after, rule) - height) / max(len(after) - height, 1)

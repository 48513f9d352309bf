"""What is measured of an episode in a maze beyond its return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from diffplan.tasks.contracts import FinishedEpisodes, Metric
from diffplan.tasks.maze2d.environment import get_shortest_path_lengths, get_touches_wall

MISS_PENALTY = 100.0
"""What an episode that never reaches its goal costs a search beyond its score: it must not trade goals for speed."""

METRICS = {
    "path_efficiency": Metric("path efficiency", format=".2f"),
    "collision_steps": Metric("steps at a wall", less_is_better=True, format=".0f"),
    "score_less_misses": Metric("score, less 100 where the goal is missed"),
}
"""Metrics of this family by name; the last one is what a search improves."""


def measure(episodes: FinishedEpisodes) -> Mapping[str, Sequence[float | None]]:
    """The metrics of each episode.

    `path_efficiency` is the length of the shortest way to the goal over the length travelled until it was first
    reached; None if it never was, or the episode began there. `collision_steps` counts steps that ended in touch with a
    wall.
    """
    env, steps = episodes.env, episodes.steps
    missed = steps.times_to_goal < 0
    found: dict[str, Sequence[float | None]] = {
        "score_less_misses": [float(s) - MISS_PENALTY * bool(m) for s, m in zip(episodes.scores, missed, strict=True)],
        "path_efficiency": [None] * len(missed),
        "collision_steps": [None] * len(missed),
    }
    if (touches_wall := get_touches_wall(env)) is not None:
        found["collision_steps"] = [float(number) for number in steps.count(touches_wall)]
    if (shortest_path_lengths := get_shortest_path_lengths(env)) is not None and episodes.goals is not None:
        shortest = shortest_path_lengths(episodes.starts, episodes.goals)
        travelled = steps.path_lengths(list(env.position_columns))
        counts = ~missed & (shortest > 0) & (travelled > 0)
        found["path_efficiency"] = [
            float(shortest[i] / travelled[i]) if counts[i] else None for i in range(len(missed))
        ]
    return {name: np.asarray(values, dtype=object).tolist() for name, values in found.items()}

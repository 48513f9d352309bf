"""Metrics of an episode in a maze, beyond its return."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from diffplan.tasks.contracts import FinishedEpisodes, Metric
from diffplan.tasks.maze2d.environment import complete_env, get_shortest_path_lengths, get_touches_wall

MISS_PENALTY = 100.0
"""Penalty in the objective of a search for an episode that never reaches its goal, so that a search does not trade
success for speed."""

METRICS = {
    "path_efficiency": Metric("path efficiency", format=".2f"),
    "collision_steps": Metric("steps at a wall", less_is_better=True, format=".0f"),
    "score_less_misses": Metric("score, less 100 where the goal is missed"),
}
"""Metrics of this family by name; the last one is the objective of a search."""


def measure(episodes: FinishedEpisodes) -> Mapping[str, np.ndarray]:
    """The metrics of each episode.

    `path_efficiency` is the length of the shortest path to the goal over the length travelled until it was first
    reached; NaN if it never was, or if the episode started there. `collision_steps` counts steps that end in contact
    with a wall.
    """
    env, steps = complete_env(episodes.env), episodes.steps
    missed = steps.times_to_goal < 0
    found: dict[str, np.ndarray] = {"score_less_misses": episodes.scores - MISS_PENALTY * missed}
    if (touches_wall := get_touches_wall(env)) is not None:
        found["collision_steps"] = steps.count(touches_wall)
    if (shortest_path_lengths := get_shortest_path_lengths(env)) is not None and episodes.goals is not None:
        shortest = shortest_path_lengths(episodes.starts, episodes.goals)
        travelled = steps.path_lengths(list(env.position_columns))
        counts = ~missed & (shortest > 0) & (travelled > 0)
        found["path_efficiency"] = np.divide(shortest, travelled, out=np.full(len(missed), np.nan), where=counts)
    return found

"""Metrics of an episode of a robot, beyond its return."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from diffplan.environments import find_episode_limit
from diffplan.tasks.contracts import FinishedEpisodes, Metric
from diffplan.tasks.locomotion.environment import find_robot

METRICS = {
    "forward_speed": Metric("forward speed, m/s", format=".2f"),
    "survived": Metric("share of the time limit", format=".2f"),
    "speed_error": Metric("distance from the speed asked, m/s", less_is_better=True, format=".2f"),
}
"""Metrics of this family by name."""


def measure(episodes: FinishedEpisodes) -> Mapping[str, np.ndarray]:
    """The metrics of each episode.

    `forward_speed` is the mean of the x velocities of the trunk after each step, in m/s, as they are observed: those of
    Hopper and Walker2d are clipped to 10 m/s. `survived` is the length of the episode over the limit of the
    environment; it is left out if there is no limit. `speed_error` is how far the forward speed is from the one that
    the environment asks for, `target_speed`.
    """
    lengths = episodes.steps.lengths
    found: dict[str, np.ndarray] = {}
    if find_robot(episodes.env) is not None:
        found["forward_speed"] = speeds = _compute_speed(episodes.steps.observations, lengths)
        if (target := episodes.env.env_kwargs.get("target_speed")) is not None:
            found["speed_error"] = abs(speeds - target)
    if (limit := find_episode_limit(episodes.env)) is not None:
        found["survived"] = lengths / limit
    return found


def _compute_speed(observations: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Mean x velocity of each episode, float64[num_envs], of observations float64[steps + 1, num_envs, dim].

    Observations are the positions of all joints, of which the first may be left out, and as many velocities. So the
    first velocity, that along x, is in the middle.
    """
    speeds = observations[1:, :, observations.shape[2] // 2]
    happened = np.arange(len(speeds))[:, None] < lengths
    # Added up step by step, so that the sum does not depend on the episodes beside it.
    return np.where(happened, speeds, 0.0).cumsum(axis=0)[-1] / np.maximum(lengths, 1)

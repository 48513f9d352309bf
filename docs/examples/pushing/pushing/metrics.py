"""What is measured of an episode beyond its return and whether it succeeded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from diffplan.config import EnvConfig
from diffplan.tasks.contracts import FinishedEpisodes, Metric
from pushing.environment import BLOCK, CONTACT, PUSHER

METRICS = {
    "final_distance": Metric("distance at the end", less_is_better=True, format=".2f"),
    "contact_share": Metric("share of steps in touch", format=".2f"),
}
EXPERT_RETURNS = {"any": 84.0, "near": 92.0, "far": 76.0}
"""Mean return of the scripted policy for each reach, which scores 100; random actions return 0, which scores 0.

Measured by `diffplan evaluate baseline:scripted`; see `tests/test_environment.py`."""


def measure(episodes: FinishedEpisodes) -> Mapping[str, Sequence[float | None]]:
    """The metrics of each episode: how far the block is from its goal at the end, and how long it was touched."""
    steps, last = episodes.steps, episodes.steps.lengths
    ends = steps.observations[last, np.arange(len(last))][:, BLOCK]
    final_distance: list[float | None] = [None] * len(last)
    if episodes.goals is not None:
        final_distance = np.linalg.norm(ends - episodes.goals, axis=1).tolist()
    return {"final_distance": final_distance, "contact_share": (steps.count(is_touching) / last).tolist()}


def is_touching(observations: np.ndarray) -> np.ndarray:
    """Whether the pusher touches the block, bool[...]."""
    return np.linalg.norm(observations[..., PUSHER] - observations[..., BLOCK], axis=-1) <= CONTACT


def get_references(env: EnvConfig) -> tuple[float, float]:
    """Returns that score 0 and 100."""
    return 0.0, EXPERT_RETURNS[env.env_kwargs.get("reach", "any")]

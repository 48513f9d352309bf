"""Published normalised scores, to print beside ours.

All are means under D4RL's time limits and reference returns. Results whose returns count every step after the goal was
first reached are left out. SSD: AAAI 2024; HorizonFlow: arXiv 2609.36896, Table 1.
"""

from __future__ import annotations

from diffplan.config import EnvConfig
from diffplan.environments import get_env_attribute
from diffplan.tasks.contracts import PublishedScore
from diffplan.tasks.maze2d.environment import find_benchmark_maze

PAPER = "Janner et al. 2022, Table 1"
"""Source of the scores that the table of the paper lists."""

_PUBLISHED: dict[tuple[str, str], tuple[PublishedScore, ...]] = {
    ("maze2d", "umaze"): (
        PublishedScore("MPPI", PAPER, 33.2),
        PublishedScore("CQL", PAPER, 5.7),
        PublishedScore("IQL", PAPER, 47.4),
        PublishedScore("Diffuser", PAPER, 113.9),
        PublishedScore("SSD", "AAAI 2024", 144.6),
    ),
    ("maze2d", "medium"): (
        PublishedScore("MPPI", PAPER, 10.2),
        PublishedScore("CQL", PAPER, 5.0),
        PublishedScore("IQL", PAPER, 34.9),
        PublishedScore("Diffuser", PAPER, 121.5),
        PublishedScore("HorizonFlow", "arXiv 2609.36896, Table 1", 154.8),
    ),
    ("maze2d", "large"): (
        PublishedScore("MPPI", PAPER, 5.1),
        PublishedScore("CQL", PAPER, 12.5),
        PublishedScore("IQL", PAPER, 58.6),
        PublishedScore("Diffuser", PAPER, 123.0),
        PublishedScore("HorizonFlow", "arXiv 2609.36896, Table 1", 205.2),
    ),
    ("multi2d", "umaze"): (
        PublishedScore("MPPI", PAPER, 41.2),
        PublishedScore("IQL", PAPER, 24.8),
        PublishedScore("Diffuser", PAPER, 128.9),
        PublishedScore("SSD", "AAAI 2024", 158.2),
    ),
    ("multi2d", "medium"): (
        PublishedScore("MPPI", PAPER, 15.4),
        PublishedScore("IQL", PAPER, 12.1),
        PublishedScore("Diffuser", PAPER, 127.2),
        PublishedScore("HorizonFlow", "arXiv 2609.36896, Table 1", 170.5),
    ),
    ("multi2d", "large"): (
        PublishedScore("MPPI", PAPER, 8.0),
        PublishedScore("IQL", PAPER, 13.9),
        PublishedScore("Diffuser", PAPER, 132.1),
        PublishedScore("HorizonFlow", "arXiv 2609.36896, Table 1", 216.5),
    ),
}


def get_published_scores(env: EnvConfig, protocol: str) -> tuple[PublishedScore, ...]:
    """Published scores of an environment of the family under a protocol; none for other rules than D4RL's."""
    name = find_benchmark_maze(env)
    if name is None or get_env_attribute(env, "reward_type") != "sparse":
        return ()
    return _PUBLISHED.get((protocol, name), ())

"""Published normalised scores, to print beside ours.

All are means under D4RL's limits and references. Some published returns pay every step after the first touch of the
goal; those are left out. SSD: AAAI 2024; HorizonFlow: arXiv 2609.36896, Table 1.
"""

from __future__ import annotations

from diffplan.config import EnvConfig
from diffplan.tasks.contracts import PublishedScore

_JANNER = "Janner et al. 2022, Table 1"
_PUBLISHED: dict[tuple[str, str], tuple[PublishedScore, ...]] = {
    ("maze2d", "UMaze"): (
        PublishedScore("MPPI", _JANNER, 33.2),
        PublishedScore("CQL", _JANNER, 5.7),
        PublishedScore("IQL", _JANNER, 47.4),
        PublishedScore("Diffuser", _JANNER, 113.9),
        PublishedScore("SSD", "AAAI 2024", 144.6),
    ),
    ("maze2d", "Medium"): (
        PublishedScore("MPPI", _JANNER, 10.2),
        PublishedScore("CQL", _JANNER, 5.0),
        PublishedScore("IQL", _JANNER, 34.9),
        PublishedScore("Diffuser", _JANNER, 121.5),
        PublishedScore("HorizonFlow", "arXiv 2609.36896, Table 1", 154.8),
    ),
    ("maze2d", "Large"): (
        PublishedScore("MPPI", _JANNER, 5.1),
        PublishedScore("CQL", _JANNER, 12.5),
        PublishedScore("IQL", _JANNER, 58.6),
        PublishedScore("Diffuser", _JANNER, 123.0),
        PublishedScore("HorizonFlow", "arXiv 2609.36896, Table 1", 205.2),
    ),
    ("multi2d", "UMaze"): (
        PublishedScore("MPPI", _JANNER, 41.2),
        PublishedScore("IQL", _JANNER, 24.8),
        PublishedScore("Diffuser", _JANNER, 128.9),
        PublishedScore("SSD", "AAAI 2024", 158.2),
    ),
    ("multi2d", "Medium"): (
        PublishedScore("MPPI", _JANNER, 15.4),
        PublishedScore("IQL", _JANNER, 12.1),
        PublishedScore("Diffuser", _JANNER, 127.2),
        PublishedScore("HorizonFlow", "arXiv 2609.36896, Table 1", 170.5),
    ),
    ("multi2d", "Large"): (
        PublishedScore("MPPI", _JANNER, 8.0),
        PublishedScore("IQL", _JANNER, 13.9),
        PublishedScore("Diffuser", _JANNER, 132.1),
        PublishedScore("HorizonFlow", "arXiv 2609.36896, Table 1", 216.5),
    ),
}


def get_published_scores(env: EnvConfig, protocol: str) -> tuple[PublishedScore, ...]:
    """Published scores of an environment such as `diffplan/Maze2D-UMaze-v1` under a protocol; empty if none."""
    parts = env.env_id.removeprefix("diffplan/").split("-")
    return _PUBLISHED.get((protocol, parts[1]), ()) if len(parts) == 3 else ()

"""Published scores, to print beside ours."""

from __future__ import annotations

from diffplan.config import EnvConfig
from diffplan.tasks.contracts import PublishedScore

_PAPER = "Janner et al. 2022, Table 3 (another arm, and no chooser of the next pair)"
_SCORES = {
    "unconditional": (("Diffuser", 58.7), ("BCQ", 0.0), ("CQL", 24.4)),
    "conditional": (("Diffuser", 45.6), ("BCQ", 0.0), ("CQL", 0.0)),
    "rearrangement": (("Diffuser", 58.9), ("BCQ", 0.0), ("CQL", 0.0)),
}


def get_published_scores(env: EnvConfig, protocol: str) -> tuple[PublishedScore, ...]:
    """Scores of the paper, for four blocks."""
    if env.env_kwargs.get("num_blocks", 4) != 4:
        return ()
    return tuple(PublishedScore(method, _PAPER, score) for method, score in _SCORES.get(protocol, ()))

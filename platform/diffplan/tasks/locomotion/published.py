"""Published normalised scores, to print beside ours.

All are means of 150 episodes under D4RL's limit and reference returns, of methods that were trained on D4RL's own data
(v2). A dataset bounds what a method can learn, so scores on other data of the same name are not comparable.
"""

from __future__ import annotations

from diffplan.config import EnvConfig
from diffplan.tasks.contracts import PublishedScore
from diffplan.tasks.locomotion.environment import find_benchmark_robot

PAPER = "Janner et al. 2022, code release"
"""Its `plotting/locomotion_scores.py`."""
BENCHMARK = "CleanDiffuser, Table 1"
"""Behavior cloning, planners and a policy in one code base."""

_ROBOTS = ("halfcheetah", "hopper", "walker2d")
_SCORES: dict[str, tuple[tuple[str, str, tuple[float, float, float]], ...]] = {
    "medium": (
        ("Diffuser", PAPER, (42.8, 74.3, 79.6)),
        ("BC", BENCHMARK, (42.6, 52.9, 75.3)),
        ("Diffuser (CleanDiffuser)", BENCHMARK, (43.8, 89.5, 79.4)),
        ("Decision Diffuser", BENCHMARK, (45.3, 98.2, 79.6)),
        ("AdaptDiffuser", BENCHMARK, (44.3, 95.5, 83.8)),
        ("Diffusion QL", BENCHMARK, (52.3, 96.5, 86.8)),
    ),
    "medium-replay": (
        ("Diffuser", PAPER, (37.7, 93.6, 70.6)),
        ("BC", BENCHMARK, (36.6, 18.1, 26.0)),
        ("Diffuser (CleanDiffuser)", BENCHMARK, (36.0, 91.8, 58.3)),
        ("Decision Diffuser", BENCHMARK, (42.9, 99.2, 75.6)),
        ("AdaptDiffuser", BENCHMARK, (36.7, 91.2, 82.9)),
        ("Diffusion QL", BENCHMARK, (47.9, 101.6, 98.2)),
    ),
    "medium-expert": (("Diffuser", PAPER, (88.9, 103.3, 106.9)),),
}
"""Method, source and the scores of `_ROBOTS`, by the data."""


def get_published_scores(env: EnvConfig, protocol: str) -> tuple[PublishedScore, ...]:
    """Published scores of a robot on the data that a protocol names; none for other rules or another robot than D4RL's.

    Walker2d v5 has another friction than that of the data.
    """
    robot = find_benchmark_robot(env)
    if robot is None or (robot.name, robot.version) == ("walker2d", 5):
        return ()
    column = _ROBOTS.index(robot.name)
    return tuple(PublishedScore(method, source, scores[column]) for method, source, scores in _SCORES.get(protocol, ()))

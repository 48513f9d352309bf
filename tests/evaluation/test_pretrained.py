"""The planners that come with the package."""

from pathlib import Path

import numpy as np
import pytest

import diffplan
from diffplan.evaluation.protocol import apply_protocol
from diffplan.evaluation.rollout import evaluate_episodes
from diffplan.seeding import Stream
from diffplan.tasks.maze2d.published import get_published_scores
from diffplan.tasks.pretrained import PREFIX, find_pretrained, list_pretrained

NAMES = ["maze2d-large", "maze2d-medium", "maze2d-umaze"]
MAX_BYTES = 5_000_000


def test_these_come_along() -> None:
    assert list_pretrained() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_planner_is_small_and_tells_nothing_of_where_it_was_made(name: str) -> None:
    files = list(find_pretrained(name).iterdir())
    assert sum(file.stat().st_size for file in files) <= MAX_BYTES
    assert {file.name for file in files} == {
        "config.json",
        "dataset.json",
        "model.safetensors",
        "normalization.json",
        "horizon_model.safetensors",
        "inverse_dynamics.safetensors",
        "support.safetensors",
    }
    for file in files:
        content = file.read_bytes()
        for place in (b"/tmp", b"/home", b"/root", str(Path.home()).encode()):
            assert place not in content, file


@pytest.mark.parametrize("protocol", ["maze2d", "multi2d"])
@pytest.mark.parametrize("name", NAMES)
def test_a_planner_is_above_every_published_score(name: str, protocol: str) -> None:
    planner = diffplan.load_planner(PREFIX + name)
    env = apply_protocol(protocol, planner.config.env)
    results, _ = evaluate_episodes(planner, env, range(50), seed=8, stream=Stream.TUNING)
    assert np.mean([result.success for result in results]) >= 0.94
    best = max(score.score for score in get_published_scores(env, protocol))
    assert np.mean([result.score for result in results]) > best

"""The planners that come with the package."""

from pathlib import Path

import gymnasium
import numpy as np
import pytest

import diffplan
from diffplan.cli import main
from diffplan.config import EnvConfig
from diffplan.evaluation.protocol import apply_protocol
from diffplan.evaluation.rollout import evaluate_episodes
from diffplan.planning.planner import with_settings
from diffplan.seeding import Stream
from diffplan.tasks.maze2d.published import get_published_scores
from diffplan.tasks.pretrained import PREFIX, find_pretrained, list_pretrained
from diffplan.tasks.stacking.published import get_published_scores as get_stacking_scores

MAZES = ["maze2d-large", "maze2d-medium", "maze2d-umaze"]
COMMON = {"config.json", "dataset.json", "model.safetensors", "normalization.json"}
COMPANIONS = {
    **{key: {"horizon_model.safetensors", "inverse_dynamics.safetensors", "support.safetensors"} for key in MAZES},
    **{key: {"action_heads.safetensors", "value.safetensors"} for key in ("hopper", "walker2d")},
    "stacking": set(),
}
NAMES = sorted(COMPANIONS)
LEAST_SCORES = {"hopper": 70, "walker2d": 45}
"""Below the means of 100 episodes by more than three standard errors of 12."""
MAX_BYTES = 5_000_000


def test_these_come_along() -> None:
    assert list_pretrained() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_planner_is_small_and_tells_nothing_of_where_it_was_made(name: str) -> None:
    files = list(find_pretrained(name).iterdir())
    assert sum(file.stat().st_size for file in files) <= MAX_BYTES
    assert {file.name for file in files} == COMMON | COMPANIONS[name]
    for file in files:
        content = file.read_bytes()
        for place in (b"/tmp", b"/home", b"/root", str(Path.home()).encode()):
            assert place not in content, file


@pytest.mark.parametrize("protocol", ["maze2d", "multi2d"])
@pytest.mark.parametrize("name", MAZES)
def test_a_planner_is_above_every_published_score(name: str, protocol: str) -> None:
    planner = diffplan.load_planner(PREFIX + name)
    env = apply_protocol(protocol, planner.config.env)
    results, _ = evaluate_episodes(planner, env, range(50), seed=8, stream=Stream.TUNING)
    assert np.mean([result.success for result in results]) >= 0.94
    best = max(score.score for score in get_published_scores(env, protocol))
    assert np.mean([result.score for result in results]) > best


@pytest.mark.parametrize("name", LEAST_SCORES)
def test_a_robot_runs_on_its_data_and_is_refused_on_others(name: str) -> None:
    planner = diffplan.load_planner(PREFIX + name)
    env = apply_protocol("medium", planner.config.env)
    results, _ = evaluate_episodes(planner, env, range(12), seed=8, stream=Stream.TUNING)
    assert np.mean([result.score for result in results]) > LEAST_SCORES[name]
    assert main(["evaluate", PREFIX + name, "--protocol", "medium-replay", "--out", "unused"]) == 2


@pytest.mark.parametrize("protocol", ["unconditional", "conditional", "rearrangement"])
def test_blocks_are_stacked_as_asked_and_not_without_the_guide(protocol: str) -> None:
    planner = diffplan.load_planner(PREFIX + "stacking")
    env = apply_protocol(protocol, planner.config.env)
    bare = with_settings(planner, {"selection.num_candidates": 1, "guidance.scale": 0.0, "selection.refine": None})
    found, without = (
        np.mean([result.score for result in evaluate_episodes(each, env, range(16), seed=8, stream=Stream.TUNING)[0]])
        for each in (planner, bare)
    )
    assert found > 90
    assert without < 70
    assert found > max(score.score for score in get_stacking_scores(env, protocol))


def test_a_loaded_policy_asks_for_the_pairs_of_the_infos() -> None:
    """In the user's own loop, as in an evaluation: one placement after another."""
    env = gymnasium.make("diffplan/StackConditional-v1", space="cup")
    policy = diffplan.load_policy(
        PREFIX + "stacking", env=EnvConfig(env_id="diffplan/StackConditional-v1", env_kwargs={"space": "cup"})
    )
    observation, infos = env.reset(seed=3)
    policy.reset(observation, infos["goal"])
    ended, total = False, 0.0
    while not ended:
        observation, reward, terminated, truncated, infos = env.step(policy.act(observation))
        ended, total = terminated or truncated, total + float(reward)
    assert infos["success"]
    assert total == pytest.approx(1.0)
    env.close()

"""Policies of offline reinforcement learning: files, and acting without Ray."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from diffplan.behaviors.offline_policy import (
    OfflinePolicy,
    PolicyDescription,
    load_offline_policy,
    save_offline_policy,
)
from diffplan.config import EnvConfig
from diffplan.errors import CheckpointError, ConfigError
from diffplan.evaluation.rollout import evaluate_episodes

OBSERVATIONS = np.array([[1.0, 2.0, 0.5, -0.5], [3.0, 1.0, 0.0, 0.0], [2.0, 2.0, -4.0, 9.0]])
GOALS = np.array([[1.0, 1.0], [2.0, 3.0], [0.5, 0.5]])


def make_policy(
    *, goal: tuple[float, ...] | None = None, deterministic: Literal["tanh", "clip"] = "tanh", margin: float = 0.05
) -> OfflinePolicy:
    generator = torch.Generator().manual_seed(0)
    sizes = [4 if goal is not None else 6, 8, 8, 4]
    tensors = {}
    for i, (before, after) in enumerate(itertools.pairwise(sizes)):
        tensors[f"layers.{i}.weight"] = torch.randn(after, before, generator=generator)
        tensors[f"layers.{i}.bias"] = torch.randn(after, generator=generator)
    tensors["observation_center"] = torch.arange(sizes[0], dtype=torch.float64)
    tensors["observation_scale"] = torch.arange(sizes[0], dtype=torch.float64) + 1
    description = PolicyDescription(
        algorithm="iql",
        env=EnvConfig(env_id="diffplan/Maze2D-UMaze-v1"),
        goal=goal,
        goal_dim=2,
        action_low=(-1.0, -2.0),
        action_high=(1.0, 4.0),
        action_margin=margin,
        deterministic=deterministic,
        training={"num_updates": 3},
    )
    return OfflinePolicy(tensors, description)


def compute_by_hand(policy: OfflinePolicy, inputs: np.ndarray) -> np.ndarray:
    tensors = {name: tensor.numpy().astype(np.float64) for name, tensor in policy.tensors.items()}
    values = (inputs - tensors["observation_center"]) / tensors["observation_scale"]
    for i in range(3):
        values = np.maximum(values, 0) if i else values
        values = values @ tensors[f"layers.{i}.weight"].T + tensors[f"layers.{i}.bias"]
    return values[:, :2]


@pytest.mark.parametrize("deterministic", ["tanh", "clip"])
@pytest.mark.parametrize("margin", [0.0, 0.05])
def test_actions_are_scaled_means(deterministic: Literal["tanh", "clip"], margin: float) -> None:
    policy = make_policy(deterministic=deterministic, margin=margin)
    policy.reset(OBSERVATIONS, GOALS)
    actions = policy.act(OBSERVATIONS)
    mean = compute_by_hand(policy, np.concatenate([OBSERVATIONS, GOALS], axis=1))
    squashed = np.tanh(mean) if deterministic == "tanh" else np.clip(mean, -1, 1)
    shares = np.clip(squashed / (1 - margin), -1, 1)
    assert actions.dtype == np.float32
    np.testing.assert_allclose(actions, [0.0, 1.0] + shares * [1.0, 3.0], atol=1e-5)


def test_a_policy_of_one_goal_is_not_told_it_and_takes_no_other() -> None:
    policy = make_policy(goal=(1.0, 1.0))
    policy.reset(OBSERVATIONS, np.ones((3, 2)))
    np.testing.assert_allclose(policy.compute_mean(OBSERVATIONS), compute_by_hand(policy, OBSERVATIONS), rtol=1e-4)
    with pytest.raises(ConfigError, match=r"expected episodes with the goal \[1.0, 1.0\] .*, got \[2.0, 3.0\]"):
        policy.reset(OBSERVATIONS, GOALS)
    with pytest.raises(ConfigError, match="expected observations of 4 numbers and goals of 2, got 3 and 2"):
        policy.reset(OBSERVATIONS[:, :3], np.ones((3, 2)))


def test_a_policy_is_read_as_it_was_written(tmp_path: Path) -> None:
    policy = make_policy()
    save_offline_policy(tmp_path / "policy", policy)
    loaded = load_offline_policy(tmp_path / "policy")
    assert loaded.description == policy.description
    for each in (policy, loaded):
        each.reset(OBSERVATIONS, GOALS)
    np.testing.assert_array_equal(loaded.act(OBSERVATIONS), policy.act(OBSERVATIONS))
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    with pytest.raises(CheckpointError, match="there is something already"):
        save_offline_policy(tmp_path / "policy", policy)


def test_loading_needs_no_ray(tmp_path: Path) -> None:
    save_offline_policy(tmp_path / "policy", make_policy())
    code = (
        "import sys; from diffplan.behaviors.offline_policy import load_offline_policy;"
        f"load_offline_policy({str(tmp_path / 'policy')!r}); assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def flip_a_byte(path: Path) -> None:
    content = bytearray((path / "policy.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "policy.safetensors").write_bytes(bytes(content))


def edit(**changes: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        record = json.loads((path / "policy.json").read_text())
        (path / "policy.json").write_text(json.dumps({**record, **changes}))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_byte, "checksum does not match"),
        (lambda path: (path / "policy.safetensors").unlink(), "No such file"),
        (lambda path: (path / "policy.json").unlink(), "expected a policy"),
        (lambda path: (path / "policy.json").write_text("{"), "expected the description of a policy"),
        (lambda path: (path / "policy.json").write_text("[1]"), "expected the description of a policy"),
        (edit(format_version=2), "expected version 1, got 2"),
        (edit(deterministic="mode"), "expected tanh or clip"),
        (edit(goal_dim=None), "expected the description of a policy"),
        (edit(env={"id": 3}), "expected the description of a policy"),
        (edit(action_low=[-1.0], action_high=[1.0]), "for 1 actions"),
    ],
)
def test_damage_is_named_in_one_line(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    path = save_offline_policy(tmp_path / "policy", make_policy())
    damage(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_offline_policy(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_policy_runs_in_the_rollout_of_every_other() -> None:
    policy = make_policy()
    policy = OfflinePolicy(policy.tensors, replace(policy.description, action_low=(-1.0, -1.0), action_high=(1.0, 1.0)))
    env = replace(policy.description.env, env_kwargs={"max_episode_steps": 20})
    results, _ = evaluate_episodes(lambda context: policy, env, range(2), seed=0)
    assert [result.length for result in results] == [20, 20]

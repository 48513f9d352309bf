"""Policies that offline reinforcement learning left behind, without the libraries that trained them.

```
policy.safetensors   layers.<i>.weight, layers.<i>.bias; observation_center, observation_scale
policy.json          what the policy is and how it was trained; size and checksum of the weights
```

The network is that of RLlib's soft actor-critic module: linear layers with ReLU between them, from a standardised
observation, with the goal behind it where the policy is goal-conditioned, to the mean and the logarithm of the standard
deviation of a Gaussian. An action is `tanh(mean)`, or the mean clipped to [-1, 1]; scaled so that ±(1 - margin) are the
bounds of the environment; and clipped to them.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import uuid
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from diffplan.behaviors.policy_content import DESCRIPTION
from diffplan.config import EnvConfig, config_from_dict, config_to_dict
from diffplan.config.codec import read_shape
from diffplan.errors import CheckpointError, ConfigError, show_value
from diffplan.files import parse_json, read_file
from diffplan.storage.store import TEMPORARY_PREFIX

FORMAT_NAME, FORMAT_VERSION = "diffplan-offline-policy", 1
WEIGHTS = "policy.safetensors"
GOAL_TOLERANCE = 1e-6
"""Goals of episodes are that of the policy if no coordinate differs by more."""


@dataclass(frozen=True)
class PolicyDescription:
    """What a policy is besides its weights.

    Attributes:
        algorithm: `cql` or `iql`.
        env: the environment of the data.
        goal: the goal that it was trained for, or None for one that is told its goal or has none.
        goal_dim: coordinates of a goal; 0 for a policy without goals.
        action_low: lower bounds of the environment's actions.
        action_high: upper bounds of the environment's actions.
        action_margin: the bounds lie at ±(1 - margin) of the policy's range.
        deterministic: how the Gaussian's mean becomes an action.
        training: record of the training, JSON values.
    """

    algorithm: str
    env: EnvConfig
    goal: tuple[float, ...] | None
    goal_dim: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    action_margin: float
    deterministic: Literal["tanh", "clip"]
    training: dict[str, Any]


class OfflinePolicy:
    """Acts in a batch of environments, each with a goal.

    Args:
        tensors: the weights and the standardisation, as the file names them.
        description: what else there is to know.

    Raises:
        CheckpointError: tensors are missing or do not fit one another.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], description: PolicyDescription) -> None:
        self.description = description
        self.tensors = tensors
        num_layers = sum(name.endswith(".weight") for name in tensors)
        try:
            self._layers = [(tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"]) for i in range(num_layers)]
            self._center = tensors["observation_center"].numpy()
            self._scale = tensors["observation_scale"].numpy()
        except KeyError as error:
            raise CheckpointError(f"expected a tensor {error.args[0]}, got none") from None
        self._low, self._high = np.array(description.action_low), np.array(description.action_high)
        sizes = [len(self._center), *(len(bias) for _, bias in self._layers)]
        expected = [(after, before) for before, after in itertools.pairwise(sizes)]
        found = [tuple(weight.shape) for weight, _ in self._layers]
        if found != expected or len(self._scale) != sizes[0] or sizes[-1] != 2 * len(self._low):
            raise CheckpointError(f"expected layers of shapes {expected} for {len(self._low)} actions, got {found}")

    @property
    def goal_dim_told(self) -> int:
        """Coordinates of the goal that an observation is given besides; 0 for a policy of one goal or of none."""
        return self.description.goal_dim if self.description.goal is None else 0

    def reset(self, observations: np.ndarray, goals: np.ndarray | None) -> None:
        """Start episodes.

        Args:
            observations: float[num_envs, observation_dim].
            goals: float[num_envs, goal_dim]; None for episodes without a goal.

        Raises:
            ConfigError: the policy was trained for another goal, or for other observations; there is no goal, or one
                for a policy without goals.
        """
        if (goals is None) != (self.description.goal_dim == 0):
            wanted, got = ("without", "one") if goals is not None else ("with", "none")
            raise ConfigError(f"{self.description.algorithm} policy: expected episodes {wanted} a goal, got {got}")
        goals = np.zeros((len(observations), 0)) if goals is None else np.asarray(goals, np.float64)
        goal, told = self.description.goal, self.goal_dim_told
        if goals.shape[1] != self.description.goal_dim or observations.shape[1] + told != len(self._center):
            raise ConfigError(
                f"{self.description.algorithm} policy: expected observations of {len(self._center) - told} numbers and "
                f"goals of {self.description.goal_dim}, got {observations.shape[1]} and {goals.shape[1]}"
            )
        if goal is not None and not (np.abs(goals - np.array(goal)) <= GOAL_TOLERANCE).all():
            other = goals[np.abs(goals - np.array(goal)).max(axis=1).argmax()].round(3).tolist()
            raise ConfigError(
                f"{self.description.algorithm} policy: expected episodes with the goal {list(goal)} that it was "
                f"trained for, got {other}; train one without --goal for other goals"
            )
        self._goals = goals if told else None

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions, float32[num_envs, action_dim], within their bounds.

        Args:
            observations: float[num_envs, observation_dim].
        """
        mean = self.compute_mean(observations)
        if self.description.deterministic == "tanh":
            squashed = torch.tanh(torch.from_numpy(mean)).numpy()
        else:
            squashed = np.clip(mean, -1.0, 1.0)
        shares = squashed.astype(np.float64) / (1 - self.description.action_margin)
        actions = self._low + (shares + 1) * (self._high - self._low) / 2
        return np.clip(actions, self._low, self._high).astype(np.float32)

    @torch.no_grad()
    def compute_mean(self, observations: np.ndarray) -> np.ndarray:
        """Means of the Gaussians before they are squashed, float32[num_envs, action_dim]."""
        if self._goals is not None:
            observations = np.concatenate([observations, self._goals], axis=1)
        values = torch.from_numpy(((np.asarray(observations) - self._center) / self._scale).astype(np.float32))
        for i, (weight, bias) in enumerate(self._layers):
            values = torch.nn.functional.linear(torch.relu(values) if i else values, weight, bias)
        return values[:, : len(self._low)].numpy()


def save_offline_policy(path: str | Path, policy: OfflinePolicy) -> Path:
    """Write a policy to a new directory; nothing is there before all of it is.

    Raises:
        CheckpointError: there is something at the path already, or it cannot be written.
    """
    path = Path(path).absolute()
    check_new_directory(path)
    weights = save({name: tensor.contiguous() for name, tensor in policy.tensors.items()})
    values = asdict(policy.description) | {"env": config_to_dict(policy.description.env)}
    record = {
        "format": FORMAT_NAME,
        "format_version": FORMAT_VERSION,
        "weights": {"num_bytes": len(weights), "crc32": zlib.crc32(weights)},
        **values,
    }
    temporary = path.parent / f"{TEMPORARY_PREFIX}{path.name}-{uuid.uuid4().hex[:12]}"
    try:
        temporary.mkdir(parents=True)
        (temporary / WEIGHTS).write_bytes(weights)
        (temporary / DESCRIPTION).write_text(json.dumps(record, indent=2) + "\n")
        temporary.rename(path)
    except OSError as error:
        raise CheckpointError(f"{path}: the policy could not be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def check_new_directory(path: str | Path) -> None:
    """Raise `CheckpointError` if a policy could not be written there, because of its name or of what is there."""
    if "://" in str(path):
        raise CheckpointError(f"{path}: expected a local directory, got a URL")
    if os.path.lexists(path):
        raise CheckpointError(f"{path}: expected a new directory, but there is something already; take another")


def load_offline_policy(path: str | Path) -> OfflinePolicy:
    """Read a policy; nothing is unpickled.

    Raises:
        CheckpointError: no policy there, a damaged one, or one of a newer format.
    """
    path = Path(path)
    where = path / DESCRIPTION
    try:
        record = parse_json(read_file(where))
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{path}: expected a policy (no {DESCRIPTION} there); train one with `diffplan baseline train`"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{where}: expected the description of a policy, got {error}") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT_NAME:
        raise CheckpointError(f"{where}: expected the description of a policy, got something else")
    if record.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(f"{where}: expected version {FORMAT_VERSION}, got {record.get('format_version')}")
    try:
        weights = read_file(path / WEIGHTS)
        if {"num_bytes": len(weights), "crc32": zlib.crc32(weights)} != record["weights"]:
            raise CheckpointError(f"{path / WEIGHTS}: its checksum does not match; copy the policy or train it again")
        return OfflinePolicy(load(weights), _describe(record))
    except CheckpointError as error:
        raise CheckpointError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{path / WEIGHTS}: {error.strerror}; copy the policy or train it again") from None
    except (KeyError, TypeError, ValueError, ConfigError, SafetensorError) as error:
        raise CheckpointError(f"{where}: expected the description of a policy, got a bad one ({error})") from None


def _describe(record: dict[str, Any]) -> PolicyDescription:
    if record["deterministic"] not in ("tanh", "clip"):
        raise CheckpointError(f"deterministic: expected tanh or clip, got {show_value(record['deterministic'])}")
    description = PolicyDescription(
        algorithm=str(record["algorithm"]),
        env=config_from_dict(EnvConfig, read_shape(dict[str, Any], record["env"])),
        goal=None if record["goal"] is None else _read_numbers(record, "goal"),
        goal_dim=read_shape(int, record["goal_dim"]),
        action_low=_read_numbers(record, "action_low"),
        action_high=_read_numbers(record, "action_high"),
        action_margin=read_shape(float, record["action_margin"]),
        deterministic=record["deterministic"],
        training=read_shape(dict[str, Any], record["training"]),
    )
    if len(description.action_low) != len(description.action_high):
        raise ValueError("as many lower as upper bounds of actions")
    if not 0 <= description.action_margin < 1:
        raise ValueError(f"action_margin in [0, 1), got {description.action_margin}")
    return description


def _read_numbers(record: dict[str, Any], name: str) -> tuple[float, ...]:
    values = read_shape(list[float], record[name])
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: expected finite numbers")
    return tuple(values)

"""RLlib's learners of soft actor-critic kinds, in this process, and the policies in them."""

from __future__ import annotations

import logging
from typing import Any

import gymnasium
import numpy as np
import torch

from diffplan.cluster import runtime  # noqa: F401  (sets what Ray reads from the environment)

MODULE = "default_policy"
"""RLlib's name of the only module."""


def build_learner(config: Any, observation_dim: int, action_dim: int, hidden_dim: int) -> Any:
    """The learner of an algorithm's config, with plain perceptrons of two hidden layers.

    Args:
        config: an `AlgorithmConfig` with its training settings; changed in place.
        observation_dim: size of an observation.
        action_dim: size of an action; actions are in [-1, 1].
        hidden_dim: units of a hidden layer.
    """
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec

    from diffplan.cluster.baselines.networks import PlainQCatalog

    spaces = (
        gymnasium.spaces.Box(-np.inf, np.inf, (observation_dim,), np.float32),
        gymnasium.spaces.Box(-1.0, 1.0, (action_dim,), np.float32),
    )
    model = DefaultModelConfig(
        fcnet_hiddens=[hidden_dim],
        fcnet_activation="relu",
        head_fcnet_hiddens=[hidden_dim],
        head_fcnet_activation="relu",
    )
    default = config.get_default_rl_module_spec()
    assert isinstance(default, RLModuleSpec)
    config.environment(observation_space=spaces[0], action_space=spaces[1])
    config.rl_module(
        model_config=model, rl_module_spec=RLModuleSpec(module_class=default.module_class, catalog_class=PlainQCatalog)
    )
    deprecation = logging.getLogger("ray._common.deprecation")
    level = deprecation.level
    deprecation.setLevel(logging.ERROR)  # RLlib warns of code of its own
    try:
        return config.build_learner(spaces={MODULE: spaces})
    finally:
        deprecation.setLevel(level)


def update_learner(learner: Any, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Make one gradient update on a batch, and return what RLlib reports of it."""
    from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

    steps = len(batch["actions"])
    return learner.update(batch=MultiAgentBatch({MODULE: SampleBatch(batch)}, env_steps=steps))[MODULE]


def copy_policy(module: Any) -> dict[str, torch.Tensor]:
    """Copies of the layers of a module's policy, as `diffplan.behaviors.offline_policy` names them."""
    layers: dict[str, torch.Tensor] = {}
    for part in (module.pi_encoder, module.pi):
        for layer in part.modules():
            if isinstance(layer, torch.nn.Linear):
                name = f"layers.{len(layers) // 2}"
                layers[f"{name}.weight"] = layer.weight.detach().clone()
                layers[f"{name}.bias"] = layer.bias.detach().clone()
    return layers

"""Q networks of plain multilayer perceptrons for RLlib's soft actor-critic modules."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.algorithms.sac.sac_catalog import SACCatalog
from ray.rllib.core.columns import Columns
from ray.rllib.core.models.base import ENCODER_OUT, Encoder
from ray.rllib.core.models.configs import MLPEncoderConfig
from ray.rllib.core.models.torch.encoder import TorchMLPEncoder


class ObservationActionEncoder(TorchMLPEncoder):
    """The first layers of a Q network, of observation and action side by side."""

    def _forward(self, inputs: dict[str, torch.Tensor], **kwargs: Any) -> dict[str, torch.Tensor]:
        joined = torch.cat([inputs[Columns.OBS], inputs[Columns.ACTIONS]], dim=-1)
        return {ENCODER_OUT: self.net(joined)}


class PlainQCatalog(SACCatalog):
    """Soft actor-critic networks whose Q function is one perceptron, with the hidden layers of the policy."""

    def build_qf_encoder(self, framework: str) -> Encoder:
        """The encoder of observation and action."""
        *hidden, last = self._model_config_dict["fcnet_hiddens"]
        observation, action = self.observation_space.shape, self.action_space.shape
        assert observation is not None
        assert action is not None
        activation = self._model_config_dict["fcnet_activation"]
        config = MLPEncoderConfig(
            input_dims=[observation[0] + action[0]],
            hidden_layer_dims=hidden,
            hidden_layer_activation=activation,
            output_layer_dim=last,
            output_layer_activation=activation,
        )
        return ObservationActionEncoder(config)

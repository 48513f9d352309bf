"""What changes during training: weights, their average, optimizer, learning rate, step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from diffplan.config import Config, TrainingConfig
from diffplan.errors import CheckpointError
from diffplan.layout import Layout
from diffplan.training.early_stopping import EarlyStopping
from diffplan.training.flat_parameters import FlatParameters
from diffplan.training.objectives import make_objective


class TrainingState:
    """The state of a run; everything else about it is config and data.

    Args:
        config: the experiment.
        layout: columns of a transition.
        device: where the network lives.
    """

    def __init__(self, config: Config, layout: Layout, device: torch.device | str = "cpu") -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.training.seed)
            self.objective = make_objective(config)
            self.network = self.objective.make_network(layout).to(device)
        self.config = config
        self.layout = layout
        self.step = 0
        self.parameters = FlatParameters(self.network)
        self.average = AveragedModel(self.parameters, multi_avg_fn=get_ema_multi_avg_fn(config.training.ema_decay))
        self.optimizer = _make_optimizer(self.parameters, config.training)
        self.lr_scheduler = LambdaLR(self.optimizer, lambda step: compute_lr_factor(step, config.training))
        self.early_stopping = EarlyStopping(config.training.patience)

    def update_average(self) -> None:
        """Take the weights into the average; until `ema_start_step` the average is a copy of them."""
        training = self.config.training
        if self.step <= training.ema_start_step:
            self.average.n_averaged.zero_()  # the next update copies
        if self.step <= training.ema_start_step or self.step % training.ema_interval == 0:
            self.average.update_parameters(self.parameters)

    def make_average_network(self) -> nn.Module:
        """A copy of the network with the averaged weights, ready to plan with."""
        network = copy.deepcopy(self.network).eval()
        average = self.average.module
        assert isinstance(average, FlatParameters)
        average.copy_to(network)
        return network

    def average_weights(self) -> dict[str, torch.Tensor]:
        """The averaged weights, under the names of the network."""
        return self.make_average_network().state_dict()

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on exactly; only tensors and plain values."""
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "average": self._rearrange(self.average.state_dict(), self.parameters.to_plain),
            "optimizer": self._rearrange(self.optimizer.state_dict(), self.parameters.to_plain),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "early_stopping": self.early_stopping.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; raises `CheckpointError` if it is that of another network."""
        try:
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(self._rearrange(state["average"], self.parameters.from_plain))
            self.optimizer.load_state_dict(self._rearrange(state["optimizer"], self.parameters.from_plain))
            self.lr_scheduler.load_state_dict(state["lr_scheduler"])
            self.early_stopping.load_state_dict(state["early_stopping"])
            self.step = state["step"]
        except (KeyError, RuntimeError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise CheckpointError(f"training state: it belongs to another network or version ({first})") from None

    def _rearrange(self, value: Any, rearrange: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        """The same state with all arrays like the flat parameters rearranged."""
        if isinstance(value, dict):
            return {key: self._rearrange(item, rearrange) for key, item in value.items()}
        if isinstance(value, torch.Tensor) and value.shape == self.parameters.flat.shape:
            return rearrange(value)
        return value


def compute_lr_factor(step: int, training: TrainingConfig) -> float:
    """Learning rate of a step relative to the peak: linear warm-up, then constant or cosine to zero."""
    if step < training.num_warmup_steps:
        return (step + 1) / training.num_warmup_steps
    if training.lr_schedule == "constant":
        return 1.0
    remaining = max(training.num_steps - training.num_warmup_steps, 1)
    progress = min((step - training.num_warmup_steps) / remaining, 1.0)
    return 0.5 * (1 + math.cos(math.pi * progress))


def _make_optimizer(parameters: FlatParameters, training: TrainingConfig) -> torch.optim.Optimizer:
    if training.optimizer == "adam":
        return torch.optim.Adam([parameters.flat], lr=training.learning_rate, fused=True)
    return torch.optim.AdamW(
        [parameters.flat], lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
    )

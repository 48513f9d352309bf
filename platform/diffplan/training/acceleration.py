"""What makes a step faster where the hardware has it: bfloat16, torch.compile, CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from diffplan.config import TrainingConfig
from diffplan.errors import ConfigError


def uses_bfloat16(training: TrainingConfig, device: torch.device) -> bool:
    """Whether the network runs in bfloat16 on a device.

    Raises:
        ConfigError: it is asked for, and the device cannot.
    """
    able = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if training.precision == "bfloat16" and not able:
        raise ConfigError("training.precision: expected auto or float32 on this GPU, got bfloat16, which it cannot")
    # On CPUs, even with matrix units, it brings small convolutions next to nothing: `auto` leaves it off there.
    return training.precision == "bfloat16" or (training.precision == "auto" and device.type == "cuda" and able)


def autocast(model: nn.Module, training: TrainingConfig, device: torch.device) -> nn.Module:
    """A model that runs in the precision of the config; what it gives is float32, as losses and samplers want it."""
    return _Autocast(model, device.type) if uses_bfloat16(training, device) else model


def compile_model(model: nn.Module, training: TrainingConfig) -> nn.Module:
    """A model that runs compiled where the config asks for it; it shares its parameters with the one given."""
    return cast(nn.Module, torch.compile(model)) if training.compile == "on" else model


def records_graphs(training: TrainingConfig, device: torch.device) -> bool:
    """Whether passes on a device are recorded as CUDA graphs."""
    return device.type == "cuda" and training.compile != "off"


class _Autocast(nn.Module):
    def __init__(self, model: Callable[..., Tensor], device_type: str) -> None:
        super().__init__()
        self.model = model
        self._device_type = device_type

    def forward(self, *arguments: Tensor, **named: Tensor) -> Tensor:
        """Run in bfloat16."""
        with torch.autocast(self._device_type, torch.bfloat16):
            output = self.model(*arguments, **named)
        return output.float()

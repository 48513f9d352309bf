"""The condition of a network for one batch: the return or the task of the settings."""

from __future__ import annotations

import torch
from torch import Tensor

from diffplan.config import PlanningConfig
from diffplan.diffusion.classifier_free import ClassifierFreeDenoiser
from diffplan.diffusion.samplers import Denoises
from diffplan.networks.packing import Packings
from diffplan.planning.model import PlanningModel


def make_conditioned_denoiser(
    model: PlanningModel, settings: PlanningConfig, batch_size: int, mask: Tensor
) -> Denoises:
    """The denoiser of a batch, conditioned on the return or the task of the settings if there is one.

    A network with known columns is told whether the mask of the fixed entries, bool[#batch, horizon, transition_dim],
    has all of them at the last step.

    All its passes are of the same plans, so they share one packing of plans of different lengths.
    """
    denoiser = model.denoiser
    if getattr(denoiser.network, "takes_packings", False):
        denoiser = denoiser.with_options(packings=Packings())
    if model.known_columns:
        known = mask[:, -1, model.layout.observation_columns(model.known_columns)]
        # All or none, as in training: of some of them the network has never learned anything.
        denoiser = denoiser.with_options(known=known.all(dim=1, keepdim=True).expand_as(known))
    told = {"none": None, "returns": settings.condition.target_return, "task": settings.condition.task}[model.condition]
    if told is None:
        return denoiser
    if model.condition == "returns":
        assert model.return_range is not None  # the planner refuses a target return without one
        low, high = model.return_range
        told = (told - low) / (high - low)
    condition = torch.full((batch_size,), float(told), device=model.device)
    return ClassifierFreeDenoiser(denoiser, condition, settings.condition.scale)

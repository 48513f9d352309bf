"""Action heads fitted to a dataset, as companions of a diffuser."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diffplan.config import Config, NetworkConfig, TrainingConfig
from diffplan.data.format.dataset import TrajectoryDataset
from diffplan.errors import ConfigError
from diffplan.planning.companions.action_head import NOISE, READS, ActionHead, ActionHeads, find_steps
from diffplan.seeding import Stream, make_seed
from diffplan.training.batches import TrainingBatches

MIN_FIT_STEPS, MAX_FIT_STEPS, FIT_PASSES = 500, 6_000, 50
"""Limits of the default number of optimizer steps, which draws each environment step 50 times."""
_MAX_GRADIENT_NORM = 10.0


def fit_action_heads(
    dataset: TrajectoryDataset,
    config: Config,
    *,
    num_steps: int | None = None,
    batch_size: int = 256,
    num_test_windows: int = 20_000,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[ActionHeads, dict[str, float]]:
    """Fit a head for each choice of planned observations, all to the same batches.

    Args:
        dataset: the data.
        config: the experiment of the diffuser: the steps of its windows.
        num_steps: optimizer steps; None to choose them by the size of the data.
        batch_size: windows of a step.
        num_test_windows: windows of held-out episodes to measure the error on.
        seed: of weights, windows and noise.
        on_progress: called with the steps done and their total.

    Returns:
        The heads, and the error of each on the held-out windows: root mean square, relative to the standard deviation
        of actions.

    Raises:
        ConfigError: windows have several horizons.
        DataError: there are too few episodes to hold one out.
    """
    windows = config.windows
    if windows.min_horizon != windows.max_horizon:
        raise ConfigError(
            "planning.controller: expected inverse_dynamics or actions, for windows have several horizons and an "
            "action head reads plans of one"
        )
    if num_steps is None:
        num_steps = int(np.clip(FIT_PASSES * dataset.num_steps / batch_size, MIN_FIT_STEPS, MAX_FIT_STEPS))
    batches = TrainingBatches(
        replace(
            config,
            windows=replace(windows, columns="actions_observations", normalization="gaussian", deltas=True),
            network=NetworkConfig(kind="mlp"),
            diffusion=replace(config.diffusion, clip_denoised=False, column_weights=None),
            training=TrainingConfig(
                num_steps=num_steps,
                batch_size=batch_size,
                validation_fraction=0.1,
                validation_windows=num_test_windows,
                seed=seed,
            ),
        ),
        dataset,
    )
    heads = _make_heads(batches, windows.max_horizon, make_seed(seed, Stream.CALIBRATION, 6))
    generator = torch.Generator().manual_seed(make_seed(seed, Stream.CALIBRATION, 7))
    optimizer = torch.optim.Adam(heads.parameters(), lr=1e-3, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / num_steps, 1.0)))
    )
    for step in range(num_steps):
        x = batches.make(step).x_clean
        loss = sum((_measure(heads, reads, x, batches, generator) for reads in READS), torch.zeros(()))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(heads.parameters(), _MAX_GRADIENT_NORM)
        optimizer.step()
        scheduler.step()
        if on_progress is not None and ((step + 1) % 100 == 0 or step + 1 == num_steps):
            on_progress(step + 1, num_steps)
    heads = heads.requires_grad_(False).eval()
    x = torch.cat([batch.x_clean for batch in batches.make_validation()])
    return heads, {reads: math.sqrt(float(_measure(heads, reads, x, batches, None))) for reads in READS}


def _make_heads(batches: TrainingBatches, horizon: int, seed: int) -> ActionHeads:
    """Heads with the scales of the data."""
    layout, normalizer = batches.layout, batches.normalizer
    assert normalizer.deltas is not None
    center, scale = torch.from_numpy(normalizer.center), torch.from_numpy(normalizer.scale)
    changes = torch.from_numpy(normalizer.deltas.center), torch.from_numpy(normalizer.deltas.scale)
    found = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for reads in READS:
            steps = find_steps(reads, horizon)
            head = ActionHead(layout.observation_dim, layout.action_dim, steps)
            rows = [step - 1 for step in steps]
            head.observation_center.copy_(center[layout.observations])
            head.observation_scale.copy_(scale[layout.observations])
            head.action_center.copy_(center[layout.actions])
            head.action_scale.copy_(scale[layout.actions])
            head.change_center.copy_(changes[0][rows] * scale[layout.observations])
            head.change_scale.copy_(changes[1][rows] * scale[layout.observations])
            found[reads] = head
    return ActionHeads(found)


def _measure(
    heads: ActionHeads, reads: str, x: Tensor, batches: TrainingBatches, generator: torch.Generator | None
) -> Tensor:
    """Mean squared error of a head on windows in model space; with noise on what it reads in training."""
    head, layout = heads[reads], batches.layout
    assert isinstance(head, ActionHead)
    changes = x[:, head.steps][:, :, layout.observations].flatten(1)
    if generator is not None and NOISE[reads]:
        changes = changes + NOISE[reads] * torch.randn(changes.shape, generator=generator)
    predicted = head.network(torch.cat([x[:, 0, layout.observations], changes], dim=1))
    return F.mse_loss(predicted, x[:, 0, layout.actions])

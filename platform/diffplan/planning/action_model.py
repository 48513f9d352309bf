"""Inverse dynamics fitted to a dataset: which action leads from an observation to the next, in environment units."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from diffplan.data.dataset import TrajectoryDataset
from diffplan.data.normalization import Normalizer
from diffplan.data.readers import make_window_reader
from diffplan.data.window_index import WindowIndex
from diffplan.networks.inverse_dynamics import InverseDynamics
from diffplan.seeding import Stream, make_generator

NUM_PAIRS = 200_000
"""Pairs of observations that a model is fitted to, at most."""
NUM_TEST_PAIRS = 20_000


class ActionModel(nn.Module):
    """Inverse dynamics with its units.

    Observations reach the network as the first one, normalised, and the change to the second in units of the usual
    change: one step changes an observation by little of its range.

    Args:
        observation_dim: size of an observation.
        action_dim: size of an action.
        hidden_dim: width of the network.
    """

    observation_center: Tensor
    observation_scale: Tensor
    change_scale: Tensor
    action_center: Tensor
    action_scale: Tensor

    def __init__(self, observation_dim: int, action_dim: int, hidden_dim: int = 128) -> None:
        super().__init__()
        self.network = InverseDynamics(observation_dim, action_dim, hidden_dim)
        for name, size in (("observation", observation_dim), ("action", action_dim)):
            self.register_buffer(f"{name}_center", torch.zeros(size))
            self.register_buffer(f"{name}_scale", torch.ones(size))
        self.register_buffer("change_scale", torch.ones(observation_dim))

    def forward(self, observations: Tensor, next_observations: Tensor) -> Tensor:
        """Actions, float[batch, action_dim]."""
        first = (observations - self.observation_center) / self.observation_scale
        change = (next_observations - observations) / self.change_scale
        return self.network(first, change) * self.action_scale + self.action_center

    @torch.no_grad()
    def predict(self, observations: np.ndarray, next_observations: np.ndarray) -> np.ndarray:
        """Actions float32[batch, action_dim] that lead from observations to the next ones."""
        first, second = (torch.from_numpy(np.asarray(a, dtype=np.float32)) for a in (observations, next_observations))
        return self(first, second).numpy()


def fit_action_model(
    dataset: TrajectoryDataset,
    *,
    num_steps: int = 3_000,
    batch_size: int = 512,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[ActionModel, float]:
    """Fit inverse dynamics to neighbouring steps of a dataset.

    Args:
        dataset: the data.
        num_steps: optimizer steps.
        batch_size: pairs of a step.
        seed: of weights, pairs and batches.
        on_progress: called with the steps done and their total.

    Returns:
        The model, and its error on pairs held back: root mean square, relative to the standard deviation of actions.
    """
    manifest = dataset.manifest
    names = ("action", "observation")
    normalizer = Normalizer.fit([dataset.statistics[name] for name in names], "gaussian")
    reader = make_window_reader(dataset, names, WindowIndex(dataset, 1), normalizer, max_horizon=2)
    num_pairs = min(NUM_PAIRS, 4 * dataset.num_steps)
    generator = make_generator(seed, Stream.CALIBRATION, 3)
    pairs = normalizer.unnormalize(reader.read(0, num_pairs + NUM_TEST_PAIRS, 2, generator).x)
    actions = pairs[:, 0, : manifest.action_dim]
    first, second = pairs[:, 0, manifest.action_dim :], pairs[:, 1, manifest.action_dim :]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ActionModel(manifest.observation_dim, manifest.action_dim)
    for center, scale, values in (
        (model.observation_center, model.observation_scale, first),
        (model.action_center, model.action_scale, actions),
        (None, model.change_scale, second - first),
    ):
        scale.copy_(values.std(dim=0).clamp(min=1e-6))
        if center is not None:
            center.copy_(values.mean(dim=0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    draws = torch.Generator().manual_seed(seed)
    for step in range(1, num_steps + 1):
        rows = torch.randint(num_pairs, (batch_size,), generator=draws)
        errors = (model(first[rows], second[rows]) - actions[rows]) / model.action_scale
        loss = errors.square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        scheduler.step()
        if on_progress is not None and (step % 100 == 0 or step == num_steps):
            on_progress(step, num_steps)
    model.eval()
    with torch.no_grad():
        errors = (model(first[num_pairs:], second[num_pairs:]) - actions[num_pairs:]) / model.action_scale
    return model, float(errors.square().mean().sqrt())

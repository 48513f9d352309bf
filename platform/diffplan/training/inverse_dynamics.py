"""Inverse dynamics fitted to a dataset, as a companion of a diffuser whose plans hold no actions."""

from __future__ import annotations

import math
from collections.abc import Callable

from diffplan.config import Config, EnvConfig, NetworkConfig, TrainingConfig
from diffplan.data.format.dataset import TrajectoryDataset
from diffplan.planning.companions.action_model import ActionModel
from diffplan.training.batches import TrainingBatches
from diffplan.training.loop import TrainingProgress, train
from diffplan.training.state import TrainingState


def fit_action_model(
    dataset: TrajectoryDataset,
    *,
    num_steps: int = 3_000,
    batch_size: int = 512,
    num_test_pairs: int = 20_000,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[ActionModel, float]:
    """Fit inverse dynamics to neighbouring steps of a dataset.

    Args:
        dataset: the data.
        num_steps: optimizer steps.
        batch_size: pairs of a step.
        num_test_pairs: pairs of held-out episodes to measure the error on.
        seed: of weights, pairs and batches.
        on_progress: called with the steps done and their total.

    Returns:
        The model in environment units, and its error on the held-out pairs: root mean square, relative to the standard
        deviation of actions.

    Raises:
        DataError: there are too few episodes to hold one out.
    """
    config = Config(
        env=EnvConfig(env_id=str(dataset.manifest.env.get("env_id", ""))),
        network=NetworkConfig(hidden_dim=128),
        training=TrainingConfig(
            objective="inverse_dynamics",
            num_steps=num_steps,
            batch_size=batch_size,
            learning_rate=2e-3,
            num_warmup_steps=0,
            log_interval=100,
            validation_fraction=0.1,
            validation_interval=num_steps,
            validation_windows=num_test_pairs,
            seed=seed,
        ),
    )
    batches = TrainingBatches(config, dataset)
    state = TrainingState(config, batches.layout)
    losses: list[float] = []

    def follow(progress: TrainingProgress) -> None:
        if on_progress is not None:
            on_progress(progress.step, num_steps)
        if progress.validation_loss is not None:
            losses.append(progress.validation_loss)

    train(state, batches, on_progress=follow)
    network = state.make_average_network()
    assert isinstance(network, ActionModel)
    return network.in_environment_units(batches.layout, batches.normalizer), math.sqrt(losses[-1])

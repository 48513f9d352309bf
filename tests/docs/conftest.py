"""A small real model of Maze2D-UMaze, collected and trained in this process, for the examples of the documents."""

from pathlib import Path

import pytest

from diffplan.behaviors.collection import UnitCollector, make_manifest
from diffplan.checkpoint import save_checkpoint
from diffplan.config import Config, with_overrides
from diffplan.data.dataset import open_dataset, write_snapshot
from diffplan.data.writer import create_dataset, write_unit
from diffplan.tasks.registry import get_preset
from diffplan.training.batches import TrainingBatches
from diffplan.training.loop import train
from diffplan.training.state import TrainingState

CONFIG = with_overrides(
    get_preset("maze2d-umaze-smoke"),
    {
        "network.dim": 16,
        "network.dim_mults": [1, 2],
        "training.num_steps": 800,
        "training.learning_rate": 5e-3,
        "training.ema_decay": 0.98,
    },
)
"""The preset with a small network and a high learning rate: plans good enough to show, after 20 seconds on one core."""


def collect(config: Config, root: Path) -> None:
    """Write a dataset."""
    manifest = create_dataset(root, make_manifest(config.env, config.collection))
    collector = UnitCollector(config.env, config.collection)
    for unit in range(config.collection.num_units):
        write_unit(root, manifest, unit, collector.collect(unit))
    write_snapshot(open_dataset(root))


def fit(config: Config, data: Path, path: Path) -> None:
    """Train on a dataset and write a checkpoint."""
    batches = TrainingBatches(config, open_dataset(data))
    state = TrainingState(config, batches.layout)
    train(state, batches)
    save_checkpoint(
        path,
        config=config,
        layout=batches.layout,
        step=state.step,
        normalizer=batches.normalizer,
        weights=state.average_weights(),
        dataset={"path": str(data)},
        training_state=state.state_dict(),
        return_range=batches.return_range,
    )


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the dataset `data/umaze` and two checkpoints under `models/`, as the documents name them."""
    root = tmp_path_factory.mktemp("workspace")
    (root / "data").mkdir()
    collect(CONFIG, root / "data" / "umaze")
    fit(CONFIG, root / "data" / "umaze", root / "models" / "umaze")
    value = with_overrides(CONFIG, {"training.objective": "value", "training.num_steps": 20})
    fit(value, root / "data" / "umaze", root / "models" / "umaze-value")
    return root

"""Datasets and checkpoints that tests make in their own process, without a cluster."""

from pathlib import Path
from typing import Any

from diffplan.behaviors.collection import UnitCollector, complete_collection, make_manifest
from diffplan.checkpoint import save_checkpoint
from diffplan.config import CollectionConfig, Config, EnvConfig
from diffplan.data.format.dataset import open_dataset, write_snapshot
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.training.batches import TrainingBatches
from diffplan.training.loop import train
from diffplan.training.state import TrainingState


def collect(env: EnvConfig, collection: CollectionConfig, root: Path) -> Path:
    """Write a dataset with one snapshot."""
    env, collection = complete_collection(env, collection)
    manifest = create_dataset(root, make_manifest(env, collection))
    collector = UnitCollector(env, collection)
    for unit in range(collection.num_units):
        write_unit(root, manifest, unit, collector.collect(unit))
    write_snapshot(open_dataset(root))
    return root


def fit(
    config: Config, data: Path, path: Path, *, num_steps: int | None = None, record: dict[str, Any] | None = None
) -> Path:
    """Train on a dataset and write a checkpoint.

    Args:
        config: the experiment.
        data: the dataset.
        path: where the checkpoint goes.
        num_steps: steps of training, all of the experiment's by default; with 0 weights are as they are drawn.
        record: what the checkpoint says of its dataset, by default where it lies.
    """
    batches = TrainingBatches(config, open_dataset(data))
    state = TrainingState(config, batches.layout)
    if num_steps != 0:
        train(state, batches, num_steps=num_steps)
    save_checkpoint(
        path,
        config=config,
        layout=batches.layout,
        step=state.step,
        normalizer=batches.normalizer,
        weights=state.average_weights(),
        dataset={"path": str(data)} if record is None else record,
        training_state=state.state_dict(),
        return_range=batches.return_range,
    )
    return path

"""What the tests of training compare runs by."""

from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffplan.config import Config
from diffplan.data.format.dataset import open_dataset
from diffplan.training.batches import TrainingBatches
from diffplan.training.loop import train
from diffplan.training.state import TrainingState


def read_scalars(directory: Path, name: str) -> dict[int, float]:
    """A curve of TensorBoard, by step."""
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    scalars = events.Scalars(name)
    assert len({scalar.step for scalar in scalars}) == len(scalars), "a step occurs twice in the curve"
    return {scalar.step: scalar.value for scalar in scalars}


def train_without_ray(config: Config, dataset: Path | str) -> TrainingState:
    """The same run in this process."""
    torch.set_num_threads(1)  # as the workers of these tests; sums depend on it in the last bits
    batches = TrainingBatches(config, open_dataset(dataset))
    state = TrainingState(config, batches.layout)
    train(state, batches)
    return state


def assert_equal_weights(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    """Compare weights by name."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance)

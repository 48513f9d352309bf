import pytest
import torch
from small_training import CONFIG, write_straight_paths

from diffplan.config import with_overrides
from diffplan.data.dataset import open_dataset
from diffplan.training.batches import TrainingBatches
from diffplan.training.loop import take_step, train
from diffplan.training.state import TrainingState


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("straight") / "dataset"
    write_straight_paths(root)
    return open_dataset(root)


@pytest.mark.parametrize("padding", ["skip", "short", "end"])
def test_memory_and_mapped_give_the_same_training_batches(dataset, padding):
    memory, mapped = (
        TrainingBatches(with_overrides(CONFIG, {"windows.storage": s, "windows.padding": padding}), dataset)
        for s in ("memory", "mapped")
    )
    for step in range(5):
        first, second = memory.make(step), mapped.make(step)
        assert torch.equal(first.x_clean, second.x_clean)
        assert torch.equal(first.noise, second.noise)
        assert (first.mask is None) == (padding == "skip")
        assert first.mask is None or torch.equal(first.mask, second.mask)


@pytest.mark.parametrize("storage", ["memory", "mapped", "blocks"])
def test_loop_trains_as_steps_by_hand(dataset, storage):
    overrides = {"windows.storage": storage, "windows.padding": "end", "training.accumulation_steps": 2}
    config = with_overrides(CONFIG, overrides)
    batches = TrainingBatches(config, dataset)
    looped, by_hand = (TrainingState(config, batches.layout) for _ in range(2))
    losses = []
    train(looped, batches, on_progress=lambda progress: losses.append(progress.loss))
    fresh = TrainingBatches(config, dataset)
    for step in range(4):
        take_step(by_hand, by_hand.network, fresh.make_step(step), torch.device("cpu"))
    for name, weights in looped.network.state_dict().items():
        assert torch.equal(weights, by_hand.network.state_dict()[name]), name
    assert all(0 < loss < 100 for loss in losses)
    assert losses

"""Passes recorded as CUDA graphs against passes that are not."""

import pytest
import torch
from small_training import CONFIG, write_straight_paths

from diffplan.config import with_overrides
from diffplan.data.format.dataset import open_dataset
from diffplan.training.batches import TrainingBatches
from diffplan.training.loop import take_step, train
from diffplan.training.passes import RecordedPasses, make_passes
from diffplan.training.state import TrainingState

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="records CUDA graphs")
OVERRIDES = {"training.num_steps": 12, "training.precision": "float32", "training.log_interval": 1}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("straight") / "dataset"
    write_straight_paths(root)
    return open_dataset(root)


def run(dataset, device, **overrides):
    config = with_overrides(CONFIG, {**OVERRIDES, **overrides})
    batches = TrainingBatches(config, dataset, device=device)
    state = TrainingState(config, batches.layout, device)
    losses = []
    train(state, batches, device=device, on_progress=lambda progress: losses.append(progress.loss))
    return losses, {name: weights.cpu() for name, weights in state.average_weights().items()}


def test_nothing_is_recorded_without_a_gpu(dataset):
    config = with_overrides(CONFIG, {**OVERRIDES, "training.compile": "cuda_graphs"})
    batches = TrainingBatches(config, dataset)
    state = TrainingState(config, batches.layout)
    passes = make_passes(state, CPU)
    assert not isinstance(passes, RecordedPasses)
    loss, _ = take_step(state, passes, batches.make_step(0))
    assert 0 < float(loss) < 100


@needs_gpu
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"training.accumulation_steps": 2},
        {"windows.padding": "end"},
        {"training.objective": "value"},
        {"training.objective": "inverse_dynamics"},
        {"training.objective": "behavior_cloning"},
        {"training.validation_fraction": 0.2, "training.validation_interval": 3},
    ],
    ids=str,
)
def test_recorded_passes_train_as_others(dataset, overrides):
    recorded, weights = run(dataset, "cuda", **overrides, **{"training.compile": "cuda_graphs"})
    one_by_one, expected = run(dataset, "cuda", **overrides, **{"training.compile": "off"})
    assert recorded == pytest.approx(one_by_one, rel=2e-3)
    for name, values in expected.items():
        torch.testing.assert_close(weights[name], values, rtol=2e-2, atol=2e-3, msg=name)


@needs_gpu
def test_a_gpu_trains_as_a_cpu(dataset):
    on_gpu, weights = run(dataset, "cuda")
    on_cpu, expected = run(dataset, "cpu")
    assert on_gpu == pytest.approx(on_cpu, rel=1e-2)
    for name, values in expected.items():
        torch.testing.assert_close(weights[name], values, rtol=5e-2, atol=5e-3, msg=name)

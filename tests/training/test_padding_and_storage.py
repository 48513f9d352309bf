import dataclasses
import math

import numpy as np
import pytest
import torch
from small_training import CONFIG, make_straight_episode, write_straight_paths
from torch import nn

from diffplan.config import DiffusionConfig, with_overrides
from diffplan.data.format.dataset import open_dataset
from diffplan.data.format.manifest import new_dataset_uuid
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.data.maintenance.merging import Source, merge
from diffplan.diffusion.constraints import endpoint_mask
from diffplan.diffusion.denoiser import Denoiser
from diffplan.diffusion.loss import compute_loss
from diffplan.training.batches import TrainingBatches
from diffplan.training.loop import take_step, train
from diffplan.training.passes import compute_batch_loss, make_passes
from diffplan.training.state import TrainingState

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("straight") / "dataset"
    write_straight_paths(root)
    return open_dataset(root)


def cut(episode, length):
    return dataclasses.replace(
        episode,
        observations=episode.observations[: length + 1],
        actions=episode.actions[:length],
        rewards=episode.rewards[:length],
    )


@pytest.fixture(scope="module")
def short_episodes(tmp_path_factory, dataset):
    """Episodes of 1 to 5 steps, where windows span 7 to 19."""
    root = tmp_path_factory.mktemp("short") / "dataset"
    manifest = create_dataset(root, dataset.manifest)
    write_unit(root, manifest, 0, [cut(make_straight_episode(i), 1 + i % 5) for i in range(20)])
    return open_dataset(root)


def assert_equal_batches(first, second):
    for field in dataclasses.fields(first):
        a, b = getattr(first, field.name), getattr(second, field.name)
        assert (a is None) == (b is None), field.name
        assert a is None or torch.equal(a, b), field.name


@pytest.mark.parametrize("padding", ["skip", "short", "end"])
def test_memory_and_mapped_give_the_same_training_batches(dataset, padding):
    memory, mapped = (
        TrainingBatches(with_overrides(CONFIG, {"windows.storage": s, "windows.padding": padding}), dataset)
        for s in ("memory", "mapped")
    )
    for step in range(5):
        assert_equal_batches(memory.make(step), mapped.make(step))
        assert (memory.make(step).mask is None) == (padding == "skip")


@pytest.mark.parametrize("storage", ["memory", "mapped", "blocks"])
@pytest.mark.parametrize("padding", ["short", "end"])
def test_episodes_shorter_than_every_window_train(short_episodes, storage, padding):
    config = with_overrides(CONFIG, {"windows.storage": storage, "windows.padding": padding})
    batches = TrainingBatches(config, short_episodes)
    batch = batches.make(0)
    num_real = batch.mask.sum(dim=1)
    assert 1 <= int(num_real.min()) < int(num_real.max()) <= 3  # of 5 steps, every second one
    for x, real in zip(batch.x_clean, batch.mask, strict=True):
        assert real[: real.sum()].all()
        assert (x[~real] == x[-1]).all()  # the last row of the episode, which the stride may pass over
    state, losses = TrainingState(config, batches.layout), []
    train(state, batches, on_progress=lambda progress: losses.append(progress.loss))
    assert state.step == 4
    assert losses
    assert all(0 < loss < math.inf for loss in losses)


class Free(nn.Module):
    """A network whose output is a parameter."""

    def __init__(self, output):
        super().__init__()
        self.output = nn.Parameter(output)

    def forward(self, x_noisy, diffusion_step):
        return self.output


def test_padded_steps_carry_no_loss():
    generator = torch.Generator().manual_seed(0)
    x_clean, noise, output = (torch.randn(4, 6, 3, generator=generator) for _ in range(3))
    weights = torch.rand(6, 3, generator=generator)
    known = endpoint_mask(6, 3, range(3), (0, 1))
    real = torch.arange(6) < torch.tensor([1, 3, 5, 6])[:, None]
    network = Free(output)
    denoiser = Denoiser.make(network, DiffusionConfig(num_diffusion_steps=8, prediction="clean"))
    loss = compute_loss(network, denoiser, x_clean, noise, torch.tensor([0, 2, 5, 7]), known, weights, real)
    expected = sum(
        float(weights[h, d]) * float(output[b, h, d] - x_clean[b, h, d]) ** 2
        for b, h, d in np.ndindex(4, 6, 3)
        if real[b, h] and not known[0, h, d]
    )
    assert loss.item() == pytest.approx(expected / (4 * 6 * 3), rel=1e-5)
    loss.backward()
    free = real[:, :, None] & ~known
    assert (network.output.grad[~free] == 0).all()
    assert (network.output.grad[free] != 0).all()


def test_two_workers_make_the_step_of_one_where_their_padding_differs(short_episodes):
    config = with_overrides(CONFIG, {"windows.padding": "end"})

    def compute(**kwargs):
        batches = TrainingBatches(config, short_episodes, **kwargs)
        state = TrainingState(config, batches.layout)
        loss = compute_batch_loss(state, state.network, batch := batches.make(3), CPU)
        loss.backward()
        return loss.item(), int(batch.mask.sum()), [p.grad for p in state.network.parameters()]

    whole, total, gradients = compute()
    (first, num_first, a), (second, num_second, b) = (compute(rank=rank, world_size=2) for rank in range(2))
    assert num_first + num_second == total
    assert num_first != num_second
    assert (first + second) / 2 == pytest.approx(whole, rel=1e-5)
    for expected, x, y in zip(gradients, a, b, strict=True):
        torch.testing.assert_close((x + y) / 2, expected, rtol=1e-3, atol=1e-6)


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
        passes = fresh.make_step(step)
        assert len(passes) == 2
        assert not torch.equal(passes[0].noise, passes[1].noise)
        take_step(by_hand, make_passes(by_hand, CPU), passes)
    for name, weights in looped.network.state_dict().items():
        assert torch.equal(weights, by_hand.network.state_dict()[name]), name
    assert all(0 < loss < 100 for loss in losses)
    assert losses


@pytest.mark.parametrize("storage", ["memory", "mapped", "blocks"])
def test_resumed_run_sees_the_batches_of_one_that_ran_on(dataset, storage):
    overrides = {"windows.storage": storage, "windows.max_horizon": 7, "training.accumulation_steps": 2}
    config = with_overrides(CONFIG, overrides)
    running = TrainingBatches(config, dataset)
    seen = [running.make_step(step) for step in range(12)]
    resumed = TrainingBatches(config, dataset)
    for step in (7, 8, 11):
        for got, expected in zip(resumed.make_step(step), seen[step], strict=True):
            assert_equal_batches(got, expected)


@pytest.mark.parametrize(("weights", "share"), [(None, 0.75), ((1.0, 1.0), 0.5), ((0.0, 1.0), 1.0)])
@pytest.mark.parametrize("storage", ["memory", "mapped", "blocks"])
def test_merged_datasets_train_by_their_weights(tmp_path, dataset, storage, weights, share):
    manifest = dataclasses.replace(dataset.manifest, dataset_uuid=new_dataset_uuid())
    manifest = create_dataset(tmp_path / "far", manifest)
    far = [make_straight_episode(i) for i in range(3)]
    far = [dataclasses.replace(e, observations=e.observations + np.float32(100)) for e in far]
    write_unit(tmp_path / "far", manifest, 0, far)
    sources = [Source(dataset, "near", 1.0), Source(open_dataset(tmp_path / "far"), "far", 3.0)]
    merged = merge(sources, tmp_path / "merged")
    config = with_overrides(CONFIG, {"windows.storage": storage, "training.batch_size": 1000})
    windows = dataclasses.replace(config.windows, task_weights=weights)
    batches = TrainingBatches(dataclasses.replace(config, windows=windows), merged)
    x = torch.cat([batches.make(step).x_clean[:, 0] for step in range(4)])
    is_far = batches.normalizer.unnormalize(x)[:, 0] > 50
    assert float(is_far.float().mean()) == pytest.approx(share, abs=0.03)

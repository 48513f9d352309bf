import dataclasses
import os
from statistics import fmean

import pytest
import torch
from small_training import CONFIG, NUM_EPISODES, NUM_STEPS, write_straight_paths

from diffplan.config import NetworkConfig, with_overrides
from diffplan.data.format.dataset import open_dataset
from diffplan.data.windows.window_index import WindowIndex
from diffplan.errors import DataError
from diffplan.networks.factory import make_network
from diffplan.training import cost as costs
from diffplan.training.cost import (
    MemoryCost,
    TrainingCost,
    compute_step_flops,
    count_parameters,
    count_window_flops,
    estimate_cost,
    estimate_seconds,
    measure_matmul_throughput,
)

UNET = NetworkConfig(dim=8, dim_mults=(1, 2, 4))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "straight"
    write_straight_paths(root)
    return open_dataset(root)


@pytest.fixture(scope="module")
def cost(dataset):
    return estimate_cost(CONFIG, dataset)


def list_files(root):
    return sorted((path, os.stat(path).st_mtime_ns) for path in root.rglob("*"))


@pytest.mark.parametrize("horizon", [4, 9])
def test_arithmetic_of_a_tiny_network_is_that_counted_by_hand(horizon):
    # One level, nothing is halved: two blocks down, two in the middle, and what leads out. Products of inputs, outputs
    # and kernel size, a multiplication and an addition as two.
    columns, dim, kernel = 5, 8, 5
    into_first = columns * dim * kernel + columns * dim  # a convolution and, since the sizes differ, one of size 1
    wide = dim * dim * kernel
    convolutions = into_first + 7 * wide + wide + dim * columns
    of_the_step = dim * 4 * dim + 4 * dim * dim + 4 * dim * dim  # two layers of the embedding, one in each block
    forward = 2 * (horizon * convolutions + of_the_step)
    # Backwards each gives the gradients of its weights and of its inputs, but those of the network's inputs.
    backward = 2 * forward - 2 * (horizon * into_first + dim * 4 * dim)
    network = NetworkConfig(dim=dim, dim_mults=(1,))
    assert count_window_flops(network, columns, horizon) == forward + backward


@pytest.mark.parametrize("kind", ["unet", "transformer"])
@pytest.mark.parametrize(("low", "high", "multiple"), [(8, 8, 4), (8, 36, 4), (9, 30, 7)])
def test_arithmetic_of_a_step_is_the_mean_over_all_horizons(kind, low, high, multiple):
    network = dataclasses.replace(UNET, kind=kind, dim=16)
    windows = dataclasses.replace(CONFIG.windows, min_horizon=low, max_horizon=high, horizon_multiple=multiple)
    training = dataclasses.replace(CONFIG.training, batch_size=3, accumulation_steps=2)
    config = dataclasses.replace(CONFIG, windows=windows, network=network, training=training)
    expected = 6 * fmean(count_window_flops(network, 4, horizon) for horizon in windows.horizons)
    assert compute_step_flops(config, 4) == pytest.approx(expected, rel=1e-12)


def test_arithmetic_of_attention_is_counted():
    network = NetworkConfig(kind="transformer", dim=16, num_heads=2, depth=1)
    few, more, most = (count_window_flops(network, 4, horizon) for horizon in (16, 32, 48))
    # Every layer but the attention is in proportion to the steps; two products of all pairs of steps are not.
    forward = 2 * 2 * 16 * 16 * 16
    assert most - 2 * more + few == 2 * 3 * forward


@pytest.mark.parametrize("network", [UNET, dataclasses.replace(UNET, kind="transformer"), NetworkConfig(dim=8)])
def test_weights_are_counted_without_making_them(network):
    made = make_network(7, network, 2)
    assert count_parameters(network, 7) == sum(parameter.numel() for parameter in made.parameters())


def test_windows_of_an_epoch_are_those_of_the_index(cost, dataset):
    index = WindowIndex(dataset, CONFIG.windows.stride)
    assert cost.num_windows == fmean(index.count(horizon) for horizon in CONFIG.windows.horizons)
    assert cost.num_windows == NUM_EPISODES * fmean(NUM_STEPS - span + 1 for span in (7, 13, 19))
    assert cost.windows_per_step == 12
    assert cost.steps_per_epoch == cost.num_windows / 12 == 12


def test_held_out_episodes_are_no_windows_of_an_epoch(dataset, cost):
    config = with_overrides(CONFIG, {"training.validation_fraction": 0.5})
    assert 0 < estimate_cost(config, dataset).num_windows < cost.num_windows


def test_passes_of_a_step_count(dataset, cost):
    config = with_overrides(CONFIG, {"training.accumulation_steps": 3})
    more = estimate_cost(config, dataset)
    assert more.windows_per_step == 36
    assert more.step_flops == 3 * cost.step_flops
    assert more.memory.activations == pytest.approx(cost.memory.activations, rel=0.05)  # of one pass at a time


def test_memory(cost, dataset):
    memory, weights = cost.memory, 4 * cost.num_parameters
    assert (memory.parameters, memory.gradients, memory.optimizer, memory.average) == (
        weights, weights, 2 * weights, weights,
    )  # fmt: skip
    assert cost.storage == "memory"
    assert memory.data == 4 * 4 * NUM_EPISODES * NUM_STEPS
    assert memory.total == 5 * weights + memory.activations + memory.data
    mapped = estimate_cost(with_overrides(CONFIG, {"windows.storage": "mapped"}), dataset)
    assert (mapped.storage, mapped.memory.data) == ("mapped", 0)
    blocks = estimate_cost(with_overrides(CONFIG, {"windows.storage": "blocks"}), dataset)
    assert (blocks.storage, blocks.memory.data) == ("blocks", 0)


def test_activations_grow_in_proportion_to_the_batch(dataset, cost):
    sizes = [cost.memory.activations]
    for batch_size in (24, 36):
        config = with_overrides(CONFIG, {"training.batch_size": batch_size})
        sizes.append(estimate_cost(config, dataset).memory.activations)
    growth = sizes[1] - sizes[0]
    assert sizes[2] - sizes[1] == pytest.approx(growth, rel=0.1)
    # The rest are the weights as the images are laid out, kept for the backward pass too.
    assert 0 <= sizes[0] - growth <= 1.5 * 4 * cost.num_parameters


def test_activations_are_what_is_kept_for_the_backward_pass_without_weights():
    network = torch.nn.Linear(3, 5)
    x = torch.zeros(7, 3)
    with costs._count_saved_bytes(network) as saved:
        (network(x).exp() * network(x)).sum().backward()
    # The input, kept twice but one piece of memory; what exp gives; what the second layer gives.
    assert sum(saved.values()) == 4 * (7 * 3 + 7 * 5 + 7 * 5)


def test_times_are_measured_and_follow_from_each_other(cost):
    assert cost.step_seconds > 0
    assert cost.batch_seconds > 0
    assert cost.num_steps == CONFIG.training.num_steps
    known = TrainingCost(
        num_parameters=1,
        step_flops=1.0,
        num_windows=100.0,
        windows_per_step=8,
        storage="memory",
        memory=MemoryCost(parameters=1, gradients=2, optimizer=3, average=4, activations=5, data=6),
        step_seconds=0.5,
        batch_seconds=0.1,
        num_steps=40,
    )
    assert (known.total_seconds, known.steps_per_epoch, known.memory.total) == (20.0, 12.5, 21)
    assert dataclasses.replace(known, batch_seconds=2.0).total_seconds == 80.0  # then steps wait for their batches


def test_steps_of_a_middling_horizon_are_probed(dataset):
    class Batches:
        """Gives every horizon in turn."""

        def __init__(self):
            self.inner = costs.TrainingBatches(CONFIG, dataset)

        def make_step(self, step):
            return self.inner.make_step(step)

    steps, seconds = costs._make_middling_steps(Batches(), CONFIG.windows.horizons)
    assert len(steps) == costs.NUM_WARM_UP_STEPS + costs.NUM_PROBED_STEPS
    assert seconds > 0
    assert costs._mean_horizon(steps[0]) == 7  # of 4, 7 and 10


def test_a_probe_leaves_nothing_behind(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = list_files(dataset.store.root)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    estimate_cost(CONFIG, dataset)
    measure_matmul_throughput(0.01)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert not list(tmp_path.iterdir())
    assert list_files(dataset.store.root) == before


def test_a_rough_time_is_in_proportion_to_steps_and_machine():
    longer = with_overrides(CONFIG, {"training.num_steps": 3 * CONFIG.training.num_steps})
    rough = estimate_seconds(CONFIG, 4, 1e9)
    assert rough == compute_step_flops(CONFIG, 4) * CONFIG.training.num_steps / (costs.UTILISATION * 1e9)
    assert estimate_seconds(longer, 4, 1e9) == pytest.approx(3 * rough)
    assert estimate_seconds(CONFIG, 4, 2e9) == pytest.approx(rough / 2)
    assert 1e7 < measure_matmul_throughput(0.01) < 1e15


def test_data_without_a_window_is_refused(dataset):
    config = with_overrides(CONFIG, {"windows.min_horizon": 40, "windows.max_horizon": 40})
    with pytest.raises(DataError, match="longest episode has 30"):
        estimate_cost(config, dataset)

"""Cost estimate of a training run: weights, arithmetic, memory and time.

Weights are counted on the `meta` device, without memory for them; arithmetic in one pass of a single window; times and
activations are measured in a few real steps on the data. Nothing here prints or writes.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffplan.config import Config, NetworkConfig
from diffplan.data.format.dataset import TrajectoryDataset
from diffplan.data.windows.readers import MappedReader, MemoryReader
from diffplan.networks import factory
from diffplan.training.batch import TrainingBatch
from diffplan.training.batches import TrainingBatches
from diffplan.training.loop import take_step
from diffplan.training.passes import make_passes
from diffplan.training.state import TrainingState

NUM_WARM_UP_STEPS, NUM_PROBED_STEPS = 2, 5
MAX_MADE_STEPS = 64
"""Steps whose batches are made to find those with horizons near the mean."""
UTILISATION = 0.25
"""Throughput of training on CPUs as a share of that of large matrix products. Measured on two cores: 0.2 to 0.5 with
windows of 20 steps and more, 0.05 with windows of 4 steps, which have little arithmetic."""
MATMUL_SIZE = 1024
FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class MemoryCost:
    """Memory of training in one worker, in bytes.

    Attributes:
        parameters: weights.
        gradients: gradients of all weights.
        optimizer: two moments of each weight.
        average: the moving average of the weights.
        activations: tensors that a forward pass of the longest horizon saves for the backward pass.
        data: the normalised copy of the dataset; 0 if windows are not read from memory.
    """

    parameters: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    data: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.parameters + self.gradients + self.optimizer + self.average + self.activations + self.data


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """The cost of a run in one worker on this machine.

    Attributes:
        num_parameters: trainable weights.
        step_flops: floating-point operations of an optimizer step, forward and backward, mean over the horizons.
        num_windows: windows of the dataset, mean over the horizons.
        windows_per_step: windows in an optimizer step.
        storage: source of the windows: `memory`, `mapped` or `blocks`.
        memory: memory in bytes.
        step_seconds: median time of an optimizer step, at horizons near the mean.
        batch_seconds: median time to make the batches of a step, in parallel with the steps before.
        num_steps: optimizer steps of the run.
    """

    num_parameters: int
    step_flops: float
    num_windows: float
    windows_per_step: int
    storage: str
    memory: MemoryCost
    step_seconds: float
    batch_seconds: float
    num_steps: int

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps with as many windows as the dataset has."""
        return self.num_windows / self.windows_per_step

    @property
    def total_seconds(self) -> float:
        """Time of all steps, without checkpoints, validations and pictures."""
        return self.num_steps * max(self.step_seconds, self.batch_seconds)


def estimate_cost(config: Config, dataset: TrajectoryDataset, device: torch.device | str = "cpu") -> TrainingCost:
    """Estimate the cost by counting, and by measurements in a few steps, whose results are discarded.

    Args:
        config: the experiment.
        dataset: the data.
        device: device of training. The network is not compiled.

    Raises:
        DataError: a horizon has no window, or a shard is damaged.
        ConfigError: the config does not fit the data.
    """
    device = torch.device(device)
    batches = TrainingBatches(config, dataset, device=device)
    transition_dim = batches.layout.transition_dim
    state = TrainingState(config, batches.layout, device)
    num_parameters, horizons = factory.count_parameters(state.network), state.objective.windows.horizons
    probe = _probe(state, batches, device)
    reader = batches.reader
    weight_bytes = FLOAT_BYTES * num_parameters
    return TrainingCost(
        num_parameters=num_parameters,
        step_flops=probe.step_flops if probe.step_flops else compute_step_flops(config, transition_dim),
        num_windows=statistics.fmean(reader.count(horizon) for horizon in horizons),
        windows_per_step=_windows_per_step(config),
        storage={MemoryReader: "memory", MappedReader: "mapped"}.get(type(reader), "blocks"),
        memory=MemoryCost(
            parameters=weight_bytes,
            gradients=weight_bytes,
            optimizer=2 * weight_bytes,
            average=weight_bytes,
            activations=probe.activation_bytes,
            data=FLOAT_BYTES * dataset.num_steps * transition_dim if isinstance(reader, MemoryReader) else 0,
        ),
        step_seconds=probe.step_seconds,
        batch_seconds=probe.batch_seconds,
        num_steps=config.training.num_steps,
    )


@functools.cache
def count_parameters(network: NetworkConfig, transition_dim: int, horizon: int = 2) -> int:
    """Trainable weights of a network, without making them; the horizon counts for a perceptron alone."""
    return factory.count_parameters(_make_meta_network(network, transition_dim, horizon))


@functools.cache
def count_window_flops(network: NetworkConfig, transition_dim: int, horizon: int) -> int:
    """Floating-point operations of a network for one window, forward and backward.

    Those of matrix products, convolutions and attention, a multiplication and an addition as two; elementwise
    operations and the embedding of a condition are left out.
    """
    # One window is computed, with uninitialised weights: on the `meta` device the count takes five times as long, since
    # torch decomposes normalisations and activations there.
    model = _make_meta_network(network, transition_dim, horizon).to_empty(device="cpu")
    x, diffusion_step = torch.zeros(1, horizon, transition_dim), torch.zeros(1, dtype=torch.long)
    # The counter does not support fused attention on CPUs; the one of matrix products has the same arithmetic.
    with _one_thread(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x, diffusion_step).sum().backward()
    return counter.get_total_flops()


def compute_step_flops(config: Config, transition_dim: int) -> float:
    """Floating-point operations of an optimizer step, forward and backward, mean over the horizons.

    Args:
        config: the experiment.
        transition_dim: columns of a transition.
    """
    network, horizons = config.network, list(config.windows.horizons)
    if network.kind == "unet":  # its cost is linear in the horizon, so two counts suffice
        multiple = network.min_horizon
        horizons = [-(-horizon // multiple) * multiple for horizon in horizons]  # padded, as by the network
        shortest, longest = min(horizons), max(horizons)
        least, most = (count_window_flops(network, transition_dim, horizon) for horizon in (shortest, longest))
        share = (statistics.fmean(horizons) - shortest) / max(longest - shortest, 1)
        mean = least + share * (most - least)
    else:
        mean = statistics.fmean(count_window_flops(network, transition_dim, horizon) for horizon in horizons)
    return mean * _windows_per_step(config)


def measure_matmul_throughput(seconds: float = 0.5) -> float:
    """Floating-point operations per second of this machine's CPU cores in large products of float32 matrices."""
    matrix = torch.ones(MATMUL_SIZE, MATMUL_SIZE)
    torch.mm(matrix, matrix)  # warm-up of threads and libraries
    num_products, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds or not num_products:
        torch.mm(matrix, matrix)
        num_products += 1
    return 2 * MATMUL_SIZE**3 * num_products / elapsed


def estimate_seconds(config: Config, transition_dim: int, throughput: float) -> float:
    """A rough estimate of the time of a whole run on a CPU, without data to measure on.

    Args:
        config: the experiment.
        transition_dim: columns of a transition.
        throughput: throughput of large matrix products, see `measure_matmul_throughput`.
    """
    return config.training.num_steps * compute_step_flops(config, transition_dim) / (UTILISATION * throughput)


def _windows_per_step(config: Config) -> int:
    return config.training.batch_size * config.training.accumulation_steps


def _make_meta_network(network: NetworkConfig, transition_dim: int, horizon: int) -> nn.Module:
    with torch.device("meta"), torch.random.fork_rng(devices=[]):  # initialisers advance the random state even there
        return factory.make_network(transition_dim, network, horizon)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: synchronisation of several takes longer than so small a computation."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


@dataclass(frozen=True, kw_only=True)
class _Probe:
    step_seconds: float
    batch_seconds: float
    activation_bytes: int
    step_flops: float | None


def _probe(state: TrainingState, batches: TrainingBatches, device: torch.device) -> _Probe:
    """Measure a few training steps; their results are discarded."""
    horizons = state.objective.windows.horizons
    steps, batch_seconds = _make_middling_steps(batches, horizons)
    passes = make_passes(state, device)

    def step_seconds(step: list[TrainingBatch]) -> float:
        _synchronize(device)
        began = time.perf_counter()
        take_step(state, passes, step)
        _synchronize(device)
        return time.perf_counter() - began

    first = steps[0][:1]
    with _count_saved_bytes(state.network) as saved:
        step_seconds(first)
    for step in steps[1:NUM_WARM_UP_STEPS]:
        step_seconds(step)
    step_flops = None
    if state.config.training.objective != "diffusion":  # other networks have no formula, so a step is counted
        with FlopCounterMode(display=False) as counter:
            take_step(state, passes, steps[0])
        step_flops = float(counter.get_total_flops())
    return _Probe(
        step_flops=step_flops,
        step_seconds=statistics.median(step_seconds(step) for step in steps[NUM_WARM_UP_STEPS:]),
        batch_seconds=batch_seconds,
        activation_bytes=round(sum(saved.values()) * max(horizons) / _mean_horizon(first)),
    )


def _make_middling_steps(
    batches: TrainingBatches, horizons: tuple[int, ...]
) -> tuple[list[list[TrainingBatch]], float]:
    """Batches of the steps to measure, and the median time to make those of a step.

    Horizons are random and the time of a step is proportional to its horizon, so a few random steps would give a poor
    estimate. Steps of the mean horizon take the mean time.
    """
    mean, spacing = statistics.fmean(horizons), horizons[1] - horizons[0] if len(horizons) > 1 else 0
    wanted = NUM_WARM_UP_STEPS + NUM_PROBED_STEPS
    made: list[list[TrainingBatch]] = []
    seconds = []

    def distance(step: list[TrainingBatch]) -> float:
        return abs(_mean_horizon(step) - mean)

    for number in range(MAX_MADE_STEPS):
        began = time.perf_counter()
        made.append(batches.make_step(number))
        seconds.append(time.perf_counter() - began)
        if sum(distance(step) <= spacing for step in made) >= wanted:
            break
    return sorted(made, key=distance)[:wanted], statistics.median(seconds)


def _mean_horizon(step: list[TrainingBatch]) -> float:
    return statistics.fmean(batch.x_clean.shape[1] for batch in step)


@contextmanager
def _count_saved_bytes(network: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes of each tensor storage that is saved for the backward pass, by address; weights are left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

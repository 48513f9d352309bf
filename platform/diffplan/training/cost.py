"""What a training run will cost: weights, arithmetic, memory and time, before it is begun.

Weights are counted on the `meta` device, where there are none; arithmetic in one pass of a single window; times and
activations are measured in a few real steps on the real data. Nothing here prints or writes.
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
"""Steps whose batches are made in search of those with windows of a middling horizon."""
UTILISATION = 0.25
"""Share of the throughput of large matrix products that training reaches on CPUs: 0.2 to 0.5 was measured on two cores
with windows of 20 steps and more, 0.05 with windows of 4, whose steps hold little arithmetic."""
MATMUL_SIZE = 1024
FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class MemoryCost:
    """Bytes that training holds, in one worker.

    Attributes:
        parameters: weights.
        gradients: of all weights.
        optimizer: two moments of each weight.
        average: the moving average of the weights.
        activations: what a forward pass of the longest horizon keeps for its backward pass.
        data: the normalised copy of the dataset; 0 where windows are read from elsewhere.
    """

    parameters: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    data: int

    @property
    def total(self) -> int:
        """All of them together."""
        return self.parameters + self.gradients + self.optimizer + self.average + self.activations + self.data


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """The cost of a run in one worker on this machine.

    Attributes:
        num_parameters: trainable weights.
        step_flops: floating-point operations of an optimizer step, forward and backward, mean over the horizons.
        num_windows: windows of the dataset, mean over the horizons.
        windows_per_step: windows of an optimizer step.
        storage: where windows are read from: `memory`, `mapped` or `blocks`.
        memory: bytes.
        step_seconds: median time of an optimizer step, at a middling horizon.
        batch_seconds: median time of making its batches, which goes on beside the steps before.
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
        """Optimizer steps that see as many windows as there are."""
        return self.num_windows / self.windows_per_step

    @property
    def total_seconds(self) -> float:
        """Time of all steps, without checkpoints, validations and pictures."""
        return self.num_steps * max(self.step_seconds, self.batch_seconds)


def estimate_cost(config: Config, dataset: TrajectoryDataset, device: torch.device | str = "cpu") -> TrainingCost:
    """Count what can be counted and measure the rest in a few steps, whose results are thrown away.

    Args:
        config: the experiment.
        dataset: the data.
        device: where to train. The network runs as it is, not compiled.

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
def count_parameters(network: NetworkConfig, transition_dim: int) -> int:
    """Trainable weights of a network, without making them."""
    return factory.count_parameters(_make_meta_network(network, transition_dim))


@functools.cache
def count_window_flops(network: NetworkConfig, transition_dim: int, horizon: int) -> int:
    """Floating-point operations of a network for one window, forward and backward.

    Those of matrix products, convolutions and attention, a multiplication and an addition as two; what works entry by
    entry is left out, and so is the embedding of a condition.
    """
    # One window is really computed, with whatever the memory of the weights holds: on the `meta` device the counting
    # takes five times as long, for torch takes normalisations and activations apart there.
    model = _make_meta_network(network, transition_dim).to_empty(device="cpu")
    x, diffusion_step = torch.zeros(1, horizon, transition_dim), torch.zeros(1, dtype=torch.long)
    # The fused attention of CPUs is unknown to the counter; that made of matrix products does the same arithmetic.
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
    if network.kind == "unet":  # whose layers all take a share per step and a share per window: two counts tell all
        multiple = network.min_horizon
        horizons = [-(-horizon // multiple) * multiple for horizon in horizons]  # padded, as the network does
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
    torch.mm(matrix, matrix)  # wakes up threads and libraries
    num_products, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds or not num_products:
        torch.mm(matrix, matrix)
        num_products += 1
    return 2 * MATMUL_SIZE**3 * num_products / elapsed


def estimate_seconds(config: Config, transition_dim: int, throughput: float) -> float:
    """A rough time for a whole run on a CPU, for what has no data to be measured on yet.

    Args:
        config: the experiment.
        transition_dim: columns of a transition.
        throughput: that of large matrix products, see `measure_matmul_throughput`.
    """
    return config.training.num_steps * compute_step_flops(config, transition_dim) / (UTILISATION * throughput)


def _windows_per_step(config: Config) -> int:
    return config.training.batch_size * config.training.accumulation_steps


def _make_meta_network(network: NetworkConfig, transition_dim: int) -> nn.Module:
    with torch.device("meta"), torch.random.fork_rng(devices=[]):  # whose state initialisers draw on even there
        return factory.make_network(transition_dim, network)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other take longer than so small a computation."""
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
    """Take a few steps of a run that nobody keeps."""
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
    if state.config.training.objective != "diffusion":  # whose networks have no count of their own
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
    """Batches of steps to probe, and the median time of making those of a step.

    Horizons are drawn at random and a step takes time in proportion, so a few steps as they come would tell little.
    Windows of the mean horizon take the mean time.
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
    """Bytes of each piece of memory that is kept for the backward pass inside, by address; weights are left out."""
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

"""Forward and backward passes of a batch, and how a GPU takes them.

On a GPU the passes of each shape of batch are recorded once, as a CUDA graph, and launched as one from then on.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffplan.networks.cuda_graphs import GraphRecorder
from diffplan.training.acceleration import autocast, compile_model, records_graphs
from diffplan.training.batch import TrainingBatch
from diffplan.training.state import TrainingState
from diffplan.training.threads import compute_alone

Passes = Callable[[TrainingBatch], Tensor]
"""Adds the gradient of a batch's loss, divided by the batches of a step, to the gradients of the network, and returns
that loss divided by them, a scalar on the device."""


def compute_batch_loss(
    state: TrainingState, model: torch.nn.Module, batch: TrainingBatch, device: torch.device
) -> Tensor:
    """Loss of one forward pass."""
    return state.objective.compute_loss(autocast(model, state.config.training, device), state.layout, batch.to(device))


def make_passes(state: TrainingState, device: torch.device) -> Passes:
    """The passes of a run on a device, compiled and recorded where the config says so.

    Raises:
        ConfigError: the device cannot compute in the precision that is asked for.
    """
    training = state.config.training
    model = compile_model(state.network, training)

    def take(batch: TrainingBatch) -> Tensor:
        loss = compute_batch_loss(state, model, batch, device) / training.accumulation_steps
        loss.backward()
        return loss.detach()

    if records_graphs(training, device) and state.objective.recordable:
        return RecordedPasses(take, state, device)
    return take


class RecordedPasses:
    """Passes recorded as CUDA graphs, one for each shape of batch.

    Args:
        passes: what to record; reads nothing from the device and depends on a batch by its tensors alone.
        state: whose gradients the passes add to.
        device: a GPU.
    """

    def __init__(self, passes: Passes, state: TrainingState, device: torch.device) -> None:
        self._passes, self._gradient, self._device = passes, state.parameters.gradient, device
        self._recordings: dict[tuple[Any, ...], _Recording] = {}
        self._recorder = GraphRecorder()

    def __call__(self, batch: TrainingBatch) -> Tensor:
        """See `Passes`."""
        tensors = _tensors_of(batch)
        key = tuple((name, tuple(tensor.shape)) for name, tensor in tensors.items())
        if key not in self._recordings:
            self._recordings[key] = self._record(batch)
        recording = self._recordings[key]
        for name, tensor in tensors.items():
            recording.inputs[name].copy_(tensor, non_blocking=True)
        recording.graph.replay()
        return recording.loss.clone()

    def _record(self, batch: TrainingBatch) -> _Recording:
        own = dataclasses.replace(
            batch, **{name: tensor.to(self._device).clone() for name, tensor in _tensors_of(batch).items()}
        )
        with RECORDING:
            before = self._gradient.clone()
            graph, loss = self._recorder.record(lambda: self._passes(own), self._device)
            self._gradient.copy_(before)  # without what the passes before the recording have added
        return _Recording(graph, _tensors_of(own), loss)


@dataclasses.dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    loss: Tensor


RECORDING = threading.Lock()
"""Held while a graph is recorded and while other threads use the GPU: nobody else may allocate or wait meanwhile."""


def make_ahead(
    make_step: Callable[[int], list[TrainingBatch]], device: torch.device
) -> Callable[[int], list[TrainingBatch]]:
    """What a thread calls to make the batches of coming steps on the device while the present one is computed.

    On a CPU that thread computes alone. On a GPU it works in a stream of its own, so that its copies wait for no step;
    `adopt` what it makes before use.
    """
    if device.type != "cuda":

        def make_alone(step: int) -> list[TrainingBatch]:
            compute_alone()
            return make_step(step)

        return make_alone
    torch.cuda.synchronize(device)  # what the readers keep on the GPU is there
    stream = torch.cuda.Stream(device)

    def make(step: int) -> list[TrainingBatch]:
        with RECORDING, torch.cuda.stream(stream):
            batches = [batch.to(device) for batch in make_step(step)]
            stream.synchronize()
        return batches

    return make


def adopt(batches: list[TrainingBatch], device: torch.device) -> None:
    """Keep the memory of batches from another stream until this one has used it."""
    if device.type == "cuda":
        for batch in batches:
            for tensor in _tensors_of(batch).values():
                tensor.record_stream(torch.cuda.current_stream(device))


def _tensors_of(batch: TrainingBatch) -> dict[str, Tensor]:
    """The tensors of a batch by their names, without those that it does not have."""
    values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return {name: value for name, value in values.items() if value is not None}

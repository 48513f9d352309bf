"""Passes of a network on a GPU, recorded once for each batch shape and launched as a whole.

A CUDA graph (`networks.cuda_graphs`) has fixed shapes, but batches have any number of plans of any lengths. So batches
are filled up to one of a few shapes.
"""

from __future__ import annotations

import threading
import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffplan.networks.cuda_graphs import GraphRecorder
from diffplan.networks.packing import Packing, Packings
from diffplan.networks.ragged import check_lengths
from diffplan.networks.temporal_unet import TemporalUnet

MOST_STEPS = 2**17
"""Largest batch, in steps, whose passes are recorded; kernels of larger ones take longer than their launches."""
_LEAST_STEPS = 64


@dataclass(frozen=True)
class Shape:
    """The shape of a batch.

    Attributes:
        num_rows: trajectories.
        num_steps: steps of all trajectories, each length rounded up, including the filling.
        horizon: greatest length of a trajectory.
    """

    num_rows: int
    num_steps: int
    horizon: int

    @classmethod
    def holding(cls, num_rows: int, num_steps: int, longest: int, multiple: int) -> Shape:
        """The smallest of a few shapes that holds a batch.

        Args:
            num_rows: trajectories of the batch.
            num_steps: the sum of their lengths, each rounded up to the multiple.
            longest: the longest of them.
            multiple: lengths are rounded up to it; each row of the filling has at least this many steps.
        """
        rows = _power_of_two(num_rows)
        least = num_steps + (rows - num_rows + 1) * multiple
        grain = max(_LEAST_STEPS, _power_of_two(least) // 8)  # at most a fifth is padding
        return cls(rows, -(-least // grain) * grain, max(_power_of_two(longest), multiple))


class RecordedNetwork(nn.Module):
    """A denoising U-Net whose passes on a GPU are recorded as CUDA graphs.

    Passes that cannot be recorded run normally: on a CPU, with gradients, with conditions, in large batches, and, with
    a warning, if recording fails. Weights must stay at their place in memory once a pass is recorded.

    Args:
        network: a network in evaluation mode, for plans of any lengths.
    """

    takes_packings = True

    def __init__(self, network: TemporalUnet) -> None:
        super().__init__()
        self.network = network
        self._recordings: dict[Shape, _Recording] = {}
        self._measured: tuple[Tensor, int, int, int] | None = None
        self._lock = threading.Lock()
        self._recorder = GraphRecorder()

    def forward(
        self,
        x: Float[Tensor, "batch horizon transition"],
        diffusion_step: Int[Tensor, " #batch"],
        *,
        lengths: Int[Tensor, " batch"] | None = None,
        condition: Tensor | None = None,
        packings: Packings | None = None,
    ) -> Float[Tensor, "batch horizon transition"]:
        """The output of the network; see its `forward`."""
        told = {} if condition is None else {"condition": condition}
        if torch.is_grad_enabled() or told or not len(x) or not self._can_record(x.device):
            return self.network(x, diffusion_step, lengths=lengths, packings=packings, **told)
        with self._lock:
            recording = self._find_recording(self._shape_of(x, lengths), x)
            if recording is not None:
                return recording.replay(x, diffusion_step, lengths)
        return self.network(x, diffusion_step, lengths=lengths, packings=packings)

    def _can_record(self, device: torch.device) -> bool:
        return device.type == "cuda"

    def _find_recording(self, shape: Shape, like: Tensor) -> _Recording | None:
        """The recording of a shape, made on first use; None if the shape is too large or recording fails."""
        if shape.num_steps > MOST_STEPS:
            return None
        if shape not in self._recordings:
            try:
                self._recordings[shape] = self._record(shape, like)
            except RuntimeError as error:  # torch's, also if another thread interferes with the recording
                first = str(error).partition("\n")[0]
                warnings.warn(f"a pass on the GPU could not be recorded, and takes longer: {first}", stacklevel=2)
                return None
        return self._recordings[shape]

    def _shape_of(self, x: Tensor, lengths: Tensor | None) -> Shape:
        """The shape for a batch; cached, because all passes of a sampler have the same tensor of lengths."""
        multiple = self.network.min_horizon
        if lengths is None:
            check_lengths(x.shape[1], None, multiple)
            rounded = -(-x.shape[1] // multiple) * multiple
            return Shape.holding(len(x), len(x) * rounded, x.shape[1], multiple)
        if self._measured is None or self._measured[0] is not lengths or self._measured[1] != lengths._version:
            on_host = lengths.cpu()
            check_lengths(x.shape[1], on_host, multiple)
            total = int((-(-on_host // multiple) * multiple).sum())
            self._measured = (lengths, lengths._version, total, int(on_host.max()))
        _, _, total, longest = self._measured
        return Shape.holding(len(x), total, longest, multiple)

    def _record(self, shape: Shape, like: Tensor) -> _Recording:
        device, multiple = like.device, self.network.min_horizon
        x = like.new_zeros(shape.num_rows, shape.horizon, like.shape[2])
        lengths = torch.full((shape.num_rows,), multiple, device=device)
        diffusion_step = torch.zeros(shape.num_rows, dtype=torch.long, device=device)
        graph, output = self._recorder.record(
            lambda: run_filled(self.network, x, diffusion_step, lengths, shape.num_steps), device
        )
        return _Recording(graph, x, diffusion_step, lengths, output, multiple)


def record_passes(network: nn.Module, device: torch.device | str) -> nn.Module:
    """A network for planning on a device: on a GPU one that records its passes, if possible."""
    if torch.device(device).type == "cuda" and isinstance(network, TemporalUnet):
        return RecordedNetwork(network)
    return network


def run_filled(
    network: TemporalUnet,
    x: Float[Tensor, "batch horizon transition"],
    diffusion_step: Int[Tensor, " batch"],
    lengths: Int[Tensor, " batch"],
    num_steps: int,
) -> Float[Tensor, "batch horizon transition"]:
    """A pass for plans of any lengths, whose tensor shapes do not depend on the lengths; it never waits for the device.

    Args:
        network: the network.
        x: noisy trajectories; the horizon is a multiple of the network's `min_horizon`.
        diffusion_step: noise level of each trajectory.
        lengths: steps of each trajectory.
        num_steps: steps of the packed batch; more than the sum of the rounded lengths.
    """
    packing = Packing.filled(lengths, network.min_horizon, num_steps, x.shape[1])
    return network(x, diffusion_step, lengths=lengths, packing=packing)


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    x: Tensor
    diffusion_step: Tensor
    lengths: Tensor
    output: Tensor
    multiple: int

    def replay(self, x: Tensor, diffusion_step: Tensor, lengths: Tensor | None) -> Tensor:
        """The pass for a batch that fits into the recording."""
        batch, horizon, _ = x.shape
        width = min(horizon, self.x.shape[1])  # the longest trajectory of the batch fits into this
        self.x[:batch, :width].copy_(x[:, :width])
        self.diffusion_step[:batch].copy_(diffusion_step)
        self.lengths[batch:].fill_(self.multiple)
        if lengths is None:
            self.lengths[:batch].fill_(horizon)
        else:
            self.lengths[:batch].copy_(lengths)
        self.graph.replay()
        output = x.new_zeros(x.shape)
        output[:, :width] = self.output[:batch, :width]
        return output


def _power_of_two(number: int) -> int:
    """The least power of two >= `number`."""
    return 1 << max(number - 1, 0).bit_length()

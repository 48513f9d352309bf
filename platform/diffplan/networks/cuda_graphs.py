"""CUDA graphs: work on a GPU that is recorded once and then launched as a whole.

A pass of a small network is some hundred kernels of a few microseconds each. Launching them one by one takes the host
several times as long as the GPU takes to run them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

NUM_WARM_UP_PASSES = 2
"""Passes before the recorded one: in the first ones libraries choose their kernels and allocate memory."""
T = TypeVar("T")


class GraphRecorder:
    """Records work on one GPU.

    All recordings share the memory of intermediate results, so only one may be replayed at a time.
    """

    def __init__(self) -> None:
        self._memory: Any = None

    def record(self, work: Callable[[], T], device: torch.device) -> tuple[torch.cuda.CUDAGraph, T]:
        """Record some work, after a few warm-up passes.

        Args:
            work: the work to record; it reads nothing back from the device, and the addresses of its inputs are fixed.
            device: a GPU.

        Returns:
            The graph, and the result of the work: tensors that each replay overwrites.

        Raises:
            RuntimeError: the work, or concurrent work of another thread, cannot be recorded.
        """
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(NUM_WARM_UP_PASSES):
                work()
        torch.cuda.current_stream(device).wait_stream(stream)
        if self._memory is None:
            self._memory = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory, stream=stream, capture_error_mode="thread_local"):
            output = work()
        return graph, output

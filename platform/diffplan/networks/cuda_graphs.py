"""CUDA graphs: work on a GPU that is recorded once and launched as one from then on.

A pass of a small network is some hundred kernels of a few microseconds each, and launching them one by one takes the
host several times as long as running them takes the GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

NUM_WARM_UP_PASSES = 2
"""Passes before one is recorded: libraries choose their kernels and allocate in the first."""
T = TypeVar("T")


class GraphRecorder:
    """Records work on one GPU.

    All recordings keep what lies between their kernels in the same memory, so no two may be replayed at the same time.
    """

    def __init__(self) -> None:
        self._memory: Any = None

    def record(self, work: Callable[[], T], device: torch.device) -> tuple[torch.cuda.CUDAGraph, T]:
        """Record some work, which is done a few times before.

        Args:
            work: what to record; it reads nothing from the device, and its inputs stay where they are in memory.
            device: a GPU.

        Returns:
            The graph, and what the work returned: tensors that each replay fills again.

        Raises:
            RuntimeError: the work, or what another thread did meanwhile, cannot be recorded.
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

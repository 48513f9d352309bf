"""One network for several threads: simultaneous calls are computed in one batch."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffplan.networks.packing import Packings


@dataclass(eq=False)
class _Call:
    """A waiting call, and its result."""

    x: Tensor
    diffusion_step: Tensor
    lengths: Tensor | None
    condition: Tensor | None
    packings: Packings | None = None
    known: Tensor | None = None
    output: Tensor | None = None
    error: Exception | None = None


class GatheringNetwork(nn.Module):
    """A network for trajectories that several threads may call.

    Calls that arrive while it is busy are computed together next, as one batch of trajectories of different lengths.
    No call waits for others to arrive, so a single thread gets the results of the network to the last bit. In a batch
    with others, a trajectory gets the same result up to rounding.

    Args:
        network: takes `lengths`, and `condition` if it is given one; see `TemporalUnet`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._busy = threading.Lock()
        self._arrivals = threading.Lock()
        self._waiting: list[_Call] = []

    @property
    def takes_packings(self) -> bool:
        """Whether the network supports packings."""
        return bool(getattr(self.network, "takes_packings", False))

    def forward(
        self,
        x: Tensor,
        diffusion_step: Tensor,
        *,
        lengths: Tensor | None = None,
        condition: Tensor | None = None,
        packings: Packings | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """The output of the network; see its `forward`."""
        if torch.is_grad_enabled() and x.requires_grad:  # gradients stay in the calling thread
            with self._busy:
                return _run(self.network, _Call(x, diffusion_step, lengths, condition, packings, known))
        call = _Call(x, diffusion_step, lengths, condition, packings, known)
        with self._arrivals:
            self._waiting.append(call)
        with self._busy:
            if call.output is None and call.error is None:
                self._run_waiting()
        if call.error is not None:
            raise call.error
        assert call.output is not None
        return call.output

    def _run_waiting(self) -> None:
        """Compute all waiting calls; those that tell the network the same things together."""
        with self._arrivals:
            calls, self._waiting = self._waiting, []
        groups: dict[tuple[bool, bool], list[_Call]] = {}
        for call in calls:
            groups.setdefault((call.condition is None, call.known is None), []).append(call)
        for group in groups.values():
            try:
                outputs = [_run(self.network, group[0])] if len(group) == 1 else self._run_together(group)
            except Exception as error:
                for call in group:
                    call.error = error
                continue
            for call, output in zip(group, outputs, strict=True):
                call.output = output

    def _run_together(self, calls: list[_Call]) -> list[Tensor]:
        horizon = max(call.x.shape[1] for call in calls)
        lengths = None
        if any(call.lengths is not None or call.x.shape[1] < horizon for call in calls):
            lengths = torch.cat(
                [
                    torch.full((len(call.x),), call.x.shape[1], device=call.x.device)
                    if call.lengths is None
                    else call.lengths
                    for call in calls
                ]
            )
        known = None
        if calls[0].known is not None:
            known = torch.cat([c.known.repeat(len(c.x) // len(c.known), 1) for c in calls if c.known is not None])
        whole = _Call(
            torch.cat([F.pad(call.x, (0, 0, 0, horizon - call.x.shape[1])) for call in calls]),
            torch.cat([call.diffusion_step.expand(len(call.x)) for call in calls]),
            lengths,
            None if calls[0].condition is None else torch.cat([c.condition for c in calls if c.condition is not None]),
            known=known,
        )
        parts = _run(self.network, whole).split([len(call.x) for call in calls])
        return [part[:, : call.x.shape[1]] for part, call in zip(parts, calls, strict=True)]


def _run(network: nn.Module, call: _Call) -> Tensor:
    told = {
        "lengths": call.lengths,
        "condition": call.condition,
        "packings": call.packings,
        "known": call.known,
    }
    return network(call.x, call.diffusion_step, **{name: value for name, value in told.items() if value is not None})

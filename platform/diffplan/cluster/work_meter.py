"""Throughput of the actors of a stage: in the record of its attempt, and as curves in TensorBoard.

```
<out of a stage>/tensorboard/
```

The throughput of an actor is its work in the last minute over the time that it was busy. So an actor on a slow node is
visible, and one that waits for work does not seem slow.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from diffplan.cluster.event_files import CurveWriter, EventFiles
from diffplan.errors import DiffplanError
from diffplan.runs.layout import TENSORBOARD
from diffplan.runs.usage import UsageRecorder
from diffplan.storage.store import Store

WINDOW_SECONDS = 60.0
CURVE_SECONDS = 5.0
"""Time between two points of a curve."""


@dataclass(frozen=True)
class _Work:
    """A piece of work: its time, its actor, its amount and its duration."""

    at: float
    actor: str
    amount: int
    seconds: float


class WorkMeter:
    """Measures the actors of a stage; see `meter_work`."""

    def __init__(self, store: Store, stage: str, unit: str, usage: UsageRecorder, initial: int) -> None:
        self._stage, self._unit, self._usage = stage, unit, usage
        self._done = self._drawn_done = initial
        self._values: dict[str, float] = {}
        self._recent: deque[_Work] = deque()
        self._began = self._drawn = time.monotonic()
        self._files = EventFiles(f"{store.uri}/{TENSORBOARD}")
        self._writer: CurveWriter | None = None
        with contextlib.suppress(DiffplanError):  # a missing curve is no reason to fail
            # A killed attempt may have drawn work that was not committed and is now repeated.
            self._writer = CurveWriter(self._files.directory, purge_step=initial + 1)

    def note(self, actor: str, amount: int, seconds: float, **values: float) -> None:
        """Record a piece of work.

        Args:
            actor: the actor that has done it.
            amount: units of work.
            seconds: its duration.
            values: further numbers for the curves, such as the mean score.
        """
        now = time.monotonic()
        self._done, self._values = self._done + amount, values
        self._recent.append(_Work(now, actor, amount, seconds))
        while now - self._recent[0].at > WINDOW_SECONDS:
            self._recent.popleft()
        if now - self._drawn >= CURVE_SECONDS:
            self._drawn = now
            self._draw(now)
            self._upload()

    def finish(self) -> None:
        """Draw the last points that were not drawn yet."""
        if self._drawn_done < self._done:
            self._draw(time.monotonic())
        if self._writer is not None:
            with contextlib.suppress(DiffplanError):
                self._writer.close()
        self._upload()

    def summarize(self) -> dict[str, float]:
        """Actors that worked in the last minute, and the throughput of the slowest, the median and the fastest."""
        amounts: dict[str, list[float]] = {}
        for work in self._recent:
            total = amounts.setdefault(work.actor, [0.0, 0.0])
            total[0] += work.amount
            total[1] += work.seconds
        rates = sorted(amount / max(seconds, 1e-6) for amount, seconds in amounts.values())
        if not rates:
            return {}
        per_second = f"actor_{self._unit}_per_second"
        return {
            "actors": len(rates),
            f"slowest_{per_second}": rates[0],
            f"median_{per_second}": statistics.median(rates),
            f"fastest_{per_second}": rates[-1],
        }

    def _draw(self, now: float) -> None:
        self._drawn_done = self._done
        summary = self.summarize()
        self._usage.show(**summary)
        elapsed = min(now - self._began, WINDOW_SECONDS)
        rate = sum(work.amount for work in self._recent) / max(elapsed, 1e-6)
        shown = {f"{self._unit}_per_second": rate, **summary, **self._values}
        if self._writer is None:
            return
        try:
            for name, value in shown.items():
                self._writer.add_scalar(f"{self._stage}/{name}", value, self._done)
            self._writer.flush()
        except DiffplanError:
            self._writer = None

    def _upload(self) -> None:
        with contextlib.suppress(DiffplanError, OSError):  # a missing curve is no reason to fail
            self._files.upload(self._files.measure())


@contextlib.contextmanager
def meter_work(store: Store, stage: str, unit: str, usage: UsageRecorder, initial: int = 0) -> Iterator[WorkMeter]:
    """Measure the actors of a stage for as long as the context lasts.

    Args:
        store: output of the stage.
        stage: its name.
        unit: name of a unit of work.
        usage: record of the attempt, which shows the throughput.
        initial: units of work done before.
    """
    meter = WorkMeter(store, stage, unit, usage, initial)
    try:
        yield meter
    finally:
        meter.finish()

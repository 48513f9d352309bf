"""Resource usage and progress of the stages of a run: one small record for each attempt.

```
<out of a stage>/usage/<attempt>.json
```

An attempt is one call of a stage: the first, or one with `--resume`. The process that drives the stage replaces the
record every few seconds, so it can be read at any time, from anywhere. The record of a killed process is no longer
refreshed; this distinguishes an interrupted stage from a running one. Each attempt writes only its own record, so any
number of coordinators may work at the same time.
"""

from __future__ import annotations

import contextlib
import json
import platform
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

from diffplan.config.codec import read_shape
from diffplan.errors import DataError, DiffplanError, show_value
from diffplan.files import parse_json
from diffplan.storage.opening import open_store
from diffplan.storage.store import Store

DIRECTORY = "usage"
BEAT_SECONDS = 5.0
"""How often a record is refreshed."""
STALE_SECONDS = 30.0
"""Time without a refresh after which an attempt counts as dead: several beats, and clocks may differ by seconds."""
LARGEST = 1e15
"""Numbers in records are smaller than this: seconds since 1970 and units of work are."""
RATE_SECONDS = 60.0
"""The rate is that of the last minute."""

Outcome = Literal["running", "done", "interrupted", "failed"]


@dataclass(frozen=True)
class Usage:
    """The record of an attempt.

    Attributes:
        attempt: its name; names sort by start time.
        stage: `collect`, `train`, `calibrate`, `tune`, `evaluate` or `report`.
        outcome: how it ended, or `running` until it has.
        host: machine of the driving process.
        began: seconds since 1970.
        beat: when the record was written last, seconds since 1970.
        seconds: from the beginning to the last beat.
        cpu_seconds: CPUs held times the duration, busy or not.
        gpu_seconds: likewise of GPUs.
        cpus: CPUs held at the last beat.
        gpus: GPUs held at the last beat.
        initial: units of work that were done before it.
        done: units of work that were done at the last beat, those before it included.
        total: units of work of the whole stage.
        unit: name of a unit of work, such as `steps`.
        rate: units of work per second over the last minute; None before there is any.
        error: one line, of an attempt that failed.
        values: further numbers that the stage shows, such as the steps per second of its actors.
    """

    attempt: str
    stage: str
    outcome: Outcome
    host: str
    began: float
    beat: float
    seconds: float
    cpu_seconds: float
    gpu_seconds: float
    cpus: float
    gpus: float
    initial: int
    done: int
    total: int
    unit: str
    rate: float | None = None
    error: str | None = None
    values: dict[str, float] | None = None

    def is_running(self, now: float) -> bool:
        """Whether it was running at a time, in seconds since 1970, according to its record."""
        return self.outcome == "running" and now - self.beat <= STALE_SECONDS

    def to_json(self) -> bytes:
        """The record as it lies on disk."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes, path: str) -> Usage:
        """Read a record that lies at a path; raises `DataError` if it is damaged."""
        try:
            values = parse_json(content)
            if not isinstance(values, dict):
                raise ValueError(f"expected an object, got {show_value(values)}")
            known = {field.name for field in fields(cls)}
            usage = read_shape(cls, {name: value for name, value in values.items() if name in known})
            numbers = {name: value for name, value in asdict(usage).items() if isinstance(value, int | float)}
            for name, number in [*numbers.items(), *(usage.values or {}).items()]:
                if not abs(number) <= LARGEST:
                    raise ValueError(f"{name}: expected a number up to {LARGEST:g}, got {show_value(number)}")
        except ValueError as error:
            raise DataError(
                f"{path}: expected the record of an attempt, got something else ({error}); delete it: only the cost of "
                "that attempt is lost"
            ) from None
        return usage


class UsageRecorder:
    """Keeps the record of an attempt fresh; see `record_usage`."""

    def __init__(self, store: Store, usage: Usage) -> None:
        self._store, self._usage = store, usage
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._since = self._counted_until = time.monotonic()
        self._samples = deque([(self._since, usage.done)])
        self._thread = threading.Thread(target=self._beat, daemon=True, name="usage")

    def count(self, done: int) -> None:
        """Note how many units of work are done, those before this attempt included."""
        with self._lock:
            self._usage = replace(self._usage, done=done)

    def hold(self, cpus: float, gpus: float = 0.0) -> None:
        """Note how many CPUs and GPUs are held from now on."""
        with self._lock:
            self._measure()
            self._usage = replace(self._usage, cpus=cpus, gpus=gpus)

    def show(self, **values: float) -> None:
        """Note numbers to be shown beside the progress."""
        with self._lock:
            self._usage = replace(self._usage, values=values)

    def start(self) -> None:
        """Write the record, and keep it fresh from now on."""
        self._write("running", None)
        self._thread.start()

    def stop(self, outcome: Outcome, error: str | None = None) -> None:
        """Write the record for the last time."""
        self._stop.set()
        self._thread.join()
        self._write(outcome, error)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            self._write("running", None)

    def _measure(self) -> None:
        """Add what was held since the last time."""
        now, usage = time.monotonic(), self._usage
        elapsed, self._counted_until = now - self._counted_until, now
        self._usage = replace(
            usage,
            beat=time.time(),
            seconds=now - self._since,
            cpu_seconds=usage.cpu_seconds + usage.cpus * elapsed,
            gpu_seconds=usage.gpu_seconds + usage.gpus * elapsed,
        )

    def _measure_rate(self) -> float | None:
        """Units per second since a minute ago."""
        now, samples = time.monotonic(), self._samples
        samples.append((now, self._usage.done))
        while len(samples) > 2 and now - samples[1][0] >= RATE_SECONDS:
            samples.popleft()
        since, before = samples[0]
        elapsed = now - since
        return (self._usage.done - before) / elapsed if elapsed > 0 and self._usage.done > before else None

    def _write(self, outcome: Outcome, error: str | None) -> None:
        with self._lock:
            self._measure()
            self._usage = replace(self._usage, rate=self._measure_rate(), outcome=outcome, error=error)
            content = self._usage.to_json()
        with contextlib.suppress(DiffplanError, OSError):  # a missing record is no reason to fail
            self._store.replace(f"{DIRECTORY}/{self._usage.attempt}.json", content)


@contextlib.contextmanager
def record_usage(
    where: str | Path | Store,
    stage: str,
    *,
    cpus: float,
    gpus: float = 0.0,
    total: int = 1,
    unit: str = "stages",
    initial: int = 0,
) -> Iterator[UsageRecorder]:
    """Keep the record of an attempt for as long as the context lasts; an exception in it becomes the outcome.

    Failing to write the record is no error: if the store does not work, the stage itself will fail there.

    Args:
        where: output of the stage.
        stage: its name.
        cpus: CPUs that it holds.
        gpus: GPUs that it holds.
        total: units of work of the whole stage.
        unit: name of a unit of work.
        initial: units of work done before.
    """
    now = time.time()
    usage = Usage(
        attempt=f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now))}-{uuid.uuid4().hex[:8]}",
        stage=stage,
        outcome="running",
        host=platform.node(),
        began=now,
        beat=now,
        seconds=0.0,
        cpu_seconds=0.0,
        gpu_seconds=0.0,
        cpus=cpus,
        gpus=gpus,
        initial=initial,
        done=initial,
        total=total,
        unit=unit,
    )
    recorder = UsageRecorder(open_store(where), usage)
    recorder.start()
    try:
        yield recorder
    except (KeyboardInterrupt, SystemExit):
        recorder.stop("interrupted")
        raise
    except BaseException as error:
        recorder.stop("failed", _one_line(error))
        raise
    recorder.stop("done")


def read_usage(where: str | Path | Store) -> list[Usage]:
    """The records of all attempts at an output, by start time; empty if nothing was recorded.

    Raises:
        DataError: a record is damaged.
        StoreError: the store cannot be reached.
    """
    store = open_store(where)
    found = []
    for stored in store.list(DIRECTORY):
        name = stored.name.rpartition("/")[2]
        if name.endswith(".json") and not name.startswith("."):
            with contextlib.suppress(FileNotFoundError):  # swept meanwhile
                found.append(Usage.from_json(store.read(stored.name), store.locate(stored.name)))
    return sorted(found, key=lambda usage: usage.attempt)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if isinstance(error, DiffplanError) and lines:
        return " ".join(lines)
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__

"""Status of a stage of a run, from its output and the records of its attempts.

Each stage has a module `stage` that reads its output (`StageReader`); `diffplan.cli.run_status` uses all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from diffplan.errors import DataError
from diffplan.files import parse_json
from diffplan.runs.records import check
from diffplan.runs.usage import Usage, read_usage
from diffplan.storage.store import Store

State = Literal["done", "running", "interrupted", "failed", "not begun"]


@dataclass(frozen=True)
class StageStatus:
    """Status of a stage of a run.

    Attributes:
        stage: its name, such as `evaluate multi2d`.
        where: path or URL of its output.
        state: its state; `interrupted` if it neither ended nor shows signs of life.
        done: units of work that need not be repeated; None if not known.
        total: units of work of the whole stage; None if not known.
        unit: name of a unit of work.
        rate: units of work per second, of a stage that is running.
        seconds_left: at that rate.
        seconds: wall time of all attempts.
        cpu_hours: CPUs held times the duration, over all attempts; None if nothing was recorded.
        gpu_hours: likewise of GPUs.
        attempts: calls of the stage that were recorded.
        silent_seconds: since the last sign of life, of a stage that is running.
        error: error of its last attempt, if that failed.
        values: further numbers of a stage that is running.
    """

    stage: str
    where: str
    state: State
    done: int | None
    total: int | None
    unit: str
    rate: float | None = None
    seconds_left: float | None = None
    seconds: float | None = None
    cpu_hours: float | None = None
    gpu_hours: float | None = None
    attempts: int = 0
    silent_seconds: float | None = None
    error: str | None = None
    values: dict[str, float] | None = None


@dataclass(frozen=True)
class StageOutput:
    """Progress of a stage as seen from its output alone.

    Attributes:
        stage: its name.
        unit: name of a unit of work.
        is_begun: whether there is any output.
        is_whole: whether the output is complete.
        done: units of work that are done; None if not known.
        total: units of work of the whole stage; None if not known.
    """

    stage: str
    unit: str
    is_begun: bool = False
    is_whole: bool = False
    done: int | None = None
    total: int | None = None


@dataclass(frozen=True)
class StageReader:
    """Recognises and reads the output of a stage.

    Attributes:
        stage: name of the stage.
        recognizes: whether a directory with these files and directories is the output of such a stage.
        read: reads the progress from that output.
    """

    stage: str
    recognizes: Callable[[set[str], set[str]], bool]
    read: Callable[[Store], StageOutput]


def judge_stage(store: Store, output: StageOutput, now: float | None = None) -> StageStatus:
    """The status of a stage, from its output and the records of its attempts.

    Args:
        store: store of the output.
        output: progress as seen from the output.
        now: time that signs of life are compared with, in seconds since 1970; None for the present.
    """
    now = time.time() if now is None else now
    attempts = read_usage(store)
    last = attempts[-1] if attempts else None
    running = next((usage for usage in reversed(attempts) if usage.is_running(now)), None)
    is_whole = output.is_whole and (last is None or last.outcome == "done" or _reaches(output.done, last.total))
    state: State
    if is_whole and (running is None or _reaches(output.done, running.total)):  # one that was killed may seem to run
        state, running = "done", None
    elif running is not None:
        state = "running"
    elif last is None:
        state = "interrupted" if output.is_begun else "not begun"
    else:
        state = "failed" if last.outcome == "failed" else "interrupted"
    total = last.total if last is not None and not is_whole else output.total
    done = output.done
    if done is None and last is not None:
        done = last.done
    if running is not None:
        done = max(done or 0, running.done)
    rate = running.rate if running is not None else None
    return StageStatus(
        stage=output.stage,
        where=store.uri,
        state=state,
        done=0 if state == "not begun" else done,
        total=total,
        unit=output.unit,
        rate=rate,
        seconds_left=(total - done) / rate if rate and total is not None and done is not None else None,
        seconds=sum(usage.seconds for usage in attempts) if attempts else None,
        cpu_hours=_hours(attempts, "cpu_seconds"),
        gpu_hours=_hours(attempts, "gpu_seconds"),
        attempts=len(attempts),
        silent_seconds=None if running is None else max(now - running.beat, 0.0),
        error=last.error if state == "failed" and last is not None else None,
        values=running.values if running is not None else None,
    )


def _reaches(done: int | None, total: int) -> bool:
    return done is not None and done >= total


def _hours(attempts: list[Usage], name: str) -> float | None:
    return sum(getattr(usage, name) for usage in attempts) / 3_600 if attempts else None


def has_file(store: Store, name: str) -> bool:
    """Whether there is a file in a store."""
    directory = name.rpartition("/")[0]
    return any(stored.name == name for stored in store.list(directory))


def read_json_object(store: Store, name: str, shape: Any = None) -> dict[str, Any]:
    """A JSON object, of a shape of `diffplan.runs.records` if one is given; empty if there is no such file."""
    try:
        content = store.read(name)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except IsADirectoryError:
        raise DataError(f"{store.locate(name)}: expected a file, got a directory; run its stage again") from None
    try:
        values = parse_json(content)
    except ValueError as error:
        raise DataError(
            f"{store.locate(name)}: expected JSON, got something else ({error}); run its stage again"
        ) from None
    if not isinstance(values, dict):
        raise DataError(f"{store.locate(name)}: expected a JSON object, got another value; run its stage again")
    return values if shape is None else check(shape, values, store.locate(name))


def to_record(where: str, stages: list[StageStatus]) -> dict[str, Any]:
    """A status as JSON values."""
    return {
        "run": where,
        "stages": [asdict(stage) for stage in stages],
        "cpu_hours": sum(stage.cpu_hours or 0.0 for stage in stages),
        "gpu_hours": sum(stage.gpu_hours or 0.0 for stage in stages),
    }

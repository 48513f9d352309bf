"""Run units of work on actors until all are done, even if actors die.

If an actor dies, another one runs its unit again, so running a unit must be safe to repeat. Units are given only to
actors that have started, so that no unit is blamed for an actor that died before.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from diffplan.cluster.runtime import WAITING_SECONDS, describe_free, may_grow
from diffplan.errors import ClusterError, DiffplanError

MAX_ATTEMPTS = 5
"""Actors that may die while running a unit before the unit counts as the cause.

A unit that kills its actors kills all of them; by chance k actors in a row die with the k-th power of a small
probability. If one attempt in ten is lost, as on spot machines, a limit of 3 would blame one unit in a thousand, and
large collections have thousands.
"""
MAX_FAILED_STARTS = 12
"""Actors that may die before they can work, with no unit done in the meantime, before the run fails."""
START_TIMEOUT_SECONDS = 300
"""Time without an answer after which actors are assumed never to start."""
GROWTH_TIMEOUT_SECONDS = 1800
"""The same in a cluster that adds nodes on demand: a new one may have to fetch an image first."""


def run_units(
    units: Iterable[Any],
    spawn: Callable[[], Any],
    num_actors: int,
    on_done: Callable[[Any, Any], None],
    on_busy: Callable[[str, Any, float], None] = lambda actor, unit, seconds: None,
) -> None:
    """Run `actor.run.remote(unit)` for each unit.

    Args:
        units: the units, hashable, taken one by one as actors become free; None for "ask again when one is done".
        spawn: makes an actor with a method `run(unit)`.
        num_actors: actors to keep busy.
        on_done: called with each unit and its result, in the order of completion.
        on_busy: called just after it with the id of the actor, the unit, and the seconds that the actor took.

    Raises:
        DiffplanError: raised by a unit, if the user can fix it.
        ClusterError: actors kept dying on one unit or before any, or never started.
    """
    fresh = iter(units)
    waiting: deque[Any] = deque()
    attempts: dict[Any, int] = {}
    starting: dict[Any, Any] = {}
    idle: list[Any] = []
    running: dict[Any, tuple[Any, Any, float]] = {}
    silent_seconds = failed_starts = 0
    try:
        while True:
            while idle or len(running) + len(starting) < num_actors:
                if len(waiting) <= (0 if idle else len(starting)):  # the others wait for actors that start
                    if (unit := next(fresh, None)) is None:
                        break
                    waiting.append(unit)
                if idle:
                    actor, unit = idle.pop(), waiting.popleft()
                    attempts[unit] = attempts.get(unit, 0) + 1
                    running[actor.run.remote(unit)] = (actor, unit, time.monotonic())
                else:
                    actor = spawn()
                    starting[actor.__ray_ready__.remote()] = actor
            if not running and not waiting:
                return
            ready = _wait([*running, *starting])
            # A unit may take as long as it likes: Ray says if its actor dies.
            silent_seconds = 0 if ready or running else silent_seconds + 1
            if silent_seconds >= WAITING_SECONDS and silent_seconds % WAITING_SECONDS == 0:
                sys.stderr.write(f"waiting for room for workers ({len(starting)}); free: {describe_free(('CPU',))}\n")
            if silent_seconds >= START_TIMEOUT_SECONDS and silent_seconds >= _find_patience():
                raise ClusterError(
                    f"actors: none could start for {silent_seconds} s; free: {describe_free(('CPU', 'GPU'))}; ask for "
                    "fewer workers or a larger cluster"
                )
            for reference in ready:
                if (actor := starting.pop(reference, None)) is not None:
                    try:
                        ray.get(reference)
                    except RayActorError as error:
                        failed_starts += 1
                        if failed_starts >= MAX_FAILED_STARTS:
                            raise ClusterError(
                                f"actors: {failed_starts} died before they could work; the last said: "
                                f"{_last_line(error)}"
                            ) from error
                    else:
                        idle.append(actor)
                    continue
                actor, unit, since = running.pop(reference)
                try:
                    result = ray.get(reference)
                except RayActorError as error:
                    if attempts[unit] >= MAX_ATTEMPTS:
                        raise ClusterError(
                            f"unit {unit}: {MAX_ATTEMPTS} actors died over it; the last said: {_last_line(error)}"
                        ) from error
                    waiting.append(unit)
                    continue
                except RayTaskError as error:
                    raise unwrap(error) from None
                failed_starts = 0
                idle.append(actor)
                on_done(unit, result)
                on_busy(actor._actor_id.hex(), unit, time.monotonic() - since)
    finally:
        for actor in [*idle, *starting.values(), *(actor for actor, *_ in running.values())]:
            ray.kill(actor)


def _wait(references: list[Any]) -> list[Any]:
    """All that are ready, as soon as one is; none after a second.

    A check of all references takes time in proportion to their number; with thousands of actors, one check per unit
    would be most of the driver's work. The busier the driver, the more references are ready at each check.
    """
    ready, _ = ray.wait(references, num_returns=1, timeout=1)
    if ready and len(references) > 1:
        ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
    return ready


def unwrap(error: BaseException) -> BaseException:
    """The user's error inside an error of Ray, or the error itself."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, DiffplanError) and not isinstance(seen, RayTaskError):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return error


def _find_patience() -> int:
    """Seconds to wait for actors to start."""
    return GROWTH_TIMEOUT_SECONDS if may_grow() else START_TIMEOUT_SECONDS


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__

"""Make things ahead of their use in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
DEPTH = 4
_END = StopIteration()


class Prefetcher(Generic[T]):
    """Iterates over `make(key)` for each key, made by a thread a few ahead of what is asked for.

    A thread and not a process: gathering releases the interpreter, and nothing needs to be copied between processes.

    Args:
        make: makes one item; what it raises is raised where the item would have come.
        keys: what to call it with, in order.
        depth: items that may wait.
    """

    def __init__(self, make: Callable[[int], T], keys: Iterable[int], depth: int = DEPTH) -> None:
        self._queue: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(make, keys), daemon=True, name="prefetch")
        self._thread.start()

    def _run(self, make: Callable[[int], T], keys: Iterable[int]) -> None:
        try:
            for key in keys:
                if not self._put((make(key), None)):
                    return
            self._put((None, _END))
        except BaseException as error:
            self._put((None, error))

    def _put(self, item: tuple[T | None, BaseException | None]) -> bool:
        """Queue an item unless the consumer has gone."""
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[T]:
        while True:
            item, error = self._queue.get()
            if error is _END:
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]  # an item is there where no error is

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=30)

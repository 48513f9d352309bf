"""Make things ahead of their use in a thread."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
DEPTH = 16


class Prefetcher(Generic[T]):
    """Iterates over `make(key)` for each key, made by a thread a few ahead of what is asked for.

    A thread and not a process: gathering releases the interpreter, and nothing needs to be copied between processes.
    It makes several in a row once half of what may wait is gone: one at a time, what `make` runs would have left the
    processor's caches each time, and a batch of a small network would take it several times as long.

    Args:
        make: makes one item; what it raises is raised where the item would have come.
        keys: what to call it with, in order.
        depth: items that may wait.
    """

    def __init__(self, make: Callable[[int], T], keys: Iterable[int], depth: int = DEPTH) -> None:
        self._items: collections.deque[T] = collections.deque()
        self._depth = depth
        self._error: BaseException | None = None
        self._ended = self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, args=(make, keys), daemon=True, name="prefetch")
        self._thread.start()

    def _run(self, make: Callable[[int], T], keys: Iterable[int]) -> None:
        try:
            for key in keys:
                if not self._wait_for_room():
                    return
                item = make(key)
                with self._changed:
                    self._items.append(item)
                    self._changed.notify()
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()

    def _wait_for_room(self) -> bool:
        """Wait, if no more may wait, until half of them are gone; False if the consumer has gone."""
        with self._changed:
            if len(self._items) >= self._depth:
                self._changed.wait_for(lambda: self._stopped or len(self._items) <= self._depth // 2)
            return not self._stopped

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._ended)
                if not self._items:
                    break
                item = self._items.popleft()
                if len(self._items) == self._depth // 2:
                    self._changed.notify()
            yield item
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join(timeout=30)

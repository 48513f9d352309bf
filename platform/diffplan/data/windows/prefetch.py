"""Make items ahead of their use in a thread."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
DEPTH = 16


class Prefetcher(Generic[T]):
    """Iterates over `make(key)` for each key; a thread makes a few items ahead.

    A thread suffices because gathering releases the interpreter lock, and it avoids copies between processes. It makes
    several items in a row when the queue is half empty: with one item at a time, the code and data of `make` would be
    evicted from the processor's caches, and a batch for a small network would take several times as long.

    Args:
        make: makes one item; its exceptions are raised in place of the item.
        keys: arguments of `make`, in order.
        depth: maximum number of waiting items.
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
        """If the queue is full, wait until it is half empty; False if the consumer has ended."""
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

"""Ctrl-C while a command starts: it is answered at once, and the process ends soon, whatever it is busy with.

Python tells the main thread of a Ctrl-C only between two of its own instructions. An import of a large library, or a
call that waits for other processes, may keep it from that for a minute, or swallow the exception.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

END_SECONDS = 8.0
"""Time for an interrupted start to end by itself."""
EXIT_CODE = 130


class _Watch:
    """A thread that hears Ctrl-C even while the main thread does not."""

    def __init__(self) -> None:
        self._ours, self._signals = socket.socketpair()
        self._signals.setblocking(False)  # as `set_wakeup_fd` requires
        self._before = signal.set_wakeup_fd(self._signals.fileno(), warn_on_full_buffer=False)
        self.is_heard = self.is_over = False
        threading.Thread(target=self._listen, daemon=True, name="interrupts").start()

    def close(self) -> None:
        """Listen no longer; the thread ends."""
        if signal.set_wakeup_fd(-1) == self._signals.fileno():
            signal.set_wakeup_fd(self._before)
        self._signals.close()

    def _listen(self) -> None:
        while numbers := self._ours.recv(64):
            if signal.SIGINT in numbers and not self.is_heard:
                self.is_heard = True
                sys.stderr.write("interrupted: ending\n")
                threading.Thread(target=self._end, daemon=True, name="interrupts-end").start()
        self._ours.close()

    def _end(self) -> None:
        """End the process as soon as its main thread has ended, or is late; not if it goes on after the command.

        What libraries do when a process ends may take long, or fail, where they have started in part.
        """
        deadline = time.monotonic() + END_SECONDS
        while threading.main_thread().is_alive():
            if time.monotonic() > deadline:
                if self.is_over:
                    return
                break
            time.sleep(0.1)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(EXIT_CODE)  # processes of Ray end with their parent


_watch: _Watch | None = None


@contextlib.contextmanager
def watch_start() -> Iterator[None]:
    """Answer Ctrl-C at once, until `end_start` is called or the context ends. Only the main thread can."""
    global _watch
    if _watch is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _watch = watch = _Watch()
    try:
        yield
    finally:
        watch.is_over = True
        end_start()


def end_start() -> None:
    """The command has started: from now on it handles Ctrl-C by itself.

    Raises:
        KeyboardInterrupt: there was one that a library swallowed.
    """
    global _watch
    watch, _watch = _watch, None
    if watch is not None:
        watch.close()
        if watch.is_heard and not watch.is_over:
            raise KeyboardInterrupt


def is_heard() -> bool:
    """Whether the command is to end because of Ctrl-C in its start."""
    return _watch is not None and _watch.is_heard

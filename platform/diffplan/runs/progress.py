"""Progress lines: the work done, the rate and the time left."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from tqdm import tqdm


class Progress:
    """A progress line on standard error; a new line every ten seconds if that is not a terminal.

    Args:
        label: name of the work.
        total: units of work.
        unit: name of a unit.
        initial: units done before, by a run that is resumed.
        on_advance: called with the count of units done at each change.
    """

    def __init__(
        self, label: str, total: int, unit: str, initial: int = 0, on_advance: Callable[[int], None] | None = None
    ) -> None:
        self._on_advance = on_advance
        terminal = sys.stderr.isatty()
        line = "{desc}: {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
        self._bar: tqdm[Any] = tqdm(
            desc=f"{label:<9}",
            total=total,
            unit=f" {unit}",
            unit_scale=total >= 10_000,
            initial=initial,
            mininterval=0.2 if terminal else 10.0,
            bar_format=line if terminal else line + "\n",
            ascii=None if terminal else " #",
            dynamic_ncols=terminal,
        )

    def advance(self, num_done: int, **values: object) -> None:
        """Add work done, and show values beside it."""
        if values:
            self._bar.set_postfix(
                {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in values.items()}, refresh=False
            )
        self._bar.update(num_done)
        if self._on_advance is not None:
            self._on_advance(int(self._bar.n))

    def move_to(self, done: int, **values: object) -> None:
        """Set the count of work done; never backwards."""
        self.advance(max(done - int(self._bar.n), 0), **values)

    def note(self, line: str) -> None:
        """Print a line beside the progress."""
        self._bar.write(line, file=sys.stderr)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


@contextlib.contextmanager
def follow(label: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A function to report work with: units done and their total; its line begins at the first report."""
    with contextlib.ExitStack() as stack:
        lines: list[Progress] = []

        def report(done: int, total: int) -> None:
            if not lines:  # not earlier: if the work fails at once, its error would follow an empty line
                lines.append(stack.enter_context(Progress(label, total, unit)))
            lines[0].move_to(done)

        yield report

"""Output of commands."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterable, Iterator


def show(text: str) -> None:
    """Print a text and a newline to the standard output; characters that it cannot encode become `?`."""
    write(text + "\n")


def write(text: str) -> None:
    """Print a text that has its own newlines."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def show_blocks(*blocks: Iterable[str]) -> None:
    """Print blocks of lines with an empty line between them; an empty block is left out."""
    show("\n\n".join("\n".join(lines) for block in blocks if (lines := list(block))))


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Show each warning as one line, without its location in the source."""

    def show_line(message: Warning | str, category: type[Warning], *place: object, **more: object) -> None:
        sys.stderr.write(f"warning: {message}\n")

    with warnings.catch_warnings():
        warnings.showwarning = show_line
        yield

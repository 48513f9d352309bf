"""What commands print."""

from __future__ import annotations

import sys
from collections.abc import Iterable


def show(text: str) -> None:
    """Print a text and the end of its line to the standard output; what it cannot encode becomes `?`."""
    write(text + "\n")


def write(text: str) -> None:
    """Print a text that has its own ends of lines."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def show_blocks(*blocks: Iterable[str]) -> None:
    """Print blocks of lines with an empty line between them; an empty block is left out."""
    show("\n\n".join("\n".join(lines) for block in blocks if (lines := list(block))))

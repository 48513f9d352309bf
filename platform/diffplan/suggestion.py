"""One way to say that a name is unknown."""

import difflib
from collections.abc import Iterable


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """A line that names the unknown `name`, the nearest known one and the choices."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{kind}: expected one of {', '.join(choices)}; got {name!r}.{hint}"

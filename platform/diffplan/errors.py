"""The exceptions for errors that the user can fix.

They are raised only for input from outside (command line, files, environments), and say in one line what was expected,
what was found and what to do. The command line prints that line and exits with code 2, as it does for a disk that
refuses; every other exception is a defect and keeps its traceback. All take a single string, so that they survive
pickling through Ray.
"""

import difflib
from collections.abc import Iterable

MAX_SHOWN = 200
"""Characters of a value in a message."""


class DiffplanError(Exception):
    """Any error that the user can fix."""


class ConfigError(DiffplanError):
    """A setting is unknown, of the wrong type or out of range.

    Not a `ValueError`, because the libraries that build configs (pydantic, tyro) would wrap it in their own reports.
    """


class DataError(DiffplanError, ValueError):
    """A dataset is missing, damaged or of the wrong kind."""


class StoreError(DiffplanError):
    """A store cannot be reached, or refuses.

    Not a `DataError`: the data may be fine, so they must not be treated as damaged or missing.
    """


class CheckpointError(DiffplanError, ValueError):
    """A checkpoint is missing, damaged or of the wrong kind."""


class PlanningError(DiffplanError, ValueError):
    """The requested plan cannot be made."""


class ClusterError(DiffplanError):
    """The cluster cannot run the request, or workers kept failing."""


class Terminated(KeyboardInterrupt):
    """The process was told to end (SIGTERM), for example because its job is stopped or its machine is removed.

    It is handled like Ctrl-C: finished work is kept.
    """


def describe_error(error: BaseException) -> str:
    """Type and first line of an error, for a message of one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def show_value(value: object) -> str:
    """A value that was found, short enough for a message of one line."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of thousands of digits; lists within lists without end
        return f"one that cannot be shown ({type(value).__name__})"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def describe_refusal(error: OSError) -> str | None:
    """A line about a disk or directory that refuses; None for other errors of the system, such as lost connections."""
    if error.errno is None or isinstance(error, ConnectionError | TimeoutError | ChildProcessError):
        return None
    where = "a file" if error.filename is None else error.filename
    return (
        f"{where}: expected a file or directory that can be used, got {(error.strerror or str(error)).lower()}; make "
        "room, mend the path or the permissions, or name another one"
    )


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """A line that names the unknown `name`, the nearest known one and the choices."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{kind}: expected one of {', '.join(choices)}; got {name!r}.{hint}"

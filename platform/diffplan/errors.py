"""The exceptions a user can meet.

Each is raised only where something comes in from outside (command line, files, environments) and says in one line what
was expected, what was got and what to do. The command line prints that line and exits with code 2; every other
exception is a defect and keeps its traceback. All take a single string, so that they survive pickling through Ray.
"""

import difflib
from collections.abc import Iterable


class DiffplanError(Exception):
    """Any error that the user can cure."""


class ConfigError(DiffplanError):
    """A setting is unknown, of the wrong type or out of range.

    Not a `ValueError`: the libraries that build configs (pydantic, tyro) would wrap that in reports of their own.
    """


class DataError(DiffplanError, ValueError):
    """A dataset is missing, damaged or of the wrong kind."""


class StoreError(DiffplanError):
    """A store cannot be reached, or refuses.

    Not a `DataError`: nothing follows from it for the data, so nothing may be taken for damaged or missing by it.
    """


class CheckpointError(DiffplanError, ValueError):
    """A checkpoint is missing, damaged or of the wrong kind."""


class PlanningError(DiffplanError, ValueError):
    """A plan was asked for that cannot be made."""


class ClusterError(DiffplanError):
    """The cluster cannot do what was asked, or workers kept failing."""


class Terminated(KeyboardInterrupt):
    """The process was told to end (SIGTERM), as when its job is stopped or its machine is taken away.

    It is met like Ctrl-C: what is done is kept.
    """


def describe_error(error: BaseException) -> str:
    """Type and first line of an error, to be told in a message of one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """A line that names the unknown `name`, the nearest known one and the choices."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{kind}: expected one of {', '.join(choices)}; got {name!r}.{hint}"

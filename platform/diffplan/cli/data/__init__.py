"""`diffplan data …`: look at datasets, check and maintain them, and import and export other formats."""

from __future__ import annotations

import dataclasses
from typing import Any

from diffplan.cli.command import Call, Command, Group
from diffplan.cli.data.keeping import COMPACT, MERGE, SWEEP, VERIFY
from diffplan.cli.data.looking import HEAD, INFO, STATS
from diffplan.cli.data.transfer import EXPORT, IMPORT
from diffplan.errors import DataError


def _explain_paths(command: Command[Any]) -> Command[Any]:
    """A command that reports unreadable or unwritable paths as a one-line error."""

    def run(call: Call[Any]) -> int | None:
        try:
            return command.run(call)
        except BrokenPipeError:
            raise
        except OSError as error:
            where = error.filename or call.name
            raise DataError(
                f"{where}: {(error.strerror or str(error)).lower()}; check the path, its permissions and the disk"
            ) from None

    return dataclasses.replace(command, run=run)


ACTIONS = {
    "info": INFO,
    "stats": STATS,
    "head": HEAD,
    "verify": VERIFY,
    "import": IMPORT,
    "export": EXPORT,
    "compact": COMPACT,
    "sweep": SWEEP,
    "merge": MERGE,
}
COMMAND = Group(
    "Look at datasets, check them, import and export them.",
    {name: _explain_paths(command) for name, command in ACTIONS.items()},
)

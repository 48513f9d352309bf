"""The environment variables that Ray reads, checked before it is imported.

Ray reads many variables when it is imported, and a wrong value may end the process on the spot, without an exception.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

from diffplan.errors import ConfigError

PROBE_SECONDS = 60
"""Time for the import of Ray in a process of its own."""
_HARMLESS = re.compile(
    r"RAY_(ADDRESS|API_SERVER_ADDRESS|AUTH_MODE|AUTH_TOKEN|AUTH_TOKEN_PATH|TMPDIR|USAGE_STATS_ENABLED|AIR_NEW_OUTPUT|"
    r"TRAIN_[A-Z_]+)$"
)
"""Variables that are not parsed by the import: Ray's start checks them, or Ray Train does."""
FROM_OUTSIDE = tuple(sorted(name for name in os.environ if name.startswith("RAY_")))
"""The variables for Ray that were set before we, or Ray itself, set others."""


def check_variables() -> None:
    """Import Ray in another process if variables are set that the import may fail for.

    Raises:
        ConfigError: the import fails; the message names the variables.
    """
    if "ray" in sys.modules:  # a worker, or a caller that has imported it already
        return
    names = [name for name in FROM_OUTSIDE if not _HARMLESS.match(name)]
    if not names:
        return
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import ray"], capture_output=True, text=True, check=False, timeout=PROBE_SECONDS
        )
    except subprocess.TimeoutExpired:  # a busy machine; the import itself will tell
        return
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        got = f"exit code {done.returncode}" if done.returncode > 0 else f"signal {-done.returncode}"
        reason = lines[-1][:200] if lines else got
        raise ConfigError(
            f"{', '.join(names)}: expected values that Ray can read, but its import fails ({reason}); mend or unset "
            f"{'one of them' if len(names) > 1 else 'it'}"
        )

"""What processes on other machines need to open the stores that this process opens."""

from __future__ import annotations

import os

STORE_VARIABLES = ("AWS_", "FSSPEC_", "GCSFS_", "GOOGLE_", "STORAGE_EMULATOR_HOST")
"""What the names of environment variables begin with that tell where stores are and who may use them."""


def find_variables() -> dict[str, str]:
    """Environment variables of this process that stores need, for processes on other machines.

    They are handed over as arguments rather than by Ray's `runtime_env`, which shows secrets in logs and dashboard.
    """
    return {name: value for name, value in os.environ.items() if name.startswith(STORE_VARIABLES)}


def adopt_variables(variables: dict[str, str]) -> None:
    """Set the variables of `find_variables` in this process, before it opens a store."""
    import fsspec.config

    os.environ.update(variables)
    fsspec.config.set_conf_env(fsspec.config.conf)  # read when fsspec is imported, which may have been before

"""Environment variables that processes on other machines need to open the same stores as this process."""

from __future__ import annotations

import os

STORE_VARIABLES = ("AWS_", "FSSPEC_", "GCSFS_", "GOOGLE_", "STORAGE_EMULATOR_HOST")
"""Prefixes of the environment variables with endpoints and credentials of stores."""


def find_variables() -> dict[str, str]:
    """Environment variables of this process that stores need, for processes on other machines.

    They are passed as arguments and not in Ray's `runtime_env`, which logs and dashboard would show.
    """
    return {name: value for name, value in os.environ.items() if name.startswith(STORE_VARIABLES)}


def adopt_variables(variables: dict[str, str]) -> None:
    """Set the variables of `find_variables` in this process, before it opens a store."""
    import fsspec.config

    os.environ.update(variables)
    fsspec.config.set_conf_env(fsspec.config.conf)  # fsspec read them when it was imported, perhaps before this

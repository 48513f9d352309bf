"""Objects by import path, such as `my_package.tasks:PUSHING`."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from diffplan.errors import ConfigError, describe_error


def is_import_path(text: str) -> bool:
    """Whether a text has the form `module:name`, both sides being Python names."""
    module, colon, name = text.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), *name.split(".")))


def load_object(path: str, what: str) -> Any:
    """The object that an import path names.

    Modules are searched as by `python -m`: in the working directory first, then among the installed packages.

    Args:
        path: `module:name`.
        what: the setting that it is for, such as `collection.behavior`, for messages.

    Raises:
        ConfigError: no such module, an error in it, or no such name in it.
    """
    if not is_import_path(path):
        raise ConfigError(f"{what}: expected an import path such as my_package.module:name, got {path!r}")
    module_name, _, name = path.partition(":")
    look_in_working_directory()
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ConfigError(f"{what}: {path}: importing {module_name} failed: {describe_error(error)}") from error
        raise ConfigError(
            f"{what}: expected a module that can be imported, got {module_name!r}; install its package, or run the "
            "command in the directory that it lies in"
        ) from None
    except (Exception, SystemExit) as error:  # whatever a module of the user raises
        raise ConfigError(f"{what}: {path}: importing {module_name} failed: {describe_error(error)}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{what}: expected {name!r} in {module_name}, got a module without it")
        found = getattr(found, part)
    return found


def look_in_working_directory() -> None:
    """Let modules of the working directory be imported, here and in the processes that this one starts."""
    if "" in sys.path:  # as in an interactive session: Python searches there already
        _add_to_environment(os.getcwd())
    else:
        look_in_directory(os.getcwd())


def look_in_directory(directory: str | Path) -> None:
    """Let modules of a directory be imported, before others of their names, here and in processes that this starts."""
    path = os.path.abspath(directory)
    if path not in sys.path:
        sys.path.insert(0, path)
    _add_to_environment(path)


def _add_to_environment(directory: str) -> None:
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if directory not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([*paths, directory])

"""`diffplan new`: a package for the user's own environment, as a copy of the example `pushing`.

The example in `docs/examples` is the only copy in the repository; the wheel carries it as `diffplan/template`.
"""

from __future__ import annotations

import keyword
import sys
from importlib.util import find_spec
from pathlib import Path

from diffplan.errors import ConfigError
from diffplan.tasks.registry import list_tasks

EXAMPLE = "pushing"
"""Name of the example; it is replaced by the name of the new package in paths and texts."""
_LEFT_OUT = ("__pycache__", ".pytest_cache", ".ruff_cache", "dist", "build", "runs")


def make_package(name: str, directory: str | Path | None = None) -> Path:
    """Write a package with an environment and its task. It works unchanged; users adapt it.

    Args:
        name: of the package, its task and the namespace of its environment: a Python name in lower case.
        directory: new directory, which must not exist; None for one of that name in the working directory.

    Returns:
        The directory.

    Raises:
        ConfigError: the name is not valid for a package, or is taken; the directory exists or cannot be made.
    """
    _check_name(name)
    target = Path(name if directory is None else directory)
    if target.exists() or target.is_symlink():
        raise ConfigError(f"{target}: expected a directory that does not exist yet; give another name or --out DIR")
    template = find_template()
    try:
        for source in sorted(template.rglob("*")):
            parts = source.relative_to(template).parts
            if not source.is_file() or any(part in _LEFT_OUT or part.endswith(".egg-info") for part in parts):
                continue
            place = target.joinpath(*(_rename(part, name) for part in parts))
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(_rename(source.read_text(encoding="utf-8"), name), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{target}: expected a directory that can be made, got {error}") from None
    return target


def find_template() -> Path:
    """The directory of the example: in the wheel, or in `docs` of a checkout."""
    package = Path(__file__).parents[1]
    for place in (package / "template", package.parents[1] / "docs" / "examples" / EXAMPLE):
        if place.is_dir():
            return place
    raise ConfigError("new: expected the example package in this installation, got none; install diffplan again")


def _check_name(name: str) -> None:
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower() or name.startswith("_"):
        raise ConfigError(f"new: expected a Python name in lower case such as my_robot, got {name!r}")
    if name in list_tasks():
        raise ConfigError(f"new: expected the name of a new task, got {name!r}, which there is")
    if name in sys.builtin_module_names or find_spec(name) is not None:
        raise ConfigError(f"new: expected a name that no module has, got {name!r}, which Python can import already")


def _rename(text: str, name: str) -> str:
    title = "".join(part.capitalize() for part in name.split("_"))
    renamed = text.replace(EXAMPLE, name).replace(EXAMPLE.capitalize(), title)
    return renamed.replace(EXAMPLE.upper(), name.upper())

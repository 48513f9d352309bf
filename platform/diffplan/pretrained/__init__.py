"""Planners that come with the package: `pretrained:maze2d-large` stands wherever a checkpoint is expected.

Each is a checkpoint without its training state, with weights of half precision, the companions that were fitted to it,
and the settings that a search found in its config. `jobs/table1.py` makes them.
"""

from __future__ import annotations

from pathlib import Path

from diffplan.errors import CheckpointError
from diffplan.suggestion import unknown_name

PREFIX = "pretrained:"
_ROOT = Path(__file__).parent


def list_pretrained() -> list[str]:
    """Names of the planners that come with the package."""
    return sorted(path.parent.name for path in _ROOT.glob("*/config.json"))


def find_pretrained(name: str) -> Path:
    """Directory of a planner that comes with the package.

    Args:
        name: such as `maze2d-large`, without the prefix.

    Raises:
        CheckpointError: none of that name; suggests the nearest.
    """
    if name not in list_pretrained():
        raise CheckpointError(unknown_name("pretrained planner", name, list_pretrained()))
    return _ROOT / name

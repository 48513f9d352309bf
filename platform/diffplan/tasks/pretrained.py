"""Planners that come with tasks: `pretrained:NAME` can be given wherever a checkpoint is expected.

Each is a checkpoint without training state, with weights in half precision, its companions, and a config with the
planner settings that a search found.
"""

from __future__ import annotations

from pathlib import Path

from diffplan.errors import CheckpointError, unknown_name
from diffplan.tasks.registry import load_tasks

PREFIX = "pretrained:"


def _find_all() -> dict[str, Path]:
    roots = [task.pretrained for task in load_tasks().values() if task.pretrained is not None]
    return {path.parent.name: path.parent for root in roots for path in sorted(root.glob("*/config.json"))}


def list_pretrained() -> list[str]:
    """Names of the planners that come with the installed tasks."""
    return sorted(_find_all())


def find_pretrained(name: str) -> Path:
    """Directory of a planner that comes with a task.

    Args:
        name: without the prefix.

    Raises:
        CheckpointError: none of that name; the message suggests the nearest.
    """
    found = _find_all()
    if name not in found:
        raise CheckpointError(unknown_name("pretrained planner", name, found))
    return found[name]

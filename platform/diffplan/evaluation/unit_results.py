"""Results of an evaluation while it runs, unit by unit, so that an interrupted one goes on where it was.

A unit is a file that is there as a whole or not at all; `evaluation.json` beside them says what is being evaluated, and
results of something else are never mixed in.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffplan.errors import ConfigError
from diffplan.evaluation.scores import EpisodeResult

UNITS, DESCRIPTION = "units", "evaluation.json"


class UnitResults:
    """Results of units in the directory of an evaluation.

    Args:
        out: the directory.
        description: what is evaluated, as JSON values.
        resume: go on with the units that are there.

    Raises:
        ConfigError: to resume, and what is there was begun with something else.
    """

    def __init__(self, out: Path, description: dict[str, Any], *, resume: bool) -> None:
        self._directory = out / UNITS
        description = json.loads(json.dumps(description))
        path = self._directory / DESCRIPTION
        if self._directory.exists() and resume:
            begun = json.loads(path.read_text()) if path.exists() else None
            if begun is not None and begun != description:
                different = sorted(k for k in {*begun, *description} if begun.get(k) != description.get(k))
                raise ConfigError(
                    f"{out}: the evaluation there was begun with another {', '.join(different)}; resume it with the "
                    "same, or take another --out"
                )
        elif self._directory.exists():
            shutil.rmtree(self._directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        _write(path, json.dumps(description, indent=2) + "\n")

    def read(self) -> dict[int, list[EpisodeResult]]:
        """Results of the units that are done."""
        return {
            int(path.stem): [EpisodeResult(**row) for row in json.loads(path.read_text())]
            for path in self._directory.glob("[0-9]*.json")
        }

    def write(self, unit: int, results: list[EpisodeResult]) -> None:
        """Keep the results of a unit."""
        _write(self._directory / f"{unit}.json", json.dumps([asdict(result) for result in results]) + "\n")

    def remove(self) -> None:
        """Forget the units, once everything is in the summary."""
        shutil.rmtree(self._directory)


def _write(path: Path, text: str) -> None:
    temporary = path.parent / f".tmp-{uuid.uuid4().hex}"
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)

"""Results of an evaluation while it runs, unit by unit, so that an interrupted one can be resumed.

A unit is a file that is written completely or not at all. `evaluation.json` beside them describes the evaluation, so
that results of another one are never mixed in.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffplan.config.codec import read_shape
from diffplan.errors import ConfigError, DataError
from diffplan.evaluation.scores import EpisodeResult
from diffplan.files import parse_json
from diffplan.storage.opening import open_store
from diffplan.storage.store import LocalStore, Store

UNITS, DESCRIPTION = "units", "evaluation.json"


class UnitResults:
    """Results of units in the output of an evaluation.

    Args:
        out: its directory or URL.
        description: description of the evaluation, as JSON values.
        resume: keep the units that are there.

    Raises:
        ConfigError: `resume` is set, and the results there are of another evaluation.
    """

    def __init__(self, out: str | Path | Store, description: dict[str, Any], *, resume: bool) -> None:
        self._store = open_store(out)
        description = json.loads(json.dumps(description))
        if resume:
            begun = self._read_description()
            if begun is not None and begun != description:
                different = sorted(k for k in {*begun, *description} if begun.get(k) != description.get(k))
                raise ConfigError(
                    f"{self._store.uri}: the evaluation there was begun with another {', '.join(different)}; resume it "
                    "with the same, or take another --out"
                )
        else:
            self.remove()
        self._store.replace(f"{UNITS}/{DESCRIPTION}", (json.dumps(description, indent=2) + "\n").encode())

    def _read_description(self) -> dict[str, Any] | None:
        name = f"{UNITS}/{DESCRIPTION}"
        try:
            return read_shape(dict[str, Any], parse_json(self._store.read(name)))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DataError(
                f"{self._store.locate(name)}: expected the description of an evaluation, got something else ({error}); "
                "evaluate without --resume"
            ) from None

    def read(self) -> dict[int, list[EpisodeResult]]:
        """Results of the units that are done."""
        names = [stored.name for stored in self._store.list(UNITS)]
        units = {name: name.rpartition("/")[2].removesuffix(".json") for name in names}
        return {int(unit): self._read_unit(name) for name, unit in units.items() if re.fullmatch("[0-9]{1,18}", unit)}

    def _read_unit(self, name: str) -> list[EpisodeResult]:
        try:
            return read_shape(list[EpisodeResult], parse_json(self._store.read(name)))
        except ValueError as error:
            raise DataError(
                f"{self._store.locate(name)}: expected results of episodes, got something else ({error}); delete it, "
                "and go on with --resume"
            ) from None

    def write(self, unit: int, results: list[EpisodeResult]) -> None:
        """Keep the results of a unit."""
        content = json.dumps([asdict(result) for result in results]) + "\n"
        self._store.replace(f"{UNITS}/{unit}.json", content.encode())

    def remove(self) -> None:
        """Delete the units, once everything is in the summary."""
        for stored in self._store.list(UNITS):
            self._store.delete(stored.name)
        if isinstance(self._store, LocalStore):
            shutil.rmtree(self._store.root / UNITS, ignore_errors=True)

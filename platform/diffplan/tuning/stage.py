"""Progress of a search."""

from __future__ import annotations

from diffplan.runs.layout import BEST
from diffplan.runs.records import Best
from diffplan.runs.stages import StageOutput, StageReader, read_json_object
from diffplan.storage.store import Store
from diffplan.tuning.journal import FILE_NAME


def read_search(store: Store) -> StageOutput:
    """The progress of a search, from its directory."""
    best = read_json_object(store, BEST, Best)
    number = best.get("num_trials")
    return StageOutput("tune", "trials", is_begun=True, is_whole=bool(best), done=number, total=number)


SEARCH = StageReader("tune", lambda files, directories: bool(files & {BEST, FILE_NAME}), read_search)

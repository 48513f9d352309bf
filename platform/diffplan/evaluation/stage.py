"""Progress of an evaluation."""

from __future__ import annotations

from diffplan.behaviors.offline_policy import DESCRIPTION as POLICY
from diffplan.evaluation.unit_results import DESCRIPTION, UNITS
from diffplan.runs.layout import SUMMARY
from diffplan.runs.records import Summary, UnitsDescription
from diffplan.runs.stages import StageOutput, StageReader, has_file, read_json_object
from diffplan.storage.store import Store


def read_evaluation(store: Store) -> StageOutput:
    """The progress of an evaluation, from its directory."""
    summary = read_json_object(store, SUMMARY, Summary)
    if summary:
        number = summary.get("episodes")
        return StageOutput("evaluate", "episodes", True, True, number, number)
    description = read_json_object(store, f"{UNITS}/{DESCRIPTION}", UnitsDescription)
    episodes, unit = description.get("episodes"), description.get("episodes_per_unit")
    results = sum(stored.name.rpartition("/")[2][0].isdigit() for stored in store.list(UNITS))
    done = min(results * unit, episodes) if episodes and unit else None
    return StageOutput("evaluate", "episodes", is_begun=True, done=done, total=episodes)


def read_offline_policy(store: Store) -> StageOutput | None:
    """The progress of a policy of RLlib, which is there completely or not at all; None for another directory."""
    if not has_file(store, POLICY):
        return None
    return StageOutput("train", "policies", is_begun=True, is_whole=True, done=1, total=1)


EVALUATION = StageReader(
    "evaluate", lambda files, directories: SUMMARY in files or UNITS in directories, read_evaluation
)

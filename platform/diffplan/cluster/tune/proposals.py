"""Connects Ray Tune with the journal of a search, which proposes settings and records results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from diffplan.cluster.tune.trials import IS_FULL
from diffplan.runs.progress import Progress
from diffplan.tuning.journal import SearchJournal

_DEATHS = ("ActorDiedError", "ActorUnavailableError", "RayActorError", "WorkerCrashedError", "NodeDiedError")
"""Ray's name for the error of a lost process or machine, where it shows the type of an error."""
_DEATH = "The actor "
"""Its beginning where Ray shows only the message; an error of the trial itself begins with the name of a function."""
METRICS = ("objective", "score_mean", "success_rate", "plan_seconds", "episodes", "training_steps")


class JournalSearcher(Searcher):
    """Proposes settings from the journal.

    Ray's own `OptunaSearch` is not used: it proposes its first points again after each restart, forgets running trials,
    and counts trials that were stopped early as full ones. Every line of the journal is written to disk at once, so
    Tune has nothing to save.

    Args:
        journal: of the search.
        metric: what Tune's scheduler compares trials by.
        mode: `min` or `max`.
    """

    def __init__(self, journal: SearchJournal, metric: str, mode: str) -> None:
        super().__init__(metric=metric, mode=mode)
        self._journal: SearchJournal | None = journal

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Settings for a new trial."""
        return self._open.propose(trial_id)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Record the report of a block."""
        self._open.report(trial_id, result["training_iteration"], _pick(result))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record the end of a trial."""
        known = result is not None and not error and "objective" in result
        metrics = _pick(result) if known and result is not None else None
        self._open.finish(trial_id, metrics, metrics is not None and bool(result and result[IS_FULL]))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: see above."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see above."""

    @property
    def _open(self) -> SearchJournal:
        assert self._journal is not None, "a copy of a searcher has no journal"
        return self._journal

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_journal": None}


class SearchProgress(tune.Callback):
    """Counts finished trials on a progress line, and records in the journal why trials failed.

    Args:
        journal: of the search.
        num_trials: of the whole search.
        metric: metric of the best trial that is shown.
        mode: `min` or `max`.
        on_advance: called with the number of trials that are over.
    """

    def __init__(
        self, journal: SearchJournal, num_trials: int, metric: str, mode: str, on_advance: Callable[[int], None]
    ) -> None:
        self._on_advance: Callable[[int], None] | None = on_advance
        self._journal: SearchJournal | None = journal
        self._num_done, self._num_trials = journal.num_finished, num_trials
        self._metric, self._choose = metric, min if mode == "min" else max
        self._bar: Progress | None = None
        self._best: float | None = None

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Count a trial."""
        self._count(trial.last_result.get(self._metric))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Count a trial that failed, and keep the last line of its error, unless it says that the process died."""
        # The file is still on the driver; `trial.get_error` searches the place that it is copied to later.
        path = Path(trial.error_file) if trial.error_file else None
        lines = path.read_text().strip().splitlines() if path is not None and path.exists() else []
        died = any(line.startswith(_DEATH) or any(name in line for name in _DEATHS) for line in lines)
        if self._journal is not None and lines and not died:
            self._journal.explain_failure(trial.trial_id, lines[-1])
        self._count(None)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Close the line."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None

    def _count(self, value: float | None) -> None:
        if self._bar is None:
            self._bar = Progress(
                "tune", self._num_trials, "trials", initial=self._num_done, on_advance=self._on_advance
            )
        if value is not None:
            self._best = value if self._best is None else self._choose(self._best, value)
        self._bar.advance(1, **({} if self._best is None else {"best": float(self._best)}))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bar": None, "_journal": None, "_on_advance": None}


def _pick(result: dict[str, Any]) -> dict[str, Any]:
    return {name: result[name] for name in METRICS if name in result}

"""The file of a search: an Optuna study in a journal, from which a killed search is resumed.

Every proposal and every result is a line that is on the disk before the search goes on. Finished trials are never run
again; trials that were running when the search died, and failed trials, are proposed once more.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from diffplan.config.study import Study
from diffplan.errors import ConfigError, describe_error
from diffplan.seeding import Stream, make_seed
from diffplan.tuning.metrics import LESS_IS_BETTER

FILE_NAME = "study.journal"
STUDY_NAME = "diffplan"
PROCESS_DIED = "its process died"
"""Error of a trial that failed without reporting one."""
_LOCK = ".search.lock"
_DAMAGED = (ValueError, LookupError, TypeError, AttributeError, RecursionError, AssertionError)
"""What Optuna raises for the lines of a damaged file: it takes their fields as they are."""
_BEGUN, _ERRORS, _METRICS, _REPEATS = "begun", "errors", "metrics", "repeats"


@dataclass(frozen=True)
class TrialRecord:
    """A trial of a search.

    Attributes:
        number: its number, in the order of proposals.
        params: the settings of the trial, by dotted names of the config.
        metrics: its last report (`diffplan.tuning.metrics`); None for a failed trial.
        is_full: whether it ran to its end; otherwise it was stopped early, or failed.
        error: the cause of a failure.
    """

    number: int
    params: dict[str, Any]
    metrics: dict[str, Any] | None
    is_full: bool
    error: str | None = None


@contextlib.contextmanager
def hold_search(directory: Path) -> Iterator[None]:
    """Lock the directory of a search for this process; the system releases the lock when the process ends.

    Raises:
        ConfigError: another process searches there; two writers would damage the journal. Or a file of the search is a
            symbolic link, through which nothing is written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name in (FILE_NAME, _LOCK):
        if (directory / name).is_symlink():
            raise ConfigError(
                f"{directory / name}: expected the file of a search, got a symbolic link; put the file itself there"
            )
    with (directory / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{directory}: another search is at work there; wait until it is done, or take another --out"
            ) from None
        yield


class SearchJournal:
    """A search and its journal.

    Args:
        directory: directory of the search.
        study: the study.
        space: the search space.
        begun: arguments of the search, as JSON values; a search is resumed only with equal arguments.
        own: the experiment's own settings, which are tried first.
        seed: seed of the proposals.
        on_finish: called after a finished trial is written to the file.

    Raises:
        ConfigError: the file belongs to a search with other arguments, or is damaged.
    """

    def __init__(
        self,
        directory: Path,
        study: Study,
        space: dict[str, BaseDistribution],
        *,
        begun: dict[str, Any],
        own: dict[str, Any],
        seed: int,
        on_finish: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_finish = on_finish
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        self._is_pareto = study.is_pareto
        self._objectives = study.objectives
        self._running: dict[str, optuna.Trial] = {}
        self._numbers: dict[str, int] = {}
        path = directory / FILE_NAME
        exists = path.exists()
        if exists:
            _drop_torn_line(path)
        try:
            storage = JournalStorage(JournalFileBackend(str(path)))
            self._study = optuna.create_study(
                storage=storage,
                study_name=STUDY_NAME,
                directions=["minimize" if LESS_IS_BETTER[metric] else "maximize" for metric in study.objectives],
                load_if_exists=True,
            )
        except _DAMAGED as error:
            raise ConfigError(
                f"{path}: expected the file of a search, got a damaged one ({describe_error(error)}); take another "
                "--out"
            ) from None
        known = self._study.user_attrs.get(_BEGUN)
        if known is not None and known != begun:
            changed = [name for name in begun if begun[name] != known.get(name)]
            raise ConfigError(
                f"{directory}: the search was begun with another {' and '.join(changed) or 'version'}; "
                "resume with the same, or take another --out"
            )
        if known is None:
            self._study.set_user_attr(_BEGUN, begun)
        if not self._all():
            self._study.enqueue_trial(own)
        # A resumed search needs another seed: with the same one, the sampler would repeat its first proposals.
        num_before = sum(trial.state != TrialState.WAITING for trial in self._all())
        self._study.sampler = optuna.samplers.TPESampler(
            seed=seed if num_before == 0 else make_seed(seed, Stream.TUNING, num_before) % 2**32
        )
        self._propose_again()

    @property
    def num_finished(self) -> int:
        """Trials that ran to their end or were stopped early."""
        return sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in self._all())

    @property
    def num_lost(self) -> int:
        """Trials whose processes died, and which have not been tried again."""
        return sum(trial.error == PROCESS_DIED for trial in self.read_trials())

    def propose(self, name: str) -> dict[str, Any]:
        """Settings to try, by dotted names of the config; results are reported under the same trial name."""
        self._running[name] = trial = self._study.ask(fixed_distributions=self._space)
        self._numbers[name] = trial.number
        return dict(trial.params)

    def report(self, name: str, step: int, metrics: dict[str, Any]) -> None:
        """Record the intermediate metrics of a trial, after `step` blocks."""
        trial = self._running[name]
        trial.set_user_attr(_METRICS, metrics)
        if not self._is_pareto:  # Optuna supports intermediate values for one objective only
            trial.report(metrics[self._objectives[0]], step)

    def finish(self, name: str, metrics: dict[str, Any] | None, is_full: bool) -> None:
        """Record that a trial is over.

        Args:
            name: name of the trial.
            metrics: its last report; None if it failed.
            is_full: whether it ran to its end.
        """
        trial = self._running.pop(name)
        if metrics is not None:
            trial.set_user_attr(_METRICS, metrics)
        if metrics is None:
            self._study.tell(trial, state=TrialState.FAIL)
        elif is_full:
            self._study.tell(trial, [metrics[objective] for objective in self._objectives])
        else:
            self._study.tell(trial, state=TrialState.PRUNED)
        self._on_finish()

    def explain_failure(self, name: str, error: str) -> None:
        """Record why a trial failed."""
        self._study.set_user_attr(_ERRORS, {**self._errors(), str(self._numbers[name]): error})

    def read_trials(self) -> list[TrialRecord]:
        """Every trial that is over, in order; one that failed and was tried again counts once."""
        errors, records = self._errors(), []
        repeated = {trial.user_attrs.get(_REPEATS) for trial in self._all()}
        for trial in self._all():
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
                metrics, is_full = trial.user_attrs[_METRICS], trial.state == TrialState.COMPLETE
                records.append(TrialRecord(trial.number, trial.params, metrics, is_full))
            elif trial.state == TrialState.FAIL and trial.number not in repeated:
                error = errors.get(str(trial.number), PROCESS_DIED)
                records.append(TrialRecord(trial.number, trial.params, None, False, error))
        return records

    def _all(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _errors(self) -> dict[str, str]:
        return self._study.user_attrs.get(_ERRORS, {})

    def _propose_again(self) -> None:
        """Queue the trials that were running when the search ended, and those that failed."""
        repeated = {trial.user_attrs.get(_REPEATS) for trial in self._all()}
        for trial in self._all():
            if trial.state == TrialState.RUNNING:
                self._study.tell(trial.number, state=TrialState.FAIL)
            elif trial.state != TrialState.FAIL:
                continue
            if trial.number not in repeated:
                self._study.enqueue_trial(trial.params, user_attrs={_REPEATS: trial.number})


def read_begun(directory: Path) -> dict[str, Any]:
    """The arguments of the search in a directory; empty if there is none."""
    path = directory / FILE_NAME
    if not path.exists():
        return {}
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        return optuna.load_study(study_name=STUDY_NAME, storage=storage).user_attrs.get(_BEGUN, {})
    except _DAMAGED:
        return {}  # damaged, or truncated at its very beginning: opening the search reports it


def _drop_torn_line(path: Path) -> None:
    """Remove an incomplete last line."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end != len(content):
        with path.open("r+b") as file:
            file.truncate(end)

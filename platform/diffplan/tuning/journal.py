"""The file that a search is kept in: an Optuna study in a journal, which a search that was killed goes on from.

Every proposal and every result is a line that is on the disk before the search goes on. What was finished is never run
again; what was running when the search died, and what failed, is proposed once more.
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
from diffplan.errors import ConfigError
from diffplan.seeding import Stream, make_seed
from diffplan.tuning.metrics import LESS_IS_BETTER

FILE_NAME = "study.journal"
STUDY_NAME = "diffplan"
PROCESS_DIED = "its process died"
"""Why a trial failed that could not say it."""
_LOCK = ".search.lock"
_BEGUN, _ERRORS, _METRICS, _REPEATS = "begun", "errors", "metrics", "repeats"


@dataclass(frozen=True)
class TrialRecord:
    """A trial of a search.

    Attributes:
        number: in the order of proposals.
        params: the settings that were tried, by dotted names of the config.
        metrics: its last report (`diffplan.tuning.metrics`); None of a trial that failed.
        is_full: whether it ran to its end; otherwise it was stopped early, or failed.
        error: why it failed.
    """

    number: int
    params: dict[str, Any]
    metrics: dict[str, Any] | None
    is_full: bool
    error: str | None = None


@contextlib.contextmanager
def hold_search(directory: Path) -> Iterator[None]:
    """Keep the directory of a search to this process; the system lets go of it when the process ends, however it ends.

    Raises:
        ConfigError: another process searches there; both writing to one journal would damage it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{directory}: another search is at work there; wait until it is done, or take another --out"
            ) from None
        yield


class SearchJournal:
    """A search in its file.

    Args:
        directory: of the search.
        study: what is searched for.
        space: what is varied.
        begun: what the search was begun with, as JSON values; a search goes on only with the same.
        own: the experiment's own settings, which are tried first.
        seed: of the proposals.
        on_finish: called when a trial that is over is in the file.

    Raises:
        ConfigError: the file there is of a search that was begun with something else, or is damaged.
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
        except (ValueError, KeyError) as error:
            raise ConfigError(f"{path}: expected the file of a search, got a damaged one ({error})") from None
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
        # A sampler begins with what its seed says: with the same seed again it would propose the same again.
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
        """Settings to try, by dotted names of the config; what becomes of them is told under the same name."""
        self._running[name] = trial = self._study.ask(fixed_distributions=self._space)
        self._numbers[name] = trial.number
        return dict(trial.params)

    def report(self, name: str, step: int, metrics: dict[str, Any]) -> None:
        """Note what a trial has come to so far, after `step` blocks."""
        trial = self._running[name]
        trial.set_user_attr(_METRICS, metrics)
        if not self._is_pareto:  # Optuna knows intermediate values of one objective only
            trial.report(metrics[self._objectives[0]], step)

    def finish(self, name: str, metrics: dict[str, Any] | None, is_full: bool) -> None:
        """Note that a trial is over.

        Args:
            name: of the trial.
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
        """Note why a trial failed."""
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
        """Queue what was running or failed when the search came to its end before."""
        repeated = {trial.user_attrs.get(_REPEATS) for trial in self._all()}
        for trial in self._all():
            if trial.state == TrialState.RUNNING:
                self._study.tell(trial.number, state=TrialState.FAIL)
            elif trial.state != TrialState.FAIL:
                continue
            if trial.number not in repeated:
                self._study.enqueue_trial(trial.params, user_attrs={_REPEATS: trial.number})


def read_begun(directory: Path) -> dict[str, Any]:
    """What the search in a directory was begun with; empty where there is none."""
    path = directory / FILE_NAME
    if not path.exists():
        return {}
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        return optuna.load_study(study_name=STUDY_NAME, storage=storage).user_attrs.get(_BEGUN, {})
    except (ValueError, KeyError):
        return {}  # damaged, or cut off at its very beginning: opening it tells


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line that was not written to its end."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end != len(content):
        with path.open("r+b") as file:
            file.truncate(end)

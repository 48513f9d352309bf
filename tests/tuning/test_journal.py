"""The file of a search: what was finished is never proposed again, what was cut off is."""

import subprocess
import sys
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from diffplan.config.study import Among, Between, Study
from diffplan.errors import ConfigError
from diffplan.tuning.importance import compute_importances
from diffplan.tuning.journal import FILE_NAME, SearchJournal, TrialRecord, hold_search, read_begun

VARY = {
    "planning.guidance.scale": Between(low=0.0, high=10.0),
    "planning.selection.num_candidates": Among(among=(1, 2, 4)),
}
STUDY = Study(vary=VARY)
PARETO = Study(vary=VARY, objectives=("score_mean", "plan_seconds"))
SPACE = {
    "planning.guidance.scale": FloatDistribution(0.0, 10.0),
    "planning.selection.num_candidates": CategoricalDistribution((1, 2, 4)),
}
OWN = {"planning.guidance.scale": 1.0, "planning.selection.num_candidates": 2}


def open_journal(directory: Path, study: Study = STUDY, **changes: object) -> SearchJournal:
    return SearchJournal(directory, study, SPACE, begun={"protocols": ["maze2d"], **changes}, own=OWN, seed=0)


def metrics_of(params: dict, episodes: int = 8) -> dict:
    score = 150 - (params["planning.guidance.scale"] - 3) ** 2
    seconds = 0.01 * params["planning.selection.num_candidates"]
    return {"objective": score, "score_mean": score, "plan_seconds": seconds, "episodes": episodes}


def run_trial(journal: SearchJournal, name: str) -> dict:
    params = journal.propose(name)
    journal.report(name, 1, metrics_of(params, 4))
    journal.finish(name, metrics_of(params), is_full=True)
    return params


@pytest.mark.parametrize("study", [STUDY, PARETO])
def test_own_settings_come_first_and_results_are_kept(study: Study, tmp_path: Path) -> None:
    journal = open_journal(tmp_path, study)
    assert run_trial(journal, "a") == OWN
    other = run_trial(journal, "b")
    assert journal.num_finished == 2
    again = open_journal(tmp_path, study)
    assert again.read_trials() == [
        TrialRecord(0, OWN, metrics_of(OWN), True),
        TrialRecord(1, other, metrics_of(other), True),
    ]


def test_what_was_running_is_proposed_again_and_what_was_finished_is_not(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    finished = [run_trial(journal, str(i)) for i in range(3)]
    cut_off = [journal.propose("x"), journal.propose("y")]
    journal.report("x", 1, metrics_of(cut_off[0], 4))
    del journal
    for _ in range(2):  # a second interruption before anything ran changes nothing
        journal = open_journal(tmp_path)
        assert journal.num_finished == 3
    assert [journal.propose("x"), journal.propose("y")] == cut_off
    new = journal.propose("z")
    assert new not in [*finished, *cut_off]


def test_resumed_searches_do_not_begin_with_the_same_random_numbers(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    first = [run_trial(journal, str(i)) for i in range(4)]
    second = [run_trial(open_journal(tmp_path), "a") for _ in range(4)]
    drawn = [params["planning.guidance.scale"] for params in [*first, *second]]
    assert len(set(drawn)) == len(drawn)


def test_trials_that_were_stopped_early_count_and_failed_ones_are_tried_again(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    stopped = journal.propose("a")
    journal.report("a", 1, metrics_of(stopped, 4))
    journal.finish("a", metrics_of(stopped, 4), is_full=False)
    failed = journal.propose("b")
    journal.finish("b", None, is_full=False)
    journal.explain_failure("b", "ValueError: it broke")
    expected = [
        TrialRecord(0, stopped, metrics_of(stopped, 4), False),
        TrialRecord(1, failed, None, False, "ValueError: it broke"),
    ]
    assert journal.read_trials() == expected
    assert journal.num_finished == 1
    again = open_journal(tmp_path)
    assert run_trial(again, "c") == failed
    assert again.read_trials() == [expected[0], TrialRecord(2, failed, metrics_of(failed), True)]


def test_what_a_search_was_begun_with_can_be_read(tmp_path: Path) -> None:
    assert read_begun(tmp_path) == {}
    open_journal(tmp_path, snapshot=3)
    assert read_begun(tmp_path) == {"protocols": ["maze2d"], "snapshot": 3}
    (tmp_path / FILE_NAME).write_text("")
    assert read_begun(tmp_path) == {}


def test_a_search_goes_on_only_with_what_it_was_begun_with(tmp_path: Path) -> None:
    open_journal(tmp_path)
    with pytest.raises(ConfigError, match="another protocols"):
        open_journal(tmp_path, protocols=["multi2d"])


def test_a_process_that_dies_in_the_middle_of_a_line_costs_only_that_line(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]);"
        "from test_journal import open_journal, run_trial;"
        "journal = open_journal(Path(sys.argv[1])); [run_trial(journal, str(i)) for i in range(3)];"
        "journal.propose('x'); os._exit(9)"
    )
    died = subprocess.run([sys.executable, "-c", code, tmp_path, Path(__file__).parent], check=False)
    assert died.returncode == 9
    path = tmp_path / FILE_NAME
    path.write_bytes(path.read_bytes()[:-7])
    for _ in range(2):
        journal = open_journal(tmp_path)
        assert journal.num_finished == 3
        run_trial(journal, "a")
        assert [trial.is_full for trial in journal.read_trials()] == [True] * 4
        path.write_bytes(path.read_bytes()[:-7])  # what tells of the last result: it is run again


def test_damaged_files_are_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("not a line of a journal\nnor this\n")
    with pytest.raises(ConfigError, match=r"study\.journal"):
        open_journal(tmp_path)


def test_importance_finds_the_setting_that_matters() -> None:
    """The objective depends on one setting alone; time on the other."""
    trials = []
    for i in range(40):
        params = {"planning.guidance.scale": (i * 0.37) % 1 * 10, "planning.selection.num_candidates": (1, 2, 4)[i % 3]}
        trials.append(TrialRecord(i, params, metrics_of(params), is_full=i % 2 == 0))
    for metric, name in (
        ("objective", "planning.guidance.scale"),
        ("plan_seconds", "planning.selection.num_candidates"),
    ):
        shares = compute_importances(trials, SPACE, metric)
        assert sum(shares.values()) == pytest.approx(1.0)
        assert next(iter(shares)) == name
        assert shares[name] > 0.8
    assert compute_importances(trials[:3], SPACE, "objective") == {}


def test_only_one_process_searches_in_a_directory(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from diffplan.tuning.journal import hold_search\n"
    code += "with hold_search(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match="another search is at work there"), hold_search(tmp_path):
        pass
    other.kill()
    other.wait()
    with hold_search(tmp_path):
        pass

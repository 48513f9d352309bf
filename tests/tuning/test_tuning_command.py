"""`diffplan tune` as a user meets it, without Ray."""

import subprocess
import sys
from pathlib import Path

import pytest

from diffplan.cli import main
from diffplan.cli.parsing import parse
from diffplan.cli.study_tables import SECONDS_PER_EPISODE, estimate_trial_seconds
from diffplan.cli.tune import COMMAND, _size
from diffplan.config import SearchConfig
from diffplan.tasks.registry import DEFAULT_TASK, find_task, list_tasks
from diffplan.tuning.studies import STUDIES, list_studies


def test_the_list_names_every_study_of_every_task_with_what_it_varies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--list"]) == 0
    text = capsys.readouterr().out
    for name in list_tasks():
        task = find_task(name)
        if not task.studies and name != DEFAULT_TASK:
            continue
        title = "every other task" if name == DEFAULT_TASK else f"task {name} ("
        (start,) = [number for number, line in enumerate(text.splitlines()) if line.startswith(title)]
        lines = text.splitlines()[start + 1 :]
        assert lines[0].split() == ["study", "kind", "objectives", "trials", "varies", "time"]
        studies = list_studies(task)
        rows = {line.split()[0]: line.split() for line in lines[1 : len(studies) + 1]}
        assert list(rows) == list(studies)
        for study_name, study in studies.items():
            assert rows[study_name][1] == study.kind
            assert study.description in text
            assert all(field in text for field in study.vary)
    assert all(len(line) <= 120 for line in text.splitlines())


def test_a_training_trial_costs_its_training_and_every_block_of_episodes_anew() -> None:
    search = SearchConfig(protocols=("maze2d",), episodes_per_block=10, num_blocks=3)
    planner = estimate_trial_seconds(STUDIES["planner"], search, 400.0)
    assert planner == pytest.approx(30 * SECONDS_PER_EPISODE)
    every = estimate_trial_seconds(STUDIES["planner"], SearchConfig(episodes_per_block=10, num_blocks=3), 400.0, 2)
    assert every == pytest.approx(2 * planner)  # on both protocols
    assert estimate_trial_seconds(STUDIES["training"], search, 400.0) == pytest.approx(100 + 2 * planner)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--list", "x"], ["--list", "nothing beside it", "got x"]),
        (["no/such", "--out", "x", "--study", "optimiser"], ["study", "Did you mean 'optimizer'"]),
        (["pretrained:maze2d-umaze", "--out", "x", "--study", "parteo"], ["study", "Did you mean 'pareto'"]),
        (["no/such", "--out", "x", "--num_trials", "0"], ["search.num_trials: expected at least 1, got 0"]),
        (
            ["no/such", "--out", "x", "--search.num_trials", "x"],
            ["search.num_trials: expected a whole number, got 'x'"],
        ),
        (["no/such", "--out", "x", "--search.objectve", "return"], ["did you mean --search.objective?"]),
        (
            ["pretrained:maze2d-umaze", "--out", "x", "--search.objective", "retrun"],
            ["expected one of", "Did you mean 'return'"],
        ),
        (["no/such", "--out", "x", "--study", "own.json"], ["own.json", "expected a study"]),
        (["no/such", "--out", "x", "--study", "training"], ["training", "--preset"]),
        (["no/such", "--out", "x", "--study", "training", "--preset", "maze2d-umase"], ["did you mean 'maze2d-umaze'"]),
        (["no/such", "--out", "x", "--study", "training", "--preset", "maze2d-umaze"], ["no/such", "diffplan collect"]),
        (
            ["d", "--out", "x", "--study", "training", "--preset", "maze2d-umaze", "--num_training_steps", "0"],
            ["num_training_steps", "got 0"],
        ),
        (["no/such", "--out", "x", "--preset", "maze2d-umaze"], ["--preset", "kind planner"]),
        (["no/such", "--out", "x", "--cost_weight", "-1"], ["cost_weight", "got -1.0"]),
        (["no/such", "--out", "x"], ["no/such", "diffplan train"]),
    ],
    ids=lambda value: "-".join(map(str, value))[:60],
)
def test_bad_input_is_one_clear_line_and_code_2(
    arguments: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["tune", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert not list(tmp_path.iterdir())


def test_options_of_the_search_have_a_short_name_too() -> None:
    words = ["c", "--out", "x", "--search.objective", "return", "--num_trials", "3", "--protocols", "a", "b"]
    call = parse(COMMAND, "tune", words)
    assert _size(call, SearchConfig(num_blocks=7)) == SearchConfig(
        objective="return", num_trials=3, protocols=("a", "b"), num_blocks=7
    )


def test_studies_are_looked_at_without_ray_and_without_torch() -> None:
    code = (
        "import sys, diffplan.tuning.studies;"
        "heavy = {'torch', 'ray', 'optuna', 'matplotlib'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr

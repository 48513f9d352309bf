import contextlib
import dataclasses
import json
import operator
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from diffplan.cli import main
from diffplan.cluster.collect.coordinator import collect
from diffplan.cluster.tune.search import tune_planner, tune_training
from diffplan.config import Config, config_from_dict, with_overrides
from diffplan.config.study import Among, Between, Study
from diffplan.errors import ConfigError, DataError
from diffplan.planning.settings import load_settings
from diffplan.tasks.registry import find_task
from diffplan.tuning.front import find_front
from diffplan.tuning.studies import STUDIES, find_study

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def search(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tune") / "search"
    tune_planner(tiny_checkpoint, out)
    return out


def test_the_best_settings_are_a_file_that_planning_takes(search: Path, tiny_config: Config) -> None:
    best, trials = json.loads((search / "best.json").read_text()), json.loads((search / "trials.json").read_text())
    assert best["num_trials"] == len(trials) == tiny_config.search.num_trials
    full = [t for t in trials if t["episodes"] == 8]  # 2 blocks of 2 episodes of 2 protocols
    assert best["objective"] == max(t["objective"] for t in full)
    settings = load_settings(search / "best.json")
    (winner,) = [t for t in full if t["objective"] == best["objective"]][:1]
    for name, value in winner["params"].items():
        assert operator.attrgetter(name.removeprefix("planning."))(settings) == value
    # What the search does not vary stays as the experiment has it.
    assert settings.horizon.max == tiny_config.planning.horizon.max
    assert settings.controller.position_gain == tiny_config.planning.controller.position_gain


def test_the_settings_in_use_are_tried_first(search: Path, tiny_config: Config) -> None:
    first = json.loads((search / "trials.json").read_text())[0]
    assert first["params"]["planning.guidance.scale"] == tiny_config.planning.guidance.scale
    assert first["params"]["planning.horizon.max_speed_error"] == tiny_config.planning.horizon.max_speed_error


def test_a_search_that_exists_is_not_overwritten(search: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="--resume"):
        tune_planner(tiny_checkpoint, search)


def test_a_search_that_is_over_only_writes_its_results_again(search: Path, tiny_checkpoint: Path) -> None:
    trials, picture = (search / "trials.json").read_text(), search / "search.png"
    picture.unlink()
    tune_planner(tiny_checkpoint, search, resume=True)
    assert (search / "trials.json").read_text() == trials
    assert picture.exists()


def test_settings_are_found_for_several_checkpoints_at_once(
    tiny_checkpoint: Path, tiny_config: Config, tmp_path: Path
) -> None:
    """A trial runs its episodes with each; with the same model twice, scores are those of one."""
    small = with_overrides(tiny_config, {"search.num_trials": 1, "search.num_blocks": 1}).search
    other = tmp_path / "other"
    shutil.copytree(tiny_checkpoint, other)
    tune_planner(tiny_checkpoint, tmp_path / "one", search=small)
    tune_planner(tiny_checkpoint, tmp_path / "two", others=[other], search=small)
    one, two = (json.loads((tmp_path / name / "trials.json").read_text())[0] for name in ("one", "two"))
    assert (one["episodes"], two["episodes"]) == (4, 8)
    assert two["objective"] == pytest.approx(one["objective"])
    with pytest.raises(ConfigError, match="another others"):
        tune_planner(tiny_checkpoint, tmp_path / "one", others=[other], search=small, resume=True)
    with pytest.raises(ConfigError, match="expected a checkpoint of diffplan/Maze2D-UMaze-v1 as the first"):
        tune_planner(tiny_checkpoint, tmp_path / "three", others=["pretrained:maze2d-medium"], search=small)


def test_a_search_goes_on_only_as_it_was_begun(search: Path, tiny_checkpoint: Path, tiny_config: Config) -> None:
    blocks = with_overrides(tiny_config, {"search.num_blocks": 3}).search
    with pytest.raises(ConfigError, match="another num_blocks;"):
        tune_planner(tiny_checkpoint, search, search=blocks, resume=True)
    with pytest.raises(ConfigError, match="another study"):
        tune_planner(
            tiny_checkpoint,
            search,
            study=find_study("controller", find_task("maze2d")),
            search=tiny_config.search,
            resume=True,
        )


@pytest.mark.slow
def test_an_interrupted_search_goes_on_without_repeating_what_was_finished(
    tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A real command in a real process with its own Ray, killed in the middle, and called again here."""
    out = tmp_path / "search"
    arguments = [
        "tune", str(tiny_checkpoint), "--out", str(out), "--num_trials", "6",
        "--episodes_per_block", "4", "--num_blocks", "3", "--max_concurrent_trials", "1",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "diffplan.cli", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while count_finished(out) < 2:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline, "no trial finished"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "best.json").exists()
    before = read_reports(out)
    finished = count_finished(out)
    assert main([*arguments, "--resume"]) == 0
    assert "best of 6 settings" in capfd.readouterr().out
    trials = json.loads((out / "trials.json").read_text())
    assert len(trials) == 6
    assert all(trial["error"] is None for trial in trials)
    # Only what was running was run again: Tune ran so many trials more, each in a directory of its own.
    again = set(read_reports(out)) - set(before)
    assert len(again) == 6 - finished


def count_finished(out: Path) -> int:
    """Trials that the file of a search knows to be over; to Optuna 6 is a new state, 1 complete, 2 pruned."""
    journal = out / "study.journal"
    lines = journal.read_text().splitlines() if journal.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith("}")]
    return sum(line["op_code"] == 6 and line["state"] in (1, 2) for line in whole)


def read_reports(out: Path) -> list[str]:
    """Directories of the trials that Tune ran."""
    return [path.name for path in (out / "run").glob("trial_*")]


def test_a_pareto_search_leaves_the_front_of_its_trials(
    tiny_checkpoint: Path, tiny_config: Config, tmp_path: Path
) -> None:
    search = with_overrides(tiny_config, {"search.num_trials": 4, "search.num_blocks": 1}).search
    best = tune_planner(tiny_checkpoint, tmp_path, study=find_study("pareto", find_task("maze2d")), search=search)
    trials = json.loads((tmp_path / "trials.json").read_text())
    assert [trial["is_full"] for trial in trials] == [True] * 4
    front = json.loads((tmp_path / "pareto.json").read_text())
    values = [[trial["score_mean"], trial["plan_seconds"]] for trial in trials]
    assert [point["trial"] for point in front["points"]] == find_front(values, [False, True])
    merits = [trial["objective"] - best["study"]["cost_weight"] * trial["plan_seconds"] for trial in trials]
    assert best["trial"] == merits.index(max(merits))
    assert all((tmp_path / point["settings_file"]).is_file() for point in front["points"])
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")


def test_a_training_study_trains_and_evaluates_each_trial(
    tiny_dataset: Path, tiny_config: Config, tmp_path: Path
) -> None:
    study = Study(
        kind="training",
        vary={"windows.stride": Among(among=(5, 10)), "training.learning_rate": Between(low=1e-3, high=1e-2, log=True)},
    )
    search = with_overrides(tiny_config, {"search.num_trials": 2}).search
    best = tune_training(tiny_dataset, tiny_config, tmp_path, study=study, search=search, num_training_steps=7)
    trials = json.loads((tmp_path / "trials.json").read_text())
    assert trials[0]["params"]["windows.stride"] == tiny_config.windows.stride
    # ASHA may stop a trial after the first of two blocks: half of the steps, rounded up, on half of the episodes.
    assert {(t["training_steps"], t["episodes"], t["is_full"]) for t in trials} <= {(7, 8, True), (4, 4, False)}
    assert best["training_steps"] == 7
    expected = with_overrides(tiny_config, best["params"])
    assert config_from_dict(Config, best["config"]) == expected
    assert best["dataset"] == str(tiny_dataset)
    assert len(best["train_arguments"]) == 4
    # The search is pinned to the data that it was begun on.
    grown = tmp_path / "grown"
    shutil.copytree(tiny_dataset, grown)
    longer = dataclasses.replace(tiny_config.collection, num_steps=2 * tiny_config.collection.num_steps)
    collect(tiny_config.env, longer, grown, num_workers=1, resume=True)
    again = tune_training(grown, tiny_config, tmp_path, study=study, search=search, num_training_steps=7, resume=True)
    assert again["params"] == best["params"]
    changed = with_overrides(tiny_config, {"network.dim": 16})
    with pytest.raises(ConfigError, match="another config"):
        tune_training(tiny_dataset, changed, tmp_path, study=study, search=search, num_training_steps=7, resume=True)


def test_trials_that_fail_are_recorded_with_their_errors(
    tiny_checkpoint: Path, tiny_config: Config, tmp_path: Path
) -> None:
    """Each value is possible by itself; a longest horizon below the shortest is not."""
    study = Study(
        vary={
            "planning.horizon.max": Among(among=(5, 6, 7, 8)),
            "planning.horizon.min": Among(among=(9, 10, 11, 12, 13)),
        }
    )
    changes = {"search.num_trials": 4, "search.num_blocks": 1, "search.protocols": ["maze2d"]}
    search = with_overrides(tiny_config, changes).search
    for resume in (False, True):  # what failed is tried once more
        best = tune_planner(tiny_checkpoint, tmp_path, study=study, search=search, resume=resume)
        trials = json.loads((tmp_path / "trials.json").read_text())
        assert len(trials) == best["num_trials"] == 4
        for trial in trials:
            failed = trial["params"]["planning.horizon.max"] < trial["params"]["planning.horizon.min"]
            assert failed == (trial["error"] is not None) == (trial["objective"] is None)
            assert not failed or "planning.horizon.max: expected at least planning.horizon.min" in trial["error"]
        assert any(trial["error"] for trial in trials)


@pytest.mark.slow
def test_trials_whose_processes_died_are_tried_again(
    tiny_checkpoint: Path, tiny_config: Config, tmp_path: Path
) -> None:
    study = Study(vary={"planning.controller.position_gain": Between(low=3.0, high=30.0)})
    changes = {"search.num_trials": 5, "search.num_blocks": 1, "search.protocols": ["maze2d"]}
    struck: set[int] = set()
    is_over = threading.Event()

    def strike() -> None:
        while len(struck) < 3 and not is_over.wait(0.01):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if process.pid not in struck and "ray::ImplicitFunc" in " ".join(process.cmdline()):
                        process.kill()
                        struck.add(process.pid)

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        best = tune_planner(tiny_checkpoint, tmp_path, study=study, search=with_overrides(tiny_config, changes).search)
    finally:
        is_over.set()
        thread.join()
    assert len(struck) >= 3
    trials = json.loads((tmp_path / "trials.json").read_text())
    assert len(trials) == best["num_trials"] == 5
    assert [trial["error"] for trial in trials] == [None] * 5


def test_studies_are_of_the_kind_that_they_are_asked_as(
    tiny_checkpoint: Path, tiny_dataset: Path, tiny_config: Config, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="kind planner, got one of kind training"):
        tune_planner(tiny_checkpoint, tmp_path / "search", study=STUDIES["training"])
    with pytest.raises(ConfigError, match="kind training, got one of kind planner"):
        tune_training(tiny_dataset, tiny_config, tmp_path / "search", study=STUDIES["planner"])
    with pytest.raises(ConfigError, match=r"training\.objective"):
        tune_training(tiny_dataset, with_overrides(tiny_config, {"training.objective": "value"}), tmp_path / "search")
    long = with_overrides(tiny_config, {"windows.max_horizon": 400})
    with pytest.raises(DataError):
        tune_training(tiny_dataset, long, tmp_path / "search")
    assert not (tmp_path / "search").exists()


def test_settings_files_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.json"):
        load_settings(tmp_path / "no.json")
    path = tmp_path / "settings.json"
    for text in ("{", "[1]", '{"settings": {"num_candidates": 0}}', '{"settings": {"num_candidates": "many"}}'):
        path.write_text(text)
        with pytest.raises(ConfigError):
            load_settings(path)

"""The files that a search leaves."""

import json
import shutil
from pathlib import Path

import pytest

from diffplan.cli.parsing import parse
from diffplan.cli.train import COMMAND
from diffplan.config import Config, SearchConfig, config_from_dict, with_overrides
from diffplan.config.study import Among, Study
from diffplan.errors import ConfigError, DataError
from diffplan.planning.settings import load_settings
from diffplan.report.page import write_report
from diffplan.report.search_files import write_search
from diffplan.tasks.registry import find_task, get_preset
from diffplan.tuning.journal import TrialRecord, hold_search
from diffplan.tuning.space import make_space

CONFIG = get_preset("maze2d-umaze")


def write(directory: Path, study: Study, trials: list[TrialRecord]) -> dict:
    return write_search(
        directory,
        study=study,
        config=CONFIG,
        search=SearchConfig(),
        space=make_space(study, CONFIG),
        trials=trials,
        source="somewhere",
        wall_seconds=1.0,
    )


def trial(number: int, params: dict, score: float, seconds: float, *, is_full: bool = True) -> TrialRecord:
    metrics = {"objective": score, "score_mean": score, "success_rate": 1.0, "plan_seconds": seconds, "episodes": 4}
    return TrialRecord(number, params, metrics, is_full)


@pytest.fixture
def pareto(tmp_path: Path) -> Path:
    study = Study(
        vary={"planning.selection.num_candidates": Among(among=(1, 2, 3, 4, 5, 6))},
        objectives=("score_mean", "plan_seconds"),
        cost_weight=50.0,
    )
    values = [(150, 0.1), (140, 0.02), (139, 0.05), (151, 1.0), (152, 0.3)]
    trials = [trial(i, {"planning.selection.num_candidates": i + 1}, *value) for i, value in enumerate(values)]
    failed = TrialRecord(5, {"planning.selection.num_candidates": 6}, None, False, "it broke")
    write(tmp_path, study, [*trials, failed])
    return tmp_path


def test_a_front_and_the_point_that_the_cost_weight_chooses(pareto: Path) -> None:
    front, best = json.loads((pareto / "pareto.json").read_text()), json.loads((pareto / "best.json").read_text())
    assert [point["trial"] for point in front["points"]] == [1, 0, 4]
    assert front["objectives"] == ["score_mean", "plan_seconds"]
    # 150 - 5 = 145, 140 - 1 = 139, 152 - 15 = 137
    assert front["best"] == best["trial"] == 0
    assert [point["merit"] for point in front["points"]] == pytest.approx([139, 145, 137])
    for point in front["points"]:
        assert load_settings(pareto / point["settings_file"]).selection.num_candidates == point["trial"] + 1
        assert point["settings"]["selection"]["num_candidates"] == point["trial"] + 1
    assert load_settings(pareto / "best.json").selection.num_candidates == 1
    assert sorted(path.name for path in (pareto / "front").iterdir()) == [
        "trial_0.json",
        "trial_1.json",
        "trial_4.json",
    ]


def test_the_report_page_shows_importances_and_front(pareto: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = tmp_path_factory.mktemp("run")
    shutil.copytree(pareto, run / "search")
    page = " ".join(write_report(run).read_text().split())
    assert "Importance of each setting" in page
    assert "Pareto front of the search" in page
    assert "The chosen trial has an objective of 150.0" in page
    (run / "search" / "pareto.json").write_text("{}")
    with pytest.raises(DataError, match=r"pareto\.json"):
        write_report(run)


def test_every_trial_is_listed_and_the_picture_drawn(pareto: Path) -> None:
    trials = json.loads((pareto / "trials.json").read_text())
    assert [row["is_full"] for row in trials] == [True] * 5 + [False]
    assert [row["error"] for row in trials] == [None] * 5 + ["it broke"]
    assert (pareto / "search.png").read_bytes().startswith(b"\x89PNG")
    importances = json.loads((pareto / "importances.json").read_text())
    assert importances == {
        "score_mean": {"planning.selection.num_candidates": 1},
        "plan_seconds": {"planning.selection.num_candidates": 1},
    }


def test_trials_that_were_stopped_early_are_not_chosen(tmp_path: Path) -> None:
    study = Study(vary={"planning.selection.num_candidates": Among(among=(1, 2))})
    params = [{"planning.selection.num_candidates": n} for n in (1, 2)]
    best = write(tmp_path, study, [trial(0, params[0], 150, 0.1), trial(1, params[1], 160, 0.1, is_full=False)])
    assert best["trial"] == 0
    assert best["checkpoint"] == "somewhere"
    assert not (tmp_path / "pareto.json").exists()
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")  # of two trials, with no importances
    assert json.loads((tmp_path / "importances.json").read_text()) == {}


def test_a_training_study_leaves_the_experiment_and_the_arguments_that_train_it(tmp_path: Path) -> None:
    study = find_task("maze2d").studies["training"]
    params = {
        "windows.max_horizon": 27,
        "windows.stride": 8,
        "network.dim": 48,
        "diffusion.prediction": "velocity",
        "planning.horizon.max_speed_error": 5.5,
    }
    write(tmp_path, study, [trial(0, params, 150, 0.1)])
    best = json.loads((tmp_path / "best.json").read_text())
    config = config_from_dict(Config, best["config"])
    assert config.training == CONFIG.training
    assert (config.windows.max_horizon, config.planning.horizon.max, config.network.dim) == (27, 27, 48)
    assert load_settings(tmp_path / "best.json") == config.planning
    call = parse(COMMAND, "train", ["maze2d-umaze", "--data", "d", "--out", "o", *best["train_arguments"]])
    assert with_overrides(CONFIG, call.overrides) == config


@pytest.mark.parametrize("name", ["study.journal", ".search.lock"])
def test_a_search_writes_through_no_link(tmp_path: Path, name: str) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / name).symlink_to(mine)
    with (
        pytest.raises(ConfigError, match=f"{name}: expected the file of a search, got a symbolic link"),
        hold_search(tmp_path / "search"),
    ):
        pass
    assert mine.read_text() == "mine"

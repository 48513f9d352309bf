import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffplan.cluster.tune import compute_objective, make_param_space, tune_planner
from diffplan.config import Config, with_overrides
from diffplan.errors import ConfigError
from diffplan.evaluation.scores import EpisodeResult
from diffplan.planning.settings import load_settings
from diffplan.presets import get_preset, list_presets

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
        assert getattr(settings, name.removeprefix("planning.")) == value
    # What the search does not vary stays as the experiment has it.
    assert settings.max_horizon == tiny_config.planning.max_horizon
    assert settings.position_gain == tiny_config.planning.position_gain


def test_the_settings_in_use_are_tried_first(search: Path, tiny_config: Config) -> None:
    first = json.loads((search / "trials.json").read_text())[0]
    assert first["params"]["planning.guidance_scale"] == tiny_config.planning.guidance_scale
    assert first["params"]["planning.max_speed_error"] == tiny_config.planning.max_speed_error


def test_a_search_that_exists_is_not_overwritten(search: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="--resume"):
        tune_planner(tiny_checkpoint, search)


def test_an_interrupted_search_goes_on(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A real command in a real process with its own Ray, killed after its first trials."""
    out = tmp_path / "search"
    command = [
        sys.executable, "-m", "diffplan.cli", "tune", str(tiny_checkpoint), "--out", str(out), "--num_trials", "6",
        "--episodes_per_block", "4", "--num_blocks", "3", "--max_concurrent_trials", "1",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list((out / "run").glob("trial_*/result.json")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline, "no trial reported"
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "best.json").exists()
    search = with_overrides(
        get_preset("maze2d-umaze"),
        {
            "search.num_trials": 6,
            "search.episodes_per_block": 4,
            "search.num_blocks": 3,
            "search.max_concurrent_trials": 1,
        },
    ).search
    best = tune_planner(tiny_checkpoint, out, search=search, resume=True)
    assert best["num_trials"] == 6
    assert all(trial["error"] is None for trial in json.loads((out / "trials.json").read_text()))


def test_missing_goals_cost_more_than_speed_gains() -> None:
    def result(score: float, success: bool) -> EpisodeResult:
        return EpisodeResult(0, 0, [0, 0], [0, 0, 0, 0], 0.0, score, success, None, 300, 8, 0.0, 1, 0.0)

    safe, bold = [result(150, True)] * 10, [result(155, True)] * 9 + [result(-17, False)]
    assert compute_objective(safe) == 150
    assert compute_objective(bold) == pytest.approx((9 * 155 - 117) / 10)
    assert compute_objective(bold) < compute_objective(safe)


@pytest.mark.parametrize("preset", list_presets())
def test_the_space_holds_valid_settings_for_every_preset(preset: str) -> None:
    config = get_preset(preset)
    for name, domain in make_param_space(config).items():
        for _ in range(5):
            with_overrides(config, {name: domain.sample()})


def test_settings_files_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.json"):
        load_settings(tmp_path / "no.json")
    path = tmp_path / "settings.json"
    for text in ("{", "[1]", '{"settings": {"num_candidates": 0}}', '{"settings": {"num_candidates": "many"}}'):
        path.write_text(text)
        with pytest.raises(ConfigError):
            load_settings(path)

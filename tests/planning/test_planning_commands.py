"""`diffplan calibrate` and `diffplan plan` as a user meets them."""

import json
import re
import shutil
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from matplotlib import image
from small_runs import collect, fit

from diffplan.checkpoint import load_companion
from diffplan.cli import main
from diffplan.cli.plan import describe_departure
from diffplan.config import Config, config_from_dict, config_to_dict, with_overrides
from diffplan.data.format.dataset import open_dataset
from diffplan.planning import calibration
from diffplan.planning.companions.horizon_model import fit_horizon_model
from diffplan.planning.companions.support import Support
from diffplan.planning.loading import load_planner
from diffplan.planning.planner import with_settings, with_support
from diffplan.tasks.registry import get_preset
from diffplan.training import inverse_dynamics
from diffplan.training.inverse_dynamics import fit_action_model

CONFIG = with_overrides(
    get_preset("maze2d-umaze-smoke"),
    {
        "collection.num_steps": 1000,
        "collection.episode_steps": 250,
        "collection.episodes_per_unit": 2,
        "network.dim": 8,
        "network.dim_mults": [1, 2],
        "windows.max_horizon": 16,
        "planning.horizon.max": 16,
        "planning.sampling.num_steps": 3,
    },
)
START, GOAL = (1.0, 1.0), (3.0, 1.0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return collect(CONFIG.env, CONFIG.collection, tmp_path_factory.mktemp("data") / "umaze")


@pytest.fixture(scope="module")
def untouched(dataset, tmp_path_factory):
    """A checkpoint that was not trained."""
    return fit(CONFIG, dataset, tmp_path_factory.mktemp("checkpoint"), num_steps=0)


@pytest.fixture
def checkpoint(untouched, tmp_path):
    """A copy to change."""
    return shutil.copytree(untouched, tmp_path / "checkpoint")


@pytest.fixture
def short_fits(monkeypatch):
    """Fits of a few steps, for what they come to is tested elsewhere."""
    monkeypatch.setattr(calibration, "fit_horizon_model", partial(fit_horizon_model, num_steps=20))
    monkeypatch.setattr(
        inverse_dynamics, "fit_action_model", partial(fit_action_model, num_steps=20, num_test_pairs=200)
    )


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def make_plan(capsys, checkpoint, *arguments):
    return run(capsys, "plan", checkpoint, "--start", *START, "--goal", *GOAL, *arguments)


@pytest.mark.usefixtures("short_fits")
def test_calibrate_leaves_companions_and_what_it_measured(capsys, checkpoint, dataset):
    code, out, _ = run(capsys, "calibrate", checkpoint, "--num_plans", 120)
    assert code == 0
    written = json.loads((checkpoint / "calibration.json").read_text())
    assert set(written) == {
        *("data", "plans", "inverse_dynamics_error", "action_head_errors", "value", "support_points", "dataset")
    }
    assert written["data"]["horizons"] == list(CONFIG.windows.horizons)
    errors = np.array(written["data"]["speed_errors"])
    assert (errors >= 0).all()
    assert (np.diff(errors, axis=1) >= 0).all()
    assert written["plans"]["horizons"] == list(CONFIG.planning.horizon.tried)
    assert written["plans"]["num_plans"] == 120
    planner = load_planner(checkpoint)
    assert planner.horizon_model.horizons == CONFIG.planning.horizon.tried
    assert planner.inverse_dynamics(np.zeros((3, 4)), np.zeros((3, 4))).shape == (3, 2)
    places = open_dataset(dataset).read_column("observation")[:, :2]
    assert planner.support.distances(places).max() < 0.02
    assert f"visited {len(planner.support.points):,} places" in out
    lines = out.splitlines()
    assert lines[0].startswith("speed error of real windows: quantiles 50.0%")
    assert f"inverse dynamics: error {written['inverse_dynamics_error']:.1%}" in out
    assert lines[-1] == f"calibration: {checkpoint / 'calibration.json'}"


@pytest.mark.usefixtures("short_fits")
def test_calibrate_follows_from_its_seed_and_replaces_what_it_left(capsys, checkpoint):
    found = []
    for seed in (1, 1, 2):
        assert run(capsys, "calibrate", checkpoint, "--num_plans", 30, "--seed", seed)[0] == 0
        weights = load_companion(checkpoint, "horizon_model")[0]
        found.append((json.loads((checkpoint / "calibration.json").read_text()), weights["layers.4.bias"].tolist()))
    assert found[0] == found[1]
    assert found[0][0]["inverse_dynamics_error"] != found[2][0]["inverse_dynamics_error"]
    assert found[0][1] != found[2][1]


@pytest.mark.usefixtures("short_fits")
def test_calibrate_takes_settings_that_want_what_it_makes(capsys, checkpoint, dataset, tmp_path):
    settings = tmp_path / "settings.json"
    wanted = {"horizon.rule": "predict", "controller": "inverse_dynamics", "horizon.min": 4, "horizon.max": 12}
    settings.write_text(json.dumps({"settings": {**wanted, "horizon.multiple": 4, "sampling.num_steps": 2}}))
    arguments = ["--settings", settings, "--num_plans", 30, "--data", dataset]
    assert run(capsys, "calibrate", checkpoint, *arguments)[0] == 0
    assert load_planner(checkpoint).horizon_model.horizons == (4, 8, 12)
    code, out, _ = make_plan(capsys, checkpoint, "--settings", settings)
    assert code == 0
    assert out.splitlines()[-1].split(" transitions")[0] in ("4", "8", "12")


@pytest.mark.usefixtures("short_fits")
@pytest.mark.parametrize("name", ["horizon_model", "inverse_dynamics"])
def test_calibrate_cures_a_damaged_companion(capsys, checkpoint, name):
    arguments = ["calibrate", checkpoint, "--num_plans", 30]
    assert run(capsys, *arguments)[0] == 0
    path = checkpoint / f"{name}.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    code, _, err = make_plan(capsys, checkpoint)
    assert (code, err.count("\n")) == (2, 1)
    assert path.name in err
    code, _, err = run(capsys, *arguments)
    assert code == 0, err
    assert path.read_bytes() == whole
    assert make_plan(capsys, checkpoint)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--quantile", 1.0], ["calibration.quantile", "number in (0, 1)", "got 1.0"]),
        (["--quantile", 0.0], ["calibration.quantile", "number in (0, 1)"]),
        (["--num_plans", 0], ["calibration.num_plans", "at least 1", "got 0"]),
        (["--data", "no/such"], ["no/such", "diffplan collect"]),
        (["--settings", "no/such.json"], ["no/such.json", "expected a settings file"]),
    ],
)
def test_bad_input_of_calibrate_is_one_line_and_code_2(capsys, untouched, arguments, words):
    code, _, err = run(capsys, "calibrate", untouched, *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: ")
    for word in words:
        assert word in err
    assert not (untouched / "calibration.json").exists()


def test_calibrate_needs_to_know_the_data(capsys, dataset, tmp_path):
    code, _, err = run(capsys, "calibrate", fit(CONFIG, dataset, tmp_path, num_steps=0, record={}))
    assert (code, err.count("\n")) == (2, 1)
    assert "give the dataset by --data" in err


def test_plan_prints_one_line_of_facts(capsys, untouched):
    code, out, err = make_plan(capsys, untouched, "--horizon", 12)
    assert code == 0
    assert err == ""
    (line,) = out.splitlines()
    seconds = 11 * CONFIG.windows.stride * CONFIG.env.step_seconds
    assert line.startswith(f"12 transitions, {11 * CONFIG.windows.stride} environment steps ({seconds:.2f} s)")
    assert "; speed error " in line
    assert line.endswith("consistent)")


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        (["--start", *START, "--goal", 2.0, 1.0], "got [2.0, 1.0] in cell (2, 1), which is a wall or the outside"),
        (["--start", 2.0, 1.0, 0.0, 0.0, "--goal", *GOAL], "got [2.0, 1.0] in cell (2, 1)"),
        (["--start", *START, "--goal", *GOAL, "--via", 1.0, 2.0, 2.0, 1.0], "got [2.0, 1.0] in cell (2, 1)"),
        (["--start", *START, "--goal", 67.0, 1.0], "got [67.0, 1.0] in cell (4, 1), which is a wall or the outside"),
    ],
)
def test_plan_refuses_what_its_task_knows_to_be_out_of_reach(capsys, untouched, ends, words):
    code, out, err = run(capsys, "plan", untouched, *ends)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


def with_config(checkpoint, **changes):
    """The same model in another experiment."""
    path = checkpoint / "config.json"
    written = json.loads(path.read_text())
    config = with_overrides(config_from_dict(Config, written["config"]), changes)
    path.write_text(json.dumps({**written, "config": config_to_dict(config)}))
    return checkpoint


def test_plan_refuses_a_goal_in_another_room(capsys, checkpoint):
    rooms = {"env.env_id": "diffplan/Maze2D-v1", "env.env_kwargs": {"maze": "#####/#OO##/#####/#OG##/#####"}}
    code, _, err = make_plan(capsys, with_config(checkpoint, **rooms))
    assert code == 2
    assert "way between them, got none from [1.0, 1.0] in cell (1, 1) to [3.0, 1.0] in cell (3, 1)" in err


def test_plan_says_first_that_it_leaves_the_data(capsys, checkpoint):
    with_config(checkpoint, **{"env.task": "gymnasium"})  # which knows no walls
    far = ["--start", *START, "--goal", 67.0, 1.0, "--horizon", 12]
    code, out, _ = run(capsys, "plan", checkpoint, *far)
    assert code == 0
    assert re.match(r"leaves the data: a value is \d+\.\d times as far from their middle as most of them\n12 ", out)
    places = np.arange(0.5, 4, 0.1)
    support = Support(np.stack(np.meshgrid(places, places), axis=-1).reshape(-1, 2))
    planner = with_support(load_planner(checkpoint), support)
    ends = np.array([[*START, 0, 0]]), np.array([[67.0, 1.0]])
    (made,) = planner.plan_horizon(*ends, 12, torch.Generator().manual_seed(0))
    line = describe_departure(planner, made)
    assert re.fullmatch(r"leaves the data: up to \d\d\.\d\d away from the positions in them \(limit 0\.25\)", line)
    near = replace(made, observations=np.tile(np.float32([*START, 0, 0]), (12, 1)))
    assert describe_departure(planner, near) is None
    assert describe_departure(with_settings(planner, {"horizon.max_departure": 0.0}), near) is None


def test_plan_claims_no_consistency_that_nothing_checks(capsys, checkpoint, tmp_path):
    arguments = ["--horizon", 12, "--out", tmp_path / "plan.json"]
    code, out, _ = make_plan(capsys, checkpoint, *arguments, "--planning.horizon.max_speed_error", "None")
    assert code == 0
    assert re.search(r"; speed error \d+\.\d\d \(consistency unknown\)$", out.splitlines()[-2])
    assert json.loads((tmp_path / "plan.json").read_text())["consistent"] is None
    unknown = {"env.velocity_columns": [], "planning.controller.interpolation": "linear"}
    code, out, _ = make_plan(capsys, with_config(checkpoint, **unknown), *arguments)
    assert code == 0
    assert out.splitlines()[-2].endswith("; consistency unknown")
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert (plan["consistent"], plan["speed_error"]) == (None, None)


def test_plan_writes_json_and_a_picture(capsys, untouched, tmp_path):
    out_file, picture = tmp_path / "plan.json", tmp_path / "plan.png"
    code, out, _ = make_plan(capsys, untouched, "--horizon", 12, "--out", out_file, "--picture", picture)
    assert code == 0
    assert out.splitlines()[1:] == [f"plan: {out_file}", f"picture: {picture}"]
    written = json.loads(out_file.read_text())
    observations = np.array(written["observations"])
    assert observations.shape == (12, 4)
    np.testing.assert_allclose(observations[0], [*START, 0, 0])
    np.testing.assert_allclose(observations[-1, :2], GOAL)
    assert (written["stride"], written["violation"], written["guide_score"]) == (CONFIG.windows.stride, 0.0, None)
    assert written["consistent"] == (written["speed_error"] <= CONFIG.planning.horizon.max_speed_error)
    assert f"speed error {written['speed_error']:.2f}" in out
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = image.imread(picture)[:, :, :3]
    assert min(pixels.shape[:2]) > 100
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
    assert pixels.std() > 0.05


def write(capsys, checkpoint, path, *arguments):
    """The plan that a command writes."""
    code, _, err = run(capsys, "plan", checkpoint, *arguments, "--out", path)
    assert code == 0, err
    return json.loads(path.read_text())


def test_plan_follows_from_its_seed(capsys, untouched, tmp_path):
    ends = ["--start", *START, "--goal", *GOAL, "--horizon", 8]
    plans = [write(capsys, untouched, tmp_path / "plan.json", *ends, "--seed", seed) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]


def test_plan_passes_way_points_and_is_told_guides(capsys, untouched, tmp_path):
    ends = ["--start", *START, 0.5, -0.5, "--goal", *GOAL]
    made = write(capsys, untouched, tmp_path / "plan.json", *ends, "--via", 1.0, 2.0, 2.0, 3.0)
    observations = np.array(made["observations"])
    np.testing.assert_allclose(observations[0], [*START, 0.5, -0.5])
    (first,), (second,) = (np.nonzero((observations[:, :2] == p).all(axis=1))[0] for p in ([1.0, 2.0], [2.0, 3.0]))
    assert 0 < first < second < len(observations) - 1
    guides = ["--guides", "mean(position[:, :, 0])", "speed_limit(0.001)", "--guidance_scale", 0.5]
    code, out, _ = run(capsys, "plan", untouched, *ends, "--horizon", 8, *guides, "--out", tmp_path / "guided.json")
    assert code == 0
    written = json.loads((tmp_path / "guided.json").read_text())
    assert written["violation"] > 0
    assert f"; violation {written['violation']:.3g}" in out.splitlines()[0]
    assert isinstance(written["guide_score"], float)


def test_plan_needs_no_goal(capsys, untouched, tmp_path):
    picture = tmp_path / "plan.png"
    made = write(
        capsys, untouched, tmp_path / "plan.json", "--start", *START, "--horizon", 8, "--num_candidates", 1,
        "--picture", picture,
    )  # fmt: skip
    assert len(made["observations"]) == 8
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--start", 1, 1, 0], ["--start", "expected 4 numbers (an observation) or 2 (a position), got 3"]),
        (["--start", 1], ["--start", "got 1"]),
        (["--start", 1, "nan"], ["expected finite numbers"]),
        (["--start", 1, 1, "--goal", 1, 1, 1], ["goals: expected shape (1, 2), got (1, 3)"]),
        (["--start", 1, 1, "--via", 1, 2], ["expected a time", "on the way to a goal"]),
        (["--start", 1, 1, "--goal", 3, 1, "--guides", "keep_ot([1, 1], 1)"], ["Did you mean 'keep_out'"]),
        (["--start", 1, 1, "--goal", 3, 1, "--guides", "no_such_module:guide"], ["cannot import no_such_module"]),
        (["--start", 1, 1, "--goal", 3, 1, "--horizon", 1], ["horizons: expected numbers of at least 2"]),
        (["--start", 1, 1, "--goal", 3, 1, "--num_candidates", 0], ["num_candidates: expected at least 1"]),
        (["--start", 1, 1, "--goal", 3, 1, "--settings", "no/such.json"], ["no/such.json"]),
    ],
    ids=lambda value: "-".join(map(str, value))[:50],
)
def test_bad_input_of_plan_is_one_line_and_code_2(capsys, untouched, arguments, words, tmp_path):
    code, out, err = run(capsys, "plan", untouched, *arguments, "--out", tmp_path / "plan.json")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.parametrize(
    ("option", "path", "words"),
    [
        ("--out", "no/such/plan.json", ["--out: expected a file that can be written", "No such file"]),
        ("--out", ".", ["--out: expected a file that can be written"]),
        ("--picture", "no/such/plan.png", ["--picture: expected an image file such as plan.png", "No such file"]),
        ("--picture", "plan.xyz", ["--picture: expected an image file such as plan.png", "xyz"]),
    ],
)
def test_a_plan_that_cannot_be_written_is_one_line_and_code_2(capsys, untouched, tmp_path, option, path, words):
    code, out, err = make_plan(capsys, untouched, "--horizon", 8, option, tmp_path / path)
    assert code == 2
    assert out.startswith("8 transitions")  # it was made, and nothing else is said to be
    assert out.count("\n") == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in [*words, str(tmp_path / path)]:
        assert word in err
    assert list(tmp_path.iterdir()) == []


NO_SETTINGS = [
    ('{"guidance_scale": 1.0}', ["Did you mean 'guidance.scale'"]),
    ('{"num_sampling_steps": 4}', ["Did you mean 'sampling.num_steps'"]),
    ('{"guidance": {"scal": 1.0}}', ["Did you mean 'guidance.scale'"]),
    ('{"settings": {"horizon": {"rul": "scan"}}}', ["Did you mean 'horizon.rule'"]),
    ('{"selection": {"num_candidates": 0}}', ["planning.selection.num_candidates", "got 0"]),
    ('{"guidance.guides": ["keep_ot([1, 1], 1)"]}', ["Did you mean 'keep_out'"]),
    ('{"settings": 3}', ["expected a JSON object of settings, got int"]),
    ("[1]", ["expected a JSON object of settings, got list"]),
    ("{", ["expected JSON settings"]),
]
WITHOUT_COMPANIONS = [
    ('{"horizon": {"rule": "predict"}}', ["horizon.rule", "diffplan calibrate"]),
    ('{"controller": "inverse_dynamics"}', ["controller", "no inverse dynamics"]),
]


@pytest.mark.parametrize(
    ("command", "content", "words"),
    [("plan", *case) for case in NO_SETTINGS + WITHOUT_COMPANIONS] + [("calibrate", *case) for case in NO_SETTINGS],
)
def test_settings_that_are_none_are_refused_in_one_line(capsys, untouched, tmp_path, command, content, words):
    settings = tmp_path / "settings.json"
    settings.write_text(content)
    start = ["--start", *START] if command == "plan" else []
    code, _, err = run(capsys, command, untouched, *start, "--settings", settings)
    assert (code, err.count("\n")) == (2, 1)
    for word in words:
        assert word in err


@pytest.mark.parametrize("command", ["plan", "calibrate"])
def test_a_missing_or_damaged_checkpoint_is_refused_in_one_line(capsys, untouched, tmp_path, command):
    start = ["--start", *START] if command == "plan" else []
    code, _, err = run(capsys, command, tmp_path / "none", *start)
    assert (code, err.count("\n")) == (2, 1)
    assert "expected a checkpoint" in err
    damaged = shutil.copytree(untouched, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"")
    code, _, err = run(capsys, command, damaged, *start)
    assert (code, err.count("\n")) == (2, 1)
    assert "model.safetensors" in err


def test_a_settings_file_is_merged_over_those_of_the_checkpoint(capsys, untouched, tmp_path):
    def plan(*arguments):
        return write(capsys, untouched, tmp_path / "plan.json", "--start", *START, "--goal", *GOAL, *arguments)

    def settings(name, **values):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(values))
        return path

    horizons = {"horizon.min": 8, "horizon.max": 8}
    some, all_of_them = settings("some", **horizons), settings("all", **{**config_to_dict(CONFIG.planning), **horizons})
    assert plan("--settings", some) == plan("--settings", all_of_them)
    # The command line comes after the file.
    over = ["--planning.horizon.min", 12, "--planning.horizon.max", 12]
    assert len(plan("--settings", some, *over)["observations"]) == 12
    assert plan("--settings", some, *over) == plan(*over)
    # Where the file has nothing to say the checkpoint does.
    assert plan("--settings", settings("none")) == plan()
    assert plan("--settings", settings("seeds", **{"sampling.num_steps": 2})) == plan(
        "--planning.sampling.num_steps", 2
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--planning.num_candidate", 3], ["did you mean --planning.selection.num_candidates?"]),
        (
            ["--planning.selection.num_candidates", "many"],
            ["planning.selection.num_candidates: expected a whole number, got 'many'"],
        ),
        (["--planning.selection.num_candidates", 0], ["planning.selection.num_candidates: expected at least 1, got 0"]),
        (
            ["--planning.sampling.sampler", "dim"],
            ["planning.sampling.sampler: expected one of ddim, ddpm", "did you mean 'ddim'?"],
        ),
        (["--planning.guidance.guides", "keep_ot([1, 1], 1)"], ["Did you mean 'keep_out'"]),
    ],
)
def test_wrong_settings_of_the_command_line_are_one_line(capsys, untouched, arguments, words):
    code, out, err = make_plan(capsys, untouched, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    for word in words:
        assert word in err


GUIDE = """
def prefer_the_right(plans):
    return plans.positions[:, :, 0].mean(dim=1)
"""


@pytest.fixture
def guide(tmp_path, monkeypatch):
    """Import path of a guide in the working directory."""
    (tmp_path / "guide_of_a_test.py").write_text(GUIDE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "guide_of_a_test", raising=False)
    return "guide_of_a_test:prefer_the_right"


@pytest.mark.parametrize("command", ["plan", "calibrate"])
def test_a_function_that_only_a_file_names_needs_trust(capsys, untouched, tmp_path, guide, command):
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"guidance": {"guides": [guide], "scale": 0.5}}))
    start = ["--start", *START, "--horizon", 8] if command == "plan" else []
    code, out, err = run(capsys, command, untouched, *start, "--settings", settings)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{settings}: expected no function that only a file names, got planning.guidance.guides {guide!r}" in err
    assert err.rstrip().endswith("then add --trust")
    assert "guide_of_a_test" not in sys.modules
    if command == "plan":
        assert run(capsys, command, untouched, *start, "--settings", settings, "--trust")[0] == 0
        assert (
            run(capsys, command, untouched, *start, "--settings", settings, "--planning.guidance.guides", guide)[0] == 0
        )


def test_a_place_that_only_a_checkpoint_names_needs_trust(capsys, dataset, tmp_path):
    config = with_overrides(CONFIG, {"planning.guidance.value": "s3://elsewhere/value", "planning.guidance.scale": 1.0})
    foreign = fit(config, dataset, tmp_path / "foreign", num_steps=0, record={})
    code, _, err = make_plan(capsys, foreign)
    assert (code, err.count("\n")) == (2, 1)
    assert (
        f"{foreign}: expected no URL that only a file names, got planning.guidance.value 's3://elsewhere/value'" in err
    )
    assert make_plan(capsys, foreign, "--planning.guidance.value", "None")[0] == 0


@pytest.mark.parametrize("command", ["plan", "calibrate"])
def test_help_names_what_matters(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    wanted = {
        "plan": ["--start", "--goal", "--via", "--guides", "--horizon", "--picture", "--planning.*"],
        "calibrate": ["--data", "--settings", "--num_plans", "--planning.*"],
    }
    assert f"usage: diffplan {command}" in out
    for name in [*wanted[command], "--seed"]:
        assert name in out

"""What settings from a file may name."""

import importlib
import json
from dataclasses import replace

import pytest

from diffplan.checkpoint import load_checkpoint, save_planning_checkpoint
from diffplan.cli import main
from diffplan.config import PlanningConfig, config_to_dict, with_overrides
from diffplan.errors import ConfigError
from diffplan.planning.trust import list_named, require_same_place, require_trust

EXPRESSION = "2 * goal_distance() + keep_out([3, 4], 0.5)"


def make(**values):
    return config_to_dict(with_overrides(PlanningConfig(), values))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, []),
        ({"guidance.guides": (EXPRESSION,)}, []),
        ({"guidance.guides": (EXPRESSION, " os:abort ")}, [("planning.guidance.guides", " os:abort ")]),
        (
            {"guidance.guides": ("package.module:Class.make",)},
            [("planning.guidance.guides", "package.module:Class.make")],
        ),
        ({"guidance.value": "models/value"}, []),
        ({"guidance.value": "/models/value"}, []),
        ({"guidance.value": "pretrained:value"}, []),
        ({"guidance.value": "s3://bucket/value"}, [("planning.guidance.value", "s3://bucket/value")]),
        (
            {"guidance.value": "simplecache::https://host/value"},
            [("planning.guidance.value", "simplecache::https://host/value")],
        ),
        ({"guidance.value": "package:VALUE"}, [("planning.guidance.value", "package:VALUE")]),
        ({"controller": "push"}, []),
        ({"controller": "diffplan.planning.control.controllers:TrackingController"}, []),
        ({"controller": "os:abort"}, [("planning.controller.kind", "os:abort")]),
        ({"controller": "pathlib:Path"}, [("planning.controller.kind", "pathlib:Path")]),
        ({"controller": "no_such_module:make"}, [("planning.controller.kind", "no_such_module:make")]),
    ],
)
def test_functions_and_urls_are_found(values, expected):
    assert list(list_named(make(**values))) == expected


def test_they_are_found_in_sections_too():
    values = {"guidance": {"guides": ["a:b"], "scale": 1.0}, "controller": {"kind": "x", "value": None}}
    assert list(list_named(values)) == [("planning.guidance.guides", "a:b")]


def test_what_is_named_elsewhere_too_is_trusted():
    values = make(**{"guidance.guides": ("a:b", EXPRESSION), "guidance.value": "s3://c/d"})
    require_trust(values, "file.json", known=("a:b", "s3://c/d"))
    with pytest.raises(ConfigError, match=r"file\.json: expected no function .*, got planning\.guidance\.guides 'a:b'"):
        require_trust(values, "file.json", known=("s3://c/d",))
    with pytest.raises(ConfigError, match=r"expected no URL .*, got planning\.guidance\.value 's3://c/d'"):
        require_trust(values, "file.json", known=("a:b",))


def test_a_study_that_names_a_place_needs_trust(tmp_path, capsys):
    study = tmp_path / "own.json"
    study.write_text(
        json.dumps({"vary": {"planning.guidance.value": {"among": ["models/value", "s3://elsewhere/value"]}}})
    )
    assert main(["tune", "pretrained:maze2d-umaze", "--out", str(tmp_path / "out"), "--study", str(study)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"{study}: expected no URL that only a file names, got planning.guidance.value 's3://elsewhere/value'" in err
    assert not (tmp_path / "out").exists()


def test_the_page_of_a_run_that_names_a_function_needs_trust(tmp_path, capsys):
    (tmp_path / "search").mkdir()
    best = {"settings": make(**{"guidance.guides": ("a_module:of_others",)}), "objective": 1.0, "episodes": 4}
    (tmp_path / "search" / "best.json").write_text(json.dumps(best))
    assert main(["report", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert (
        f"{tmp_path}: expected no function that only a file names, got planning.guidance.guides 'a_module:of_others'"
        in err
    )
    assert not (tmp_path / "report.html").exists()


NAMES = {
    "a function as a guide": {"guidance.guides": ("a_module:of_others",), "guidance.scale": 0.0},
    "a function that ends the program": {"guidance.guides": ("sys:exit",)},
    "a value at a URL": {"guidance.value": "memory://elsewhere/value"},
    "a function as a controller": {"controller": "os:abort"},
}


@pytest.fixture(params=NAMES.values(), ids=NAMES)
def named(request, tmp_path):
    """A checkpoint whose own config names code or a place, and settings that do."""
    checkpoint = load_checkpoint("pretrained:maze2d-umaze")
    planning = with_overrides(checkpoint.config.planning, request.param)
    config = replace(checkpoint.config, planning=planning)
    save_planning_checkpoint(tmp_path / "checkpoint", replace(checkpoint, config=config))
    (tmp_path / "settings.json").write_text(json.dumps(config_to_dict(planning)))
    return tmp_path


@pytest.fixture
def imported(monkeypatch):
    """The names of modules that are imported by import paths, and URLs that are opened."""
    found = []
    monkeypatch.setattr("diffplan.diffusion.guide_expressions._import_guide", found.append)
    monkeypatch.setattr(
        "diffplan.storage.object_store.ObjectStore.__init__", lambda store, url, *rest: found.append(url)
    )
    return found


ON_MAZE = ("--protocol", "maze2d", "--out", "{root}/out")
PLAN = ("--start", "1", "1", "--goal", "3", "1")


@pytest.mark.parametrize(
    "command",
    [
        ("plan", "{root}/checkpoint", *PLAN),
        ("plan", "{root}/checkpoint", *PLAN, "--guidance_scale", "0"),
        ("plan", "pretrained:maze2d-umaze", *PLAN, "--settings", "{root}/settings.json"),
        ("evaluate", "{root}/checkpoint", *ON_MAZE),
        ("evaluate", "pretrained:maze2d-umaze", *ON_MAZE, "--settings", "{root}/settings.json"),
        ("calibrate", "{root}/checkpoint"),
        ("tune", "{root}/checkpoint", "--out", "{root}/out"),
    ],
    ids=lambda command: " ".join(command[:2]) + (" with settings" if "--settings" in command else ""),
)
def test_commands_use_no_code_and_no_place_that_only_a_file_names(named, imported, capsys, command):
    assert main([word.format(root=named) for word in command]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "that only a file names, got planning." in err
    assert err.rstrip().endswith("look at what it is, then add --trust")
    assert imported == []
    assert not (named / "out").exists()


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("planning.guidance.value", {"among": ["memory://elsewhere/value"]}),
        ("planning.controller.kind", {"among": ["os:abort"]}),
        ("planning.controller", {"among": ["os:abort"]}),
        ("planning.selection.rule", {"among": ["memory://x/y"], "also": ["planning.guidance.value"]}),
    ],
)
def test_studies_name_no_code_and_no_place(tmp_path, capsys, field, values):
    study = tmp_path / "own.json"
    study.write_text(json.dumps({"vary": {field: values}}))
    assert main(["tune", "pretrained:maze2d-umaze", "--out", str(tmp_path / "out"), "--study", str(study)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "that only a file names, got planning." in err


@pytest.mark.parametrize("place", ["path", "uri"])
def test_the_dataset_of_a_checkpoint_is_opened_in_the_store_of_the_checkpoint_only(tmp_path, capsys, place):
    checkpoint = load_checkpoint("pretrained:maze2d-umaze")
    save_planning_checkpoint(tmp_path, replace(checkpoint, dataset={place: "memory://elsewhere/data"}))
    assert main(["calibrate", str(tmp_path)]) == 2
    assert (
        "expected no URL that only a file names, got the dataset 'memory://elsewhere/data'" in capsys.readouterr().err
    )
    require_same_place({place: "s3://bucket/data"}, "s3://bucket/checkpoint")
    require_same_place({place: "data/umaze"}, "s3://bucket/checkpoint")
    require_same_place({place: None}, "checkpoint")


@pytest.mark.parametrize("env", [{"task": "os:abort"}, {"task": "sys:exit"}, {"env_id": "this:Is-v0", "task": None}])
def test_environments_and_tasks_of_a_file_are_imported_but_never_called(tmp_path, capsys, env):
    checkpoint = load_checkpoint("pretrained:maze2d-umaze")
    config = with_overrides(checkpoint.config, {f"env.{name}": value for name, value in env.items()})
    save_planning_checkpoint(tmp_path / "checkpoint", replace(checkpoint, config=config))
    words = ["evaluate", str(tmp_path / "checkpoint"), "--protocol", "maze2d", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert err.startswith("error: ")


@pytest.mark.parametrize("guide", ["sys:exit", "a_module_that_exits:guide", "os:getcwd"])
def test_a_guide_that_ends_the_program_is_an_error(tmp_path, monkeypatch, capsys, guide):
    (tmp_path / "a_module_that_exits.py").write_text("import sys\n\nsys.exit()\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["plan", "pretrained:maze2d-umaze", *PLAN, "--guides", guide]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert f"guide {guide!r}" in captured.err
    assert captured.out == ""


def test_a_command_that_is_ended_from_within_is_an_error(monkeypatch, capsys):
    def leave(name):
        raise SystemExit(0)

    monkeypatch.setattr(importlib.import_module("diffplan.cli.main"), "find_command", leave)
    assert main(["plan"]) == 2
    assert "expected plan to go on, got SystemExit" in capsys.readouterr().err


def test_projections_and_symmetries_by_import_path_need_trust():
    assert list(list_named(make(**{"selection.refine": "settle"}))) == []
    found = list(list_named(make(**{"selection.refine": "os:abort"})))
    assert found == [("planning.selection.refine", "os:abort")]
    windows = {"symmetries": ["turns", "os:abort"]}
    assert list(list_named(windows, "windows")) == [("windows.symmetries", "os:abort")]


def test_a_checkpoint_with_a_foreign_symmetry_is_not_calibrated_without_trust(tmp_path, capsys):
    checkpoint = load_checkpoint("pretrained:hopper")
    windows = replace(checkpoint.config.windows, symmetries=("a_module:of_others",))
    changed = replace(checkpoint, config=replace(checkpoint.config, windows=windows))
    save_planning_checkpoint(tmp_path / "checkpoint", changed)
    assert main(["calibrate", str(tmp_path / "checkpoint"), "--data", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "expected no function that only a file names, got windows.symmetries 'a_module:of_others'" in err

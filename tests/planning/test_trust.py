"""What settings from a file may name."""

import json

import pytest

from diffplan.cli import main
from diffplan.config import PlanningConfig, config_to_dict, with_overrides
from diffplan.errors import ConfigError
from diffplan.planning.trust import list_named, require_trust

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

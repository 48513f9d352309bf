"""`diffplan new`: a package that works as it is, under another name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from diffplan.cli.scaffold import find_template, make_package
from diffplan.errors import ConfigError

ROOT = Path(__file__).parents[1]
CHECK = """
import sys
from dataclasses import replace
from diffplan.behaviors.collection import UnitCollector
from diffplan.config import CollectionConfig
from diffplan.tasks.registry import find_experiment, task_of

experiment = find_experiment(sys.argv[1])
env = experiment.config.env
assert task_of(env).name == "my_robot", task_of(env)
episodes = UnitCollector(env, replace(experiment.config.collection, episodes_per_unit=2, episode_steps=5)).collect(0)
print(experiment.name, env.env_id, env.goal_columns, len(episodes[0]))
"""


def list_files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def test_a_package_has_the_files_of_the_example_under_its_own_name(tmp_path: Path) -> None:
    made = make_package("my_robot", tmp_path / "elsewhere" / "robot")
    assert made == tmp_path / "elsewhere" / "robot"
    source = ROOT / "docs" / "examples" / "pushing"
    tracked = subprocess.run(["git", "ls-files"], cwd=source, capture_output=True, text=True, check=True).stdout.split()
    assert list_files(made) == sorted(name.replace("pushing", "my_robot") for name in tracked)
    for path in made.rglob("*"):
        text = path.read_text() if path.is_file() else ""
        assert not re.search("pushing", text, re.IGNORECASE), path
    assert "class MyRobotEnv" in (made / "my_robot" / "environment.py").read_text()


def test_a_new_package_works_as_it_is(tmp_path: Path) -> None:
    made = make_package("my_robot", tmp_path / "robot")
    done = subprocess.run(
        [sys.executable, "-c", CHECK, "my_robot.task:TASK/my_robot-smoke"],
        cwd=made,
        env={"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT / 'envs'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "my_robot-smoke my_robot:my_robot/Push-v0 (3, 4, 5) 5\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my-robot", "expected a Python name in lower case such as my_robot, got 'my-robot'"),
        ("MyRobot", "expected a Python name in lower case"),
        ("_robot", "expected a Python name in lower case"),
        ("class", "expected a Python name in lower case"),
        ("", "expected a Python name in lower case"),
        ("../x", "expected a Python name in lower case"),
        ("maze2d", "expected the name of a new task, got 'maze2d', which there is"),
        ("gymnasium", "expected the name of a new task"),
        ("json", "expected a name that no module has, got 'json'"),
        ("diffplan", "expected a name that no module has"),
        ("sys", "expected a name that no module has"),
    ],
)
def test_names_that_no_package_can_have_are_refused_in_one_line(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        make_package(name, tmp_path / "new")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_what_is_there_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert make_package("my_robot") == Path("my_robot")
    before = list_files(tmp_path)
    with pytest.raises(ConfigError, match="my_robot: expected a directory that does not exist yet"):
        make_package("my_robot")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="expected a directory that can be made"):
        make_package("my_robot", tmp_path / "file" / "robot")
    assert list_files(tmp_path) == [*sorted([*before, "file"])]


def test_the_template_is_the_example() -> None:
    assert find_template() == ROOT / "docs" / "examples" / "pushing"

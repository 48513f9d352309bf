"""How tasks and presets are found: by name, by import path, and in installed packages."""

import dataclasses
import subprocess
import sys
import textwrap

import pytest

from diffplan.config import EnvConfig, with_overrides
from diffplan.errors import ConfigError
from diffplan.tasks.maze2d.environment import ROLES
from diffplan.tasks.registry import (
    DEFAULT_TASK,
    complete_env,
    fill_roles,
    find_experiment,
    find_task,
    get_preset,
    list_presets,
    list_task_presets,
    list_tasks,
    task_of,
)
from diffplan.tasks.task import Preset, Protocol, Task

HERE = __name__
ROBOT = Task(
    name="robot",
    presets={
        name: Preset(config=with_overrides(get_preset(DEFAULT_TASK), {"env.env_id": "Pendulum-v1", "training.seed": i}))
        for i, name in enumerate(["small", "large"])
    },
)
BARE = Task(name="bare")
NO_TASK = {"name": "robot"}


def refuse(call, *words):
    with pytest.raises(ConfigError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


# Tasks


def test_families_come_first_and_the_default_task_last():
    tasks = list(list_tasks())
    assert {"maze2d", "locomotion", "stacking"} < set(tasks)
    assert tasks[-1] == DEFAULT_TASK
    for name in tasks:
        task = find_task(name)
        assert task.name == name
        assert task.description
        assert "\n" not in task.description


def test_a_task_is_found_by_name_and_by_import_path():
    assert find_task(f"{HERE}:ROBOT") is ROBOT
    assert find_task("diffplan.tasks.maze2d:TASK") is find_task("maze2d")
    refuse(lambda: find_task("maze3d"), "task: expected one of", "maze2d", "got 'maze3d'", "Did you mean 'maze2d'?")
    refuse(lambda: find_task(f"{HERE}:NO_TASK"), "expected a diffplan Task", "NO_TASK", "got dict")
    refuse(lambda: find_task(f"{HERE}:ROBOTS"), "task: expected 'ROBOTS' in")
    refuse(lambda: find_task("no_such_package.tasks:ROBOT"), "task: ", "no_such_package.tasks")


@pytest.mark.parametrize(
    ("env", "name"),
    [
        (EnvConfig(env_id="diffplan/Maze2D-UMaze-v1"), "maze2d"),
        (EnvConfig(env_id="diffplan/Multi2D-Large-v1"), "maze2d"),
        (EnvConfig(env_id="Hopper-v5"), "locomotion"),
        (EnvConfig(env_id="diffplan/HalfCheetah-v4"), "locomotion"),
        (EnvConfig(env_id="Pendulum-v1"), DEFAULT_TASK),
        (EnvConfig(env_id="gymnasium_robotics:PointMaze_UMaze-v3"), DEFAULT_TASK),
        (EnvConfig(env_id="diffplan/Maze2D-UMaze-v1", task=DEFAULT_TASK), DEFAULT_TASK),
        (EnvConfig(env_id="Pendulum-v1", task="maze2d"), "maze2d"),
        (EnvConfig(env_id="Pendulum-v1", task=f"{HERE}:ROBOT"), "robot"),
    ],
)
def test_an_environment_belongs_to_the_task_it_names_or_that_claims_its_id(env, name):
    assert task_of(env).name == name


def test_an_environment_of_a_task_that_there_is_not_is_refused():
    refuse(lambda: task_of(EnvConfig(env_id="Pendulum-v1", task="robto")), "task: expected one of", "got 'robto'")


# Roles of columns


def test_what_is_not_known_of_an_environment_stays_unknown():
    env = complete_env(EnvConfig(env_id="Pendulum-v1", env_kwargs={"g": 5.0}))
    assert env == EnvConfig(env_id="Pendulum-v1", env_kwargs={"g": 5.0}, task=DEFAULT_TASK)
    assert (env.position_columns, env.velocity_columns, env.goal_columns, env.step_seconds) == ((), (), (), None)


def test_a_family_knows_its_columns_and_what_is_given_stays():
    env = complete_env(EnvConfig(env_id="diffplan/Maze2D-Large-v1"))
    assert env == dataclasses.replace(ROLES, env_id="diffplan/Maze2D-Large-v1", task="maze2d")
    given = EnvConfig(env_id="diffplan/Maze2D-Large-v1", position_columns=(1, 0), goal_columns=(1,), step_seconds=0.02)
    assert complete_env(given) == dataclasses.replace(given, task="maze2d")
    assert complete_env(env) == env


def test_another_environment_or_other_arguments_keep_columns_and_task():
    """As `--env.env_id` and `--env.env_kwargs` of `evaluate` change those of a checkpoint."""
    env = complete_env(EnvConfig(env_id="diffplan/Maze2D-UMaze-v1", env_kwargs={"reward_type": "dense"}))
    env = dataclasses.replace(env, goal_columns=(1, 0))
    changed = with_overrides(env, {"env_id": "diffplan/Maze2D-Large-v1"})
    assert changed == dataclasses.replace(env, env_id="diffplan/Maze2D-Large-v1")
    assert complete_env(changed) == changed
    changed = with_overrides(env, {"env_kwargs": {"max_episode_steps": 5}})
    assert (changed.env_kwargs, changed.goal_columns) == ({"max_episode_steps": 5}, (1, 0))


def complete_by_asking(env):
    from diffplan.environments import make_env

    make_env(env).close()
    return dataclasses.replace(env, position_columns=(0,))


ASKING = Task(name="asking", complete_env=complete_by_asking)


def test_imports_know_what_a_family_knows_without_its_environment():
    maze = EnvConfig(env_id="diffplan/Maze2D-Large-v1")
    assert fill_roles(maze) == dataclasses.replace(ROLES, env_id=maze.env_id)
    assert fill_roles(EnvConfig(env_id="Hopper-v5")) == EnvConfig(env_id="Hopper-v5", step_seconds=0.008)
    for env_id in ("AntMaze_UMaze-v5", "Pendulum-v1", "no/Such-v0"):
        assert fill_roles(EnvConfig(env_id=env_id)) == EnvConfig(env_id=env_id)
    asking = EnvConfig(env_id="Pendulum-v1", task=f"{HERE}:ASKING")
    assert fill_roles(asking) == dataclasses.replace(asking, position_columns=(0,))
    elsewhere = dataclasses.replace(asking, env_id="not/Installed-v0")
    assert fill_roles(elsewhere) == elsewhere
    refuse(lambda: complete_env(elsewhere), "not/Installed-v0")


# Experiments


def test_the_first_argument_is_a_preset_or_a_task_or_both():
    for text, task, name in [
        ("maze2d-large", "maze2d", "maze2d-large"),
        ("maze2d", "maze2d", next(iter(find_task("maze2d").presets))),
        ("maze2d/janner-maze2d-large", "maze2d", "janner-maze2d-large"),
        ("locomotion", "locomotion", next(iter(find_task("locomotion").presets))),
        (DEFAULT_TASK, DEFAULT_TASK, DEFAULT_TASK),
        (f"{HERE}:ROBOT", f"{HERE}:ROBOT", "small"),
        (f"{HERE}:ROBOT/large", f"{HERE}:ROBOT", "large"),
        (f"{HERE}:BARE", f"{HERE}:BARE", DEFAULT_TASK),
    ]:
        experiment = find_experiment(text)
        assert (experiment.name, experiment.config.env.task) == (name, task)
        assert experiment.task is find_task(task)
        own = list_task_presets(experiment.task)[name].config
        assert experiment.config == dataclasses.replace(own, env=dataclasses.replace(own.env, task=task))
    assert find_experiment(f"{HERE}:ROBOT/large").config.training.seed == 1


def test_a_slip_is_one_line_with_the_nearest_name():
    refuse(lambda: find_experiment("maze2d-lagre"), "got 'maze2d-lagre'; did you mean 'maze2d-large'?")
    refuse(lambda: find_experiment("locomotoin"), "did you mean 'locomotion'?")
    refuse(lambda: find_experiment("qqq"), "got 'qqq'", "`diffplan train --list` shows the presets")
    refuse(lambda: find_experiment("maze2d/umaze"), "preset of maze2d: expected one of", "got 'umaze'")
    refuse(lambda: find_experiment(f"{HERE}:ROBOT/lagre"), "Did you mean 'large'?")
    refuse(lambda: find_experiment("robot/large"), "got 'robot/large'")
    refuse(lambda: find_experiment(f"{HERE}:NO_TASK"), "expected a diffplan Task")
    with pytest.raises(ConfigError) as caught:
        find_experiment("maze2d-lagre")
    assert len(str(caught.value)) < 200  # not the whole list


def test_presets_are_those_of_all_tasks_under_names_of_their_own():
    owners = {}
    for name in list_tasks():
        for preset in find_task(name).presets:
            assert preset not in owners, f"{preset} of {name} and of {owners[preset]}"
            owners[preset] = name
    assert list_presets() == sorted(owners)
    # A preset that is called as a task is that task's, or the task could not be named.
    assert all(owners.get(name, name) == name for name in list_tasks())


def test_protocols_of_every_task_say_what_they_are():
    for name in list_tasks():
        for protocol in find_task(name).protocols.values():
            assert isinstance(protocol, Protocol)
            assert protocol.title


# Installed packages

TASKS = """
    from diffplan.tasks.task import Preset, Task
    from diffplan.tasks.registry import get_preset
    from diffplan.config import with_overrides

    CHANGES = {"env.env_id": "mine/Slide-v0"}

    TASK = Task(
        name="slide",
        description="something that slides",
        env_ids=("mine/Slide-*",),
        presets={"slide-small": Preset(config=with_overrides(get_preset("gymnasium"), CHANGES))},
    )
"""


def install(directory, name, value, module):
    information = directory / f"{name}-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[diffplan.tasks]\n{value}\n")
    if module is not None:
        (directory / f"{name}.py").write_text(textwrap.dedent(module))


def run(code, installed, monkeypatch):
    """Run code where packages are installed; what it prints, or the message that it ends with."""
    monkeypatch.setenv("PYTHONPATH", str(installed))
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else done.stderr


def test_a_task_of_an_installed_package_is_like_one_that_comes_along(tmp_path, monkeypatch):
    install(tmp_path, "slide_package", "slide = slide_package:TASK", TASKS)
    code = """
        from diffplan.config import EnvConfig
        from diffplan.tasks.registry import find_experiment, find_task, list_presets, list_tasks, task_of
        print(list(list_tasks()))
        print(find_experiment("slide").name, find_experiment("slide-small").config.env.task)
        print(task_of(EnvConfig(env_id="mine/Slide-v3")).description)
        print("slide-small" in list_presets(), "maze2d-umaze" in list_presets())
    """
    assert run(code, tmp_path, monkeypatch).splitlines() == [
        "['locomotion', 'maze2d', 'stacking', 'slide', 'gymnasium']",
        "slide-small slide",
        "something that slides",
        "True True",
    ]


def test_two_tasks_of_one_name_are_refused(tmp_path, monkeypatch):
    install(tmp_path, "slide_package", "maze2d = slide_package:TASK", TASKS)
    error = run("from diffplan.tasks.registry import find_task; find_task('maze2d')", tmp_path, monkeypatch)
    assert "ConfigError: task 'maze2d': expected one of that name, got diffplan.tasks.maze2d:TASK and" in error


def test_a_broken_package_does_not_take_the_others_with_it(tmp_path, monkeypatch):
    """It is told of where it is named itself; everything else goes on."""
    install(tmp_path, "broken_package", "broken = broken_package:TASK", "raise RuntimeError('broken\\nindeed')")
    install(tmp_path, "gone_package", "gone = gone_package:TASK", None)
    install(tmp_path, "slide_package", "slide = slide_package:TASK", TASKS)
    code = """
        import warnings
        from diffplan.config import EnvConfig
        from diffplan.errors import ConfigError
        from diffplan.tasks.pretrained import list_pretrained
        from diffplan.tasks.registry import find_experiment, find_frame, find_task, list_presets, task_of
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            print(task_of(EnvConfig(env_id="Pendulum-v1")).name, find_experiment("slide-small").name)
            print("maze2d-umaze" in list_presets(), "maze2d-umaze" in list_pretrained(), callable(find_frame("maze2d")))
        print(sorted({str(warning.message).split(":")[0] for warning in caught}))
        for name in ("broken", "gone"):
            try:
                find_task(name)
            except ConfigError as error:
                print(error)
    """
    lines = run(code, tmp_path, monkeypatch).splitlines()
    assert lines[:2] == ["gymnasium slide-small", "True True True"], lines
    assert lines[2] == "['task broken', 'task gone']"
    assert "importing broken_package failed: RuntimeError: broken" in lines[3]
    assert "gone_package" in lines[4]
    assert len(lines) == 5


def test_tasks_are_listed_without_torch_ray_or_pictures():
    code = """
        import sys
        from diffplan.tasks.registry import list_presets, list_tasks
        list_tasks(), list_presets()
        print({"torch", "ray", "matplotlib", "mujoco"} & set(sys.modules) or "none")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "none\n"), done.stderr

"""What holds for the tree as a whole."""

import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from diffplan import errors

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("folder", ["platform", "envs", "jobs"])
def test_source_roots_are_no_packages_and_hold_no_loose_modules(folder: str) -> None:
    # platform/__init__.py would shadow the standard library's module and break `import ray` from the root.
    assert not (ROOT / folder / "__init__.py").exists()
    if folder != "jobs":
        assert not list((ROOT / folder).glob("*.py"))


def test_the_standard_librarys_platform_is_found_from_the_root() -> None:
    code = "import platform, uuid; print(platform.system()); print(platform.__file__)"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert str(ROOT / "platform") not in output


def test_import_layers_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", [n for n in vars(errors) if n.endswith("Error")])
def test_errors_survive_pickling_through_ray(name: str) -> None:
    error = getattr(errors, name)("expected this, got that; do so")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)


def test_jobs_are_thin() -> None:
    for path in (ROOT / "jobs").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, path


def test_modules_own_one_idea() -> None:
    sources = [*(ROOT / "platform").rglob("*.py"), *(ROOT / "envs").rglob("*.py")]
    too_long = [str(path) for path in sources if len(path.read_text().splitlines()) > 400]
    assert not too_long


def test_the_wheel_holds_both_packages_and_works_outside_the_checkout(tmp_path: Path) -> None:
    wheels, installed = tmp_path / "wheels", tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", wheels, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = wheels.glob("diffplan-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {
        "diffplan/cli/main.py",
        "diffplan/cluster/train/driver.py",
        "diffplan_envs/maze2d.py",
        "diffplan_envs.pth",
    } <= set(names)
    example = ["git", "ls-files", "docs/examples/pushing"]
    kept = subprocess.run(example, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    template = {name for name in names if name.startswith("diffplan/template/")}
    assert template == {name.replace("docs/examples/pushing", "diffplan/template") for name in kept}
    assert not any(name.startswith(("platform/", "envs/", "tests/", "jobs/", "docs/")) for name in names)
    zipfile.ZipFile(wheel).extractall(installed)
    code = (
        "import diffplan, diffplan_envs, gymnasium;"
        "print(diffplan.__file__, diffplan_envs.__file__);"
        "gymnasium.make('diffplan/Maze2D-Large-v1').reset(seed=0);"
        "from diffplan.cli.scaffold import make_package; make_package('my_robot');"
        "from diffplan.cli import main; raise SystemExit(main(['--help']))"
    )
    environment = {"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(str(installed)) == 2
    assert (tmp_path / "my_robot" / "my_robot" / "task.py").is_file()

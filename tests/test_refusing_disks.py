"""Outputs that cannot be written: paths that lead nowhere, full disks, deleted directories."""

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.train import WorkerGroupError
from small_runs import collect

from diffplan.cli import main
from diffplan.cluster.event_files import CurveWriter
from diffplan.cluster.train.driver import _find_cause
from diffplan.config import with_overrides
from diffplan.errors import CheckpointError, describe_refusal
from diffplan.storage.store import LocalStore
from diffplan.tasks.registry import get_preset

COMMANDS = {
    "collect": "collect maze2d-umaze-smoke",
    "train": "train maze2d-umaze-smoke --data {data} --windows.max_horizon 36",
    "tune": "tune pretrained:maze2d-umaze",
    "evaluate": "evaluate baseline:random --env_id diffplan/Maze2D-UMaze-v1 --protocol maze2d --episodes 1",
    "pipeline": "pipeline maze2d-umaze-smoke",
    "plan": "plan pretrained:maze2d-umaze --start 1 1 --goal 3 1",
    "new": "new a_robot_of_nobody",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = with_overrides(
        get_preset("maze2d-umaze-smoke"),
        {"collection.num_steps": 600, "collection.episode_steps": 300, "collection.episodes_per_unit": 2},
    )
    return collect(config.env, config.collection, tmp_path_factory.mktemp("data") / "umaze")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["below a file", "too long", "nowhere"])
def test_an_output_that_cannot_be_made_is_one_line(
    command: str, kind: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    out = {"below a file": tmp_path / "file" / "x", "too long": tmp_path / ("x" * 300), "nowhere": "/proc/x"}[kind]
    assert main([*COMMANDS[command].format(data=data).split(), "--out", str(out)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert str(out) in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_working_directory_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").touch()
    monkeypatch.chdir(tmp_path)
    assert main(["pipeline", "maze2d-umaze-smoke"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"error: {tmp_path}/runs/maze2d-umaze-smoke-" in err
    assert "not a directory" in err


def test_a_full_disk_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space") as caught:
        LocalStore(tmp_path).replace("a/summary.json", b"{}")
    line = describe_refusal(caught.value)
    assert line is not None
    assert line.startswith(f"{tmp_path}/a: expected a file or directory that can be used, got no space left on device")
    assert describe_refusal(ConnectionRefusedError(errno.ECONNREFUSED, "refused")) is None
    assert describe_refusal(OSError("of a library")) is None


def test_curves_on_a_full_disk_are_one_kind_of_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="curves could not be written"):
        CurveWriter(str(tmp_path / "file" / "x"), 1)

    def fail() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = CurveWriter(str(tmp_path / "x"), 1)
    thread = type("Writer", (threading.Thread,), {"__module__": "tensorboard.summary"})(target=fail)
    thread.start()
    thread.join()
    writer.close()
    assert capfd.readouterr().err == ""


def test_the_error_of_a_worker_that_the_user_can_mend_is_found() -> None:
    for cause in (CheckpointError("full"), OSError(errno.ENOSPC, "full")):
        assert _find_cause(WorkerGroupError("Traceback …", {0: cause})) is cause


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=False).returncode:
        pytest.skip("needs the right to mount a disk")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", *(pytest.param(c, marks=pytest.mark.soak) for c in ("tune", "evaluate"))])
def test_a_disk_that_fills_up_is_one_line(command: str, data: Path, small_disk: Path) -> None:
    more = {
        "train": "--training.num_steps 4000 --network.dim 8 --training.checkpoint_interval 50 --training.batch_size 8",
        "tune": "--num_trials 200 --episodes_per_block 1",
        "evaluate": "--episodes_per_unit 2 --episodes 4000",
    }
    words = f"{COMMANDS[command].format(data=data)} --out {small_disk}/x {more[command]}".split()
    process = subprocess.Popen([sys.executable, "-m", "diffplan.cli", *words], stderr=subprocess.PIPE, text=True)
    while not (small_disk / "x").exists():
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(2)
    with (small_disk / "fill").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2, err
    assert "Traceback" not in err
    assert "no space left on device" in err.splitlines()[-1]

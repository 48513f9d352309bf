"""Checkpoints and runs of strangers: nothing is read or written outside their directories."""

import json
import os
import shutil
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from small_training import CONFIG

from diffplan.checkpoint import (
    is_checkpoint,
    is_uploaded,
    load_checkpoint,
    load_companion,
    load_training_state,
    publish_checkpoint,
    save_checkpoint,
    save_planning_checkpoint,
    upload_checkpoint,
)
from diffplan.cluster.train.storage import LocalRun, find_newest_checkpoint, list_checkpoints, publish, sweep
from diffplan.data.windows.normalization import Normalizer
from diffplan.errors import CheckpointError, StoreError
from diffplan.layout import Layout
from diffplan.planning.loading import load_planner
from diffplan.storage.store import LocalStore
from diffplan.training.state import TrainingState

LAYOUT = Layout(4, 2)
EVIL = b"bytes of a stranger"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as training writes it."""
    directory = tmp_path_factory.mktemp("whole")
    state = TrainingState(CONFIG, LAYOUT)
    save_checkpoint(
        directory,
        config=CONFIG,
        layout=LAYOUT,
        step=3,
        normalizer=Normalizer(np.zeros(6, np.float32), np.ones(6, np.float32)),
        weights=state.average_weights(),
        dataset={},
        training_state=state.state_dict(),
    )
    return directory


def name_file(directory: Path, name: str, content: bytes = EVIL) -> None:
    """Name a file in the record, with the right size and checksum."""
    path = directory / "config.json"
    record = json.loads(path.read_text())
    record["files"][name] = {"num_bytes": len(content), "crc32": zlib.crc32(content)}
    path.write_text(json.dumps(record))


def list_files(directory: Path) -> set[Path]:
    return {path for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name",
    ["../evil", "d/x", "/etc/hosts", "..", ".", "", "config.json", "x.py", "a\0.safetensors", "../a.safetensors", "é"],
)
def test_a_record_names_only_files_of_a_checkpoint(whole: Path, tmp_path: Path, name: str) -> None:
    step, elsewhere = tmp_path / "run" / "run" / "step_00000003", tmp_path / "elsewhere"
    shutil.copytree(whole, step)
    elsewhere.mkdir()
    (step / "d").symlink_to(elsewhere)
    (tmp_path / "run" / "d").symlink_to(elsewhere)
    for path in (elsewhere / "x", step / "x.py", step.parent / "evil", step.parent / "a.safetensors"):
        path.write_bytes(EVIL)
    name_file(step, name)
    before = list_files(tmp_path)
    for refused in (
        lambda: load_checkpoint(step),
        lambda: load_training_state(step),
        lambda: load_companion(step, "value"),
        lambda: publish_checkpoint(step, tmp_path / "run"),
        lambda: upload_checkpoint(step, LocalStore(tmp_path / "run"), ""),
    ):
        with pytest.raises(CheckpointError, match="expected the names of files of a checkpoint, got") as caught:
            refused()
        assert "\n" not in str(caught.value)
    assert not is_checkpoint(step)
    assert not is_uploaded(LocalStore(step), "")
    storage = LocalRun(tmp_path / "run")
    assert find_newest_checkpoint(storage) is None
    with pytest.raises(CheckpointError, match="ended without a checkpoint"):
        publish(storage)
    assert list_files(tmp_path) == before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "training_state.pt", "normalization.json"])
def test_a_file_of_a_checkpoint_is_no_link(whole: Path, tmp_path: Path, name: str) -> None:
    step = tmp_path / "step_3"
    shutil.copytree(whole, step)
    (step / name).rename(tmp_path / "kept")
    (step / name).symlink_to(tmp_path / "kept")
    assert not is_checkpoint(step)
    for refused in (
        lambda: publish_checkpoint(step, tmp_path / "published"),
        lambda: upload_checkpoint(step, LocalStore(tmp_path / "uploaded"), ""),
        lambda: load_training_state(step) if name == "training_state.pt" else load_checkpoint(step),
    ):
        with pytest.raises(CheckpointError, match=f"{name}: cannot be read .expected the file itself, got a symbolic"):
            refused()
    assert not (tmp_path / "published").exists()
    assert not (tmp_path / "uploaded").exists()


def test_the_directory_of_a_checkpoint_may_be_a_link(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(whole)
    assert load_checkpoint(tmp_path / "model").step == 3
    publish_checkpoint(tmp_path / "model", tmp_path / "published")
    assert is_checkpoint(tmp_path / "published")


def test_saving_and_publishing_replace_links_rather_than_what_they_lead_to(whole: Path, tmp_path: Path) -> None:
    mine, target = tmp_path / "mine", tmp_path / "target"
    target.mkdir()
    for write in (
        lambda: publish_checkpoint(whole, target),
        lambda: save_planning_checkpoint(target, load_checkpoint(whole)),
    ):
        mine.write_bytes(b"mine")
        for name in ("config.json", "model.safetensors", "normalization.json", "dataset.json"):
            (target / name).unlink(missing_ok=True)
            (target / name).symlink_to(mine)
        write()
        assert mine.read_bytes() == b"mine"
        assert is_checkpoint(target)


@pytest.mark.parametrize("linked", ["run", "run/step_00000003"])
def test_a_run_writes_and_deletes_nothing_through_a_link(whole: Path, tmp_path: Path, linked: str) -> None:
    root, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    shutil.copytree(whole, elsewhere if linked != "run" else elsewhere / "step_00000003")
    (root / linked).parent.mkdir(parents=True)
    os.symlink(elsewhere, root / linked)
    before = {path: path.read_bytes() for path in list_files(elsewhere)}
    storage = LocalRun(root)
    for write in (
        lambda: storage.put_checkpoint(whole, "run/step_00000003"),
        lambda: storage.write("run/step_00000003/config.json", b""),
    ):
        with pytest.raises(StoreError, match="expected a directory, got a symbolic link"):
            write()
    if linked == "run":
        for resume in (find_newest_checkpoint, sweep):
            with pytest.raises(StoreError, match="expected a directory, got a symbolic link"):
                resume(storage)
    else:
        assert find_newest_checkpoint(storage) is None
        sweep(storage)
        assert not (root / linked).is_symlink()
    assert {path: path.read_bytes() for path in list_files(elsewhere)} == before


def test_directories_without_a_step_are_no_checkpoints_of_a_run(tmp_path: Path) -> None:
    for name in ("step_", "step_x", "step_00000002", "step_-1", "step_٣"):
        (tmp_path / "run" / name).mkdir(parents=True)
    assert list_checkpoints(LocalRun(tmp_path)) == ["run/step_00000002"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *(({"step": value}, "step: expected a whole number") for value in (-1, None, "4", True, 1.5)),
        *(({"observation_dim": value}, "observation_dim: expected") for value in (0, None, [], 10**9)),
        *(({"return_range": value}, "return_range: expected") for value in ([1], [1, "2"], {}, [0, float("nan")], 3)),
        *(({"files": value}, "files: expected") for value in (None, [], 3)),
        *(
            ({"files": {"model.safetensors": {"num_bytes": value, "crc32": 1}}}, "expected a number of num_bytes")
            for value in (-1, "4", None, 1.5, True, 10**30)
        ),
        ({"files": {"model.safetensors": 3}}, "expected a number of num_bytes for model.safetensors, got None"),
        ({"files": {"model.safetensors": {"num_bytes": 1}}}, "expected a number of crc32"),
        ({"config": None}, "config: expected an object"),
    ],
)
def test_a_field_of_the_record_of_the_wrong_kind_is_named(
    whole: Path, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    path = tmp_path / "copy" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    for refused in (
        lambda: load_checkpoint(tmp_path / "copy"),
        lambda: load_training_state(tmp_path / "copy"),
        lambda: publish_checkpoint(tmp_path / "copy", tmp_path / "published"),
    ):
        with pytest.raises(CheckpointError, match=words) as caught:
            refused()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not is_uploaded(LocalStore(tmp_path / "copy"), "")


@pytest.mark.parametrize("network", [{"dim": 16_384}, {"kind": "transformer", "dim": 8_192, "depth": 1_000}])
def test_a_network_is_not_made_larger_than_its_weights(whole: Path, tmp_path: Path, network: dict[str, object]) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    path = tmp_path / "copy" / "config.json"
    record = json.loads(path.read_text())
    record["config"]["network"] |= network
    path.write_text(json.dumps(record))
    since = time.monotonic()
    with pytest.raises(CheckpointError, match=r"the weights belong to another network \(.*expected .* got "):
        load_planner(tmp_path / "copy")
    assert time.monotonic() - since < 30

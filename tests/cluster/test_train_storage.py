import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from s3_server import S3Server, run_s3_server
from training_curves import assert_equal_weights, read_scalars, train_without_ray

from diffplan import cli, load_planner
from diffplan.checkpoint import (
    CONFIG,
    TRAINING_STATE,
    fetch_checkpoint,
    is_checkpoint,
    is_uploaded,
    load_checkpoint,
    load_companion,
    load_training_state,
    save_companion,
)
from diffplan.cluster.train.driver import train_on_cluster
from diffplan.cluster.train.storage import (
    RAY_NOTE,
    LocalRun,
    find_newest_checkpoint,
    has_run,
    list_checkpoints,
    make_scratch_directory,
    open_run,
    sweep,
    sweep_scratch_directories,
)
from diffplan.config import Config, with_overrides
from diffplan.errors import CheckpointError, StoreError
from diffplan.storage.opening import open_store

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with run_s3_server() as server:
        yield server


@pytest.fixture
def url(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DIFFPLAN_CACHE", str(tmp_path / "cache"))
    bucket = f"b-{time.time_ns()}"
    server.client().create_bucket(Bucket=bucket)
    return f"s3://{bucket}/runs/one"


@pytest.mark.slow
def test_a_run_lives_in_an_object_store(tiny_config: Config, tiny_dataset: Path, tmp_path: Path, url: str) -> None:
    config = with_overrides(tiny_config, {"training.lr_schedule": "constant", "training.picture_interval": 0})
    assert train_on_cluster(config, tiny_dataset, url, cpus_per_worker=1) == url
    store = open_store(url)
    assert list_checkpoints(open_run(url)) == ["run/step_00000008", "run/step_00000012"]
    assert_equal_weights(load_checkpoint(url).weights, train_without_ray(config, tiny_dataset).average_weights(), 0.0)
    planner = load_planner(url)
    (plan,) = planner.plan(np.ones((1, 4), np.float32), np.ones((1, 2), np.float32), torch.Generator().manual_seed(0))
    assert np.isfinite(plan.observations).all()
    with pytest.raises(CheckpointError, match=f"{url}: there is a training run already; go on with it by --resume"):
        train_on_cluster(config, tiny_dataset, url)
    for value in (1.0, 2.0):
        save_companion(url, "any", {"a": torch.tensor([value])}, {"b": 3})
        tensors, settings = load_companion(url, "any") or ({}, {})
        assert (tensors["a"].tolist(), settings) == ([value], {"b": 3})
    with pytest.raises(CheckpointError, match=f"{url}-none: expected a checkpoint"):
        save_companion(f"{url}-none", "any", {}, {})

    store.delete("run/step_00000012/model.safetensors")  # an upload that was cut short
    longer = with_overrides(config, {"training.num_steps": 20})
    train_on_cluster(longer, tiny_dataset, url, cpus_per_worker=1, resume=True)
    assert_equal_weights(load_checkpoint(url).weights, train_without_ray(longer, tiny_dataset).average_weights(), 0.0)
    assert load_training_state(url)["step"] == 20
    events = tmp_path / "events"
    events.mkdir()
    for stored in store.list("tensorboard"):
        (events / Path(stored.name).name).write_bytes(store.read(stored.name))
    assert sorted(read_scalars(events, "train/loss")) == list(range(2, 21, 2))


def test_a_missing_bucket_is_one_line(
    tiny_dataset: Path, url: str, capsys: pytest.CaptureFixture[str], server: S3Server
) -> None:
    arguments = ["train", "maze2d-umaze-smoke", "--data", str(tiny_dataset), "--out", "s3://there-is-none-of-this/run"]
    assert cli.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected a bucket" in line
    names = [bucket["Name"] for bucket in server.client().list_buckets()["Buckets"]]
    assert "there-is-none-of-this" not in names


def test_a_checkpoint_of_a_store_is_copied_once_and_checked(tiny_checkpoint: Path, url: str, tmp_path: Path) -> None:
    storage, store = open_run(url), open_store(url)
    with pytest.raises(CheckpointError, match="expected a checkpoint"):
        load_checkpoint(url)
    storage.put_checkpoint(tiny_checkpoint, "")
    copy = fetch_checkpoint(url)
    assert copy.is_relative_to(tmp_path / "cache")
    assert not (copy / TRAINING_STATE).exists()  # planning does not need it
    before = (copy / "model.safetensors").stat().st_mtime_ns
    assert fetch_checkpoint(url, training_state=True) == copy
    assert is_checkpoint(copy)
    assert (copy / "model.safetensors").stat().st_mtime_ns == before
    (copy / "model.safetensors").write_bytes(bytes((copy / "model.safetensors").stat().st_size))
    with pytest.raises(CheckpointError, match="checksum"):
        load_checkpoint(url)
    store.write(CONFIG, [b"{}"])
    with pytest.raises(CheckpointError, match="expected the description of a checkpoint"):
        load_checkpoint(url)


@pytest.mark.parametrize("kind", ["directory", "file", "s3"])
def test_what_a_run_keeps(kind: str, tiny_checkpoint: Path, url: str, tmp_path: Path) -> None:
    where = {"directory": str(tmp_path / "run"), "file": f"file://{tmp_path}/run", "s3": url}[kind]
    storage = open_run(where)
    assert isinstance(storage, LocalRun) is (kind != "s3")
    assert not has_run(storage)
    assert find_newest_checkpoint(storage) is None
    sweep(storage)
    for step in (4, 8, 12):
        storage.put_checkpoint(tiny_checkpoint, f"run/step_{step:08d}")
    storage.write("run/step_00000016/model.safetensors", b"half")
    storage.write(f"run/{RAY_NOTE}", b"{")
    assert has_run(storage)
    assert find_newest_checkpoint(storage) == "run/step_00000012"
    storage.delete("run/step_00000012/training_state.pt")
    assert find_newest_checkpoint(storage) == "run/step_00000008"
    sweep(storage)
    assert list_checkpoints(storage) == ["run/step_00000004", "run/step_00000008"]
    with pytest.raises(FileNotFoundError):
        storage.read(f"run/{RAY_NOTE}")
    with storage.fetch("run/step_00000008") as directory:
        assert is_checkpoint(directory)
    storage.write("pinned.json", b"1")
    storage.write("pinned.json", b"22")
    assert storage.read("pinned.json") == b"22"
    if kind == "s3":
        assert is_uploaded(open_store(url), "run/step_00000008")
    scratch = make_scratch_directory(storage)
    assert scratch.is_dir()
    sweep_scratch_directories(storage)
    assert not scratch.exists()


def test_a_store_that_does_not_answer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StoreError, match="no answer"):
        has_run(open_run("s3://bucket/run"))

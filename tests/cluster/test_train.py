import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_curves import assert_equal_weights, read_scalars, train_without_ray

from diffplan.checkpoint import is_checkpoint, load_checkpoint, load_training_state
from diffplan.cluster.train.driver import train_on_cluster
from diffplan.config import Config, with_overrides
from diffplan.data.format.dataset import open_dataset
from diffplan.errors import CheckpointError, ConfigError, DataError
from diffplan.planning.loading import load_planner

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def test_ray_train_gives_what_the_plain_loop_gives(
    tiny_config: Config, tiny_dataset: Path, tiny_checkpoint: Path
) -> None:
    expected = train_without_ray(tiny_config, tiny_dataset)
    checkpoint = load_checkpoint(tiny_checkpoint)
    assert checkpoint.step == tiny_config.training.num_steps
    assert checkpoint.config == tiny_config
    assert_equal_weights(checkpoint.weights, expected.average_weights(), 0.0)
    assert checkpoint.dataset["uuid"] == open_dataset(tiny_dataset).manifest.dataset_uuid
    assert checkpoint.dataset["snapshot"] == 0


@pytest.mark.slow
def test_pictures_need_no_companions(tiny_config: Config, tiny_dataset: Path, tmp_path: Path) -> None:
    changes = {"planning.controller": "inverse_dynamics", "planning.horizon.rule": "predict"}
    short = {"training.num_steps": 4, "training.picture_interval": 2}
    train_on_cluster(with_overrides(tiny_config, {**changes, **short}), tiny_dataset, tmp_path / "checkpoint")
    assert load_checkpoint(tmp_path / "checkpoint").step == 4


def test_tensorboard_holds_each_step_once_and_a_picture(tiny_config: Config, tiny_checkpoint: Path) -> None:
    losses = read_scalars(tiny_checkpoint / "tensorboard", "train/loss")
    assert sorted(losses) == [2, 4, 6, 8, 10, 12]
    events = EventAccumulator(str(tiny_checkpoint / "tensorboard"))
    events.Reload()
    (picture,) = events.Images("plans")
    assert picture.step == 12
    assert picture.width > 100
    assert picture.encoded_image_string.startswith(b"\x89PNG")


@pytest.mark.slow
def test_two_gloo_workers_train_as_one(
    tiny_config: Config, tiny_dataset: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = train_on_cluster(tiny_config, tiny_dataset, tmp_path / "two", num_workers=2, cpus_per_worker=1)
    one = read_scalars(tiny_checkpoint / "tensorboard", "train/loss")
    two = read_scalars(out / "tensorboard", "train/loss")
    # Losses, not weights: some biases stand before a normalisation and have no gradient, so Adam moves them by
    # rounding errors alone.
    assert two == pytest.approx(one, rel=1e-4)
    assert two[12] < one[2]


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(tiny_config: Config, tiny_dataset: Path, tmp_path: Path) -> None:
    config = with_overrides(
        tiny_config,
        {"training.num_steps": 600, "training.checkpoint_interval": 50, "training.picture_interval": 0},
    )
    out = tmp_path / "killed"
    killed: list[int] = []

    def kill_once() -> None:
        while not killed:
            time.sleep(0.02)
            if not list((out / "run").glob("step_*")):
                continue
            for process in psutil.Process().children(recursive=True):  # those of this test's own cluster
                with contextlib.suppress(psutil.NoSuchProcess):
                    if not any("RayTrainWorker" in part for part in process.cmdline()):
                        continue
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    return

    thread = threading.Thread(target=kill_once, daemon=True)
    thread.start()
    train_on_cluster(config, tiny_dataset, out, cpus_per_worker=1)
    thread.join(timeout=5)
    assert killed, "the worker was never struck"
    checkpoint = load_checkpoint(out)
    assert checkpoint.step == 600
    assert_equal_weights(checkpoint.weights, train_without_ray(config, tiny_dataset).average_weights(), 0.0)
    assert sorted(read_scalars(out / "tensorboard", "train/loss")) == list(range(2, 601, 2))


def test_resuming_goes_on_from_the_last_checkpoint(tiny_config: Config, tiny_dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "checkpoint"
    train_on_cluster(
        with_overrides(tiny_config, {"training.lr_schedule": "constant"}), tiny_dataset, out, cpus_per_worker=1
    )
    with pytest.raises(CheckpointError, match="--resume"):
        train_on_cluster(tiny_config, tiny_dataset, out)
    longer = with_overrides(tiny_config, {"training.lr_schedule": "constant", "training.num_steps": 20})
    train_on_cluster(longer, tiny_dataset, out, cpus_per_worker=1, resume=True)
    assert load_training_state(out)["step"] == 20
    assert_equal_weights(load_checkpoint(out).weights, train_without_ray(longer, tiny_dataset).average_weights(), 0.0)
    assert is_checkpoint(out)


@pytest.mark.slow
def test_an_interrupted_training_goes_on(tiny_config: Config, tiny_dataset: Path, tmp_path: Path) -> None:
    """A real command in a real process with its own Ray, interrupted by Ctrl-C."""
    out, config_overrides = tmp_path / "checkpoint", {"training.num_steps": 400, "training.picture_interval": 0}
    flags = [
        "--network.dim", "8", "--network.dim_mults", "1", "2", "--training.batch_size", "8",
        "--training.num_steps", "400", "--training.checkpoint_interval", "20", "--training.picture_interval", "0",
        "--training.log_interval", "2", "--training.num_warmup_steps", "2", "--training.ema_start_step", "2",
        "--planning.horizon.max", "16", "--planning.sampling.num_steps", "2",
        "--planning.selection.num_candidates", "1", "--planning.replanning.max_deviation", "0",
    ]  # fmt: skip
    command = [sys.executable, "-m", "diffplan.cli", "train", "maze2d-umaze-smoke", "--data", str(tiny_dataset)]
    command += ["--out", str(out), "--cpus_per_worker", "1", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list((out / "run").glob("step_*/config.json")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "--resume" in err
    assert not is_checkpoint(out)  # nothing is published before the run is complete
    config = with_overrides(tiny_config, {**config_overrides, "training.checkpoint_interval": 20})
    train_on_cluster(config, tiny_dataset, out, cpus_per_worker=1, resume=True)
    assert_equal_weights(load_checkpoint(out).weights, train_without_ray(config, tiny_dataset).average_weights(), 0.0)


def test_what_cannot_work_is_refused_before_workers_start(
    tiny_config: Config, tiny_dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="multiple of num_workers"):
        train_on_cluster(tiny_config, tiny_dataset, tmp_path / "a", num_workers=3)
    with pytest.raises(DataError, match="longest episode has 300"):
        train_on_cluster(with_overrides(tiny_config, {"windows.max_horizon": 200}), tiny_dataset, tmp_path / "b")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_value_function_trains_on_the_cluster_and_stops_early(
    tiny_config: Config, tiny_dataset: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    overrides = {
        "training.objective": "value",
        "training.learning_rate": 1e-12,  # so that the held-out loss does not fall
        "training.num_steps": 200,
        "training.validation_fraction": 0.3,
        "training.validation_interval": 2,
        "training.patience": 2,
    }
    config = with_overrides(tiny_config, overrides)
    out = train_on_cluster(config, tiny_dataset, tmp_path / "value", cpus_per_worker=1)
    checkpoint = load_checkpoint(out)
    assert checkpoint.step < 200
    assert sorted(read_scalars(out / "tensorboard", "validation/loss")) == list(range(2, checkpoint.step + 1, 2))
    planner = load_planner(tiny_checkpoint, with_overrides(tiny_config.planning, {"guidance.value": str(out)}))
    assert planner.value is not None

"""What a training does when it is told that its end is near."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from training_curves import assert_equal_weights, read_scalars, train_without_ray

from diffplan.checkpoint import is_checkpoint, load_checkpoint
from diffplan.cli.run_status import read_status
from diffplan.cluster.train.driver import train_on_cluster
from diffplan.cluster.train.storage import list_checkpoints, open_run
from diffplan.config import Config, config_to_json, with_overrides
from diffplan.runs.usage import read_usage

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

SCRIPTS = Path(__file__).parent


@pytest.fixture
def config(tiny_config: Config) -> Config:
    """A run that writes no checkpoint by itself before its end."""
    return with_overrides(
        tiny_config,
        {
            "training.num_steps": 3_000,
            "training.checkpoint_interval": 100_000,
            "training.picture_interval": 0,
            "training.log_interval": 10,
        },
    )


def start(script: str, config: Config, data: Path, out: Path) -> subprocess.Popen:
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address, "CONFIG": config_to_json(config)}
    command = [sys.executable, str(SCRIPTS / script), str(data), str(out)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(is_so: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


def test_a_training_that_is_told_to_end_saves_its_last_steps_first(
    config: Config, tiny_dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start("train_job.py", config, tiny_dataset, out)
    wait_until(lambda: any(usage.done for usage in read_usage(out)), process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "train: told to end; saving a checkpoint first" in err
    assert "interrupted; what is done is kept: go on with --resume" in err
    assert "Traceback" not in err
    (saved,) = list_checkpoints(open_run(out))
    step = int(saved.rpartition("_")[2])
    assert 0 < step < 3_000
    assert not is_checkpoint(out)
    (stage,) = read_status(out)
    assert (stage.state, stage.done) == ("interrupted", step)

    train_on_cluster(config, tiny_dataset, out, cpus_per_worker=1, resume=True)
    assert_equal_weights(load_checkpoint(out).weights, train_without_ray(config, tiny_dataset).average_weights(), 0.0)
    assert sorted(read_scalars(out / "tensorboard", "train/loss")) == list(range(10, 3_001, 10))


def test_a_training_that_has_not_begun_ends_at_once(config: Config, tiny_dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start("train_job.py", config, tiny_dataset, out)
    wait_until(lambda: bool(read_usage(out)), process)  # its workers are being started
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "interrupted; what is done is kept: go on with --resume" in err
    assert "Traceback" not in err
    assert not list_checkpoints(open_run(out))


def test_a_training_saves_its_last_steps_before_its_node_is_taken_away(
    config: Config, tiny_dataset: Path, tmp_path: Path
) -> None:
    """A cluster of its own, whose node is announced to go."""
    out = tmp_path / "out"
    process = start("train_on_drained_node.py", config, tiny_dataset, out)
    out_text, err = process.communicate(timeout=180)
    assert process.returncode == 0, out_text + err
    assert "train: a node will be taken away; saving a checkpoint" in err
    assert "saved after the announcement" in out_text

import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import ray
from ray.exceptions import ActorDiedError
from ray.train import ControllerError, ScalingConfig, WorkerGroupError
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.util import placement_group_table
from training_curves import assert_equal_weights, read_scalars, train_without_ray

from diffplan.checkpoint import load_checkpoint
from diffplan.cluster.ray_private import FailureDecision, WorkerGroup
from diffplan.cluster.train.driver import train_on_cluster
from diffplan.cluster.train.elastic import MAX_FAILURES, RunTrainer, _EvenShares, _FailuresInARow, find_sizes
from diffplan.cluster.train.storage import RAY_NOTE, find_newest_checkpoint, list_checkpoints, open_run, sweep
from diffplan.config import Config, config_to_json, with_overrides
from diffplan.errors import ConfigError, DataError, StoreError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

SCRIPTS = Path(__file__).parent


@pytest.mark.slow
def test_a_run_goes_on_after_its_driver_was_killed(tiny_config: Config, tiny_dataset: Path, tmp_path: Path) -> None:
    """A job on a cluster whose driver is gone at once; the cluster stays."""
    config = with_overrides(
        tiny_config, {"training.num_steps": 300, "training.checkpoint_interval": 20, "training.picture_interval": 0}
    )
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, str(SCRIPTS / "train_job.py"), str(tiny_dataset), str(out)],
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address, "CONFIG": config_to_json(config)},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list((out / "run").glob("step_*/config.json")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "config.json").exists()  # nothing is published before the run is complete
    train_on_cluster(config, tiny_dataset, out, cpus_per_worker=1, resume=True)
    assert_equal_weights(load_checkpoint(out).weights, train_without_ray(config, tiny_dataset).average_weights(), 0.0)
    assert sorted(read_scalars(out / "tensorboard", "train/loss")) == list(range(2, 301, 2))
    assert len(list_checkpoints(open_run(out))) == 2


@pytest.mark.slow
def test_a_run_grows_with_the_cluster_and_survives_a_node(
    tiny_config: Config, tiny_dataset: Path, tmp_path: Path
) -> None:
    """Two nodes of a cluster of its own: one worker, then two, then the node of one is killed."""
    config = with_overrides(
        tiny_config, {"training.num_steps": 100_000, "training.checkpoint_interval": 50, "training.picture_interval": 0}
    )
    out = tmp_path / "out"
    subprocess.run(
        [sys.executable, str(SCRIPTS / "train_on_nodes.py"), str(tiny_dataset), str(out)],
        env={**os.environ, "CONFIG": config_to_json(config)},
        check=True,
        timeout=180,
    )
    num_workers = read_scalars(out / "tensorboard", "time/num_workers")
    steps = sorted(num_workers)
    assert steps == list(range(2, steps[-1] + 1, 2))
    sizes = [int(num_workers[step]) for step in steps]
    assert [size for before, size in pairwise([0, *sizes]) if size != before] == [1, 2, 1]


@pytest.mark.slow
def test_workers_that_die_at_their_start_leave_no_places_taken(
    tiny_config: Config, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    struck = tmp_path / "struck"
    struck.mkdir()

    class Killer(WorkerGroupCallback):
        def after_worker_group_start(self, worker_group: WorkerGroup) -> None:
            if len(list(struck.iterdir())) < 2:
                (struck / str(time.monotonic())).touch()
                ray.kill(worker_group.get_workers()[0].actor)

    make_callbacks = RunTrainer._create_default_callbacks
    monkeypatch.setattr(RunTrainer, "_create_default_callbacks", lambda trainer: [*make_callbacks(trainer), Killer()])
    out = train_on_cluster(tiny_config, tiny_dataset, tmp_path / "out", cpus_per_worker=1)
    assert len(list(struck.iterdir())) == 2
    states = [group["state"] for group in placement_group_table().values()]
    assert len(states) >= 3
    assert set(states) == {"REMOVED"}
    expected = train_without_ray(tiny_config, tiny_dataset).average_weights()
    assert_equal_weights(load_checkpoint(out).weights, expected, 0.0)


@pytest.mark.slow
def test_only_whole_checkpoints_are_gone_on_from(
    tiny_config: Config, tiny_dataset: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """What is left when power fails: a checkpoint that is cut short, a note of Ray's that is, and one from nowhere."""
    out = tmp_path / "out"
    shutil.copytree(tiny_checkpoint, out)
    storage = open_run(out)
    assert list_checkpoints(storage) == ["run/step_00000008", "run/step_00000012"]
    newest = out / "run/step_00000012/training_state.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    (out / "run/step_00000010").mkdir()
    (out / "run/step_00000010/.tmp-1").write_bytes(b"half a")
    (out / "run" / RAY_NOTE).write_text('{"ray_version": "2.')
    assert find_newest_checkpoint(storage) == "run/step_00000008"
    train_on_cluster(tiny_config, tiny_dataset, out, cpus_per_worker=1, resume=True)
    expected = load_checkpoint(tiny_checkpoint)
    assert_equal_weights(load_checkpoint(out).weights, expected.weights, 0.0)
    assert sorted(read_scalars(out / "tensorboard", "train/loss")) == list(range(2, 13, 2))
    assert list_checkpoints(storage) == ["run/step_00000008", "run/step_00000012"]
    assert not list(out.rglob(".tmp-*"))
    sweep(storage)
    assert list_checkpoints(storage) == ["run/step_00000008", "run/step_00000012"]


def test_a_run_starts_with_the_workers_that_there_is_room_for(
    tiny_config: Config, tiny_dataset: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = train_on_cluster(tiny_config, tiny_dataset, tmp_path / "out", num_workers=4, min_workers=1, cpus_per_worker=2)
    assert set(read_scalars(Path(out) / "tensorboard", "time/num_workers").values()) == {1}
    one = read_scalars(tiny_checkpoint / "tensorboard", "train/loss")
    assert read_scalars(Path(out) / "tensorboard", "train/loss") == pytest.approx(one, rel=1e-4)


def test_workers_always_share_a_batch_evenly() -> None:
    assert find_sizes(32, 4, None) == [4]
    assert find_sizes(32, 4, 1) == [1, 2, 4]
    assert find_sizes(32, 7, 3) == [4]
    with pytest.raises(ConfigError, match=r"expected a multiple of a number in 3\.\.3, got 32"):
        find_sizes(32, 3, 3)
    with pytest.raises(ConfigError, match=r"expected a multiple of num_workers \(3\), got 32"):
        find_sizes(32, 3, None)
    with pytest.raises(ConfigError, match=r"min_workers: expected at most num_workers \(2\), got 3"):
        find_sizes(32, 2, 3)
    with pytest.raises(ConfigError, match=r"min_workers: expected at least 1, got 0"):
        find_sizes(32, 2, 0)
    policy = _EvenShares(ScalingConfig(num_workers=(1, 4), resources_per_worker={"CPU": 2}), "key", [1, 2, 4])
    nodes = {"a": {"CPU": 5.0}, "b": {"CPU": 3.0}}
    assert policy._count_possible_workers(nodes) == 2  # room for three
    assert policy._count_possible_workers({"a": {"CPU": 1.0}}) == 0
    assert policy._count_possible_workers({"a": {"CPU": 64.0}}) == 4


def test_failures_count_in_a_row(tmp_path: Path, tiny_checkpoint: Path) -> None:
    storage = open_run(tmp_path)
    policy = _FailuresInARow(storage)
    died = WorkerGroupError("a worker died", {0: ActorDiedError()})
    assert [policy.make_decision(died) for _ in range(MAX_FAILURES)] == [FailureDecision.RETRY] * MAX_FAILURES
    storage.put_checkpoint(tiny_checkpoint, "run/step_00000012")
    assert [policy.make_decision(died) for _ in range(MAX_FAILURES)] == [FailureDecision.RETRY] * MAX_FAILURES
    assert policy.make_decision(died) is FailureDecision.RAISE
    lost = ControllerError(ActorDiedError())  # while the workers were being started
    assert [policy.make_decision(lost) for _ in range(MAX_FAILURES)] == [FailureDecision.RETRY] * MAX_FAILURES
    assert policy.make_decision(lost) is FailureDecision.RAISE
    assert policy.make_decision(ControllerError(ValueError("a defect"))) is FailureDecision.RAISE
    policy = _FailuresInARow(storage)
    assert policy.make_decision(WorkerGroupError("", {0: StoreError("no answer")})) is FailureDecision.RETRY
    assert policy.make_decision(WorkerGroupError("", {0: DataError("damaged")})) is FailureDecision.RAISE

"""Fit a diffuser with Ray Train on any number of CPU or GPU workers."""

from __future__ import annotations

import json
import signal
import threading
import time
import warnings
from pathlib import Path
from typing import Any, Self

import ray
import ray.train
from ray.exceptions import RayError
from ray.train import CheckpointConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from diffplan.cluster.runtime import (
    WAITING_SECONDS,
    beside_driver,
    count_gpus,
    describe_free,
    find_draining_nodes,
    has_pending_placement,
    on_termination,
    ray_session,
    require_resources,
)
from diffplan.cluster.store_variables import find_variables
from diffplan.cluster.train.elastic import RunTrainer, find_sizes
from diffplan.cluster.train.storage import (
    NUM_CHECKPOINTS,
    RunStorage,
    find_newest_step,
    has_run,
    open_run,
    publish,
    sweep,
)
from diffplan.cluster.train.worker import train_worker
from diffplan.cluster.units import unwrap
from diffplan.config import Config, config_to_json
from diffplan.data.format.dataset import TrajectoryDataset, open_dataset, write_snapshot
from diffplan.data.maintenance.oddities import find_oddities
from diffplan.errors import CheckpointError, DataError, DiffplanError, Terminated
from diffplan.files import parse_json
from diffplan.runs.layout import PIN_NAME, RUN_NAME, TENSORBOARD
from diffplan.runs.progress import Progress
from diffplan.runs.usage import UsageRecorder, record_usage
from diffplan.training.batches import index_windows
from diffplan.training.conditions import check_condition
from diffplan.training.environment import check_environment
from diffplan.training.loop import Request
from diffplan.training.objectives import make_objective

RESIZE_SECONDS = 60.0
"""Seconds between two checks whether an elastic run could have more workers; adding them costs a restart."""


@ray.remote(num_cpus=0)
class ProgressBoard:
    """Holds the newest progress of a run for the driver, and the requests of the driver to its workers."""

    def __init__(self, variables: dict[str, str]) -> None:
        self._latest: dict[str, float] = {}
        self._variables = variables
        self._request = Request.NOTHING

    def get_variables(self) -> dict[str, str]:
        """Endpoint and credentials of the dataset's store; not in the config of the run, which Ray shows and stores."""
        return self._variables

    def post(self, latest: dict[str, float]) -> None:
        """Publish new progress."""
        self._latest = latest

    def read(self) -> dict[str, float]:
        """The newest progress; empty before there is any."""
        return self._latest

    def request(self, request: int) -> None:
        """Make a request to the workers; see `Request`."""
        self._request = max(self._request, Request(request))

    def take_request(self) -> int:
        """The present request; a request for a checkpoint is returned only once."""
        request = self._request
        if request == Request.CHECKPOINT:
            self._request = Request.NOTHING
        return int(request)


def train_on_cluster(
    config: Config,
    data: str | Path,
    out: str | Path,
    *,
    num_workers: int = 1,
    min_workers: int | None = None,
    cpus_per_worker: int | None = None,
    use_gpu: bool | None = None,
    resume: bool = False,
    tensorboard: str | Path | None = None,
    verify_on_read: bool = False,
    is_other_env: bool = False,
    resize_seconds: float = RESIZE_SECONDS,
) -> Path | str:
    """Train a diffuser and leave its checkpoint in `out`.

    Args:
        config: the experiment.
        data: directory or URL of the dataset; the run is pinned to its newest snapshot.
        out: directory or URL of the checkpoint; all workers must see the directory.
        num_workers: data-parallel workers; the global batch does not change with it.
        min_workers: fewest workers to train with if the cluster has no room for `num_workers`; None to wait
            for all of them.
        cpus_per_worker: CPUs of each worker; None shares those of the cluster where there are no GPUs.
        use_gpu: whether each worker has a GPU; None for yes if the cluster has enough of them now. True waits for them
            where nodes are added on demand.
        resume: continue an existing run.
        tensorboard: directory or URL of TensorBoard files; None for `out/tensorboard`.
        verify_on_read: verify the checksums of all data before training uses them.
        is_other_env: whether `config` names another environment than the data on purpose.
        resize_seconds: time between two checks whether there could be more workers, with `min_workers`.

    Returns:
        The checkpoint: `out` as an absolute path or URL.

    Raises:
        ConfigError: no number of workers in the range shares the batch evenly, the data are of another environment,
            or a column is out of range.
        DataError: the dataset is missing or damaged, or its episodes are too short.
        CheckpointError: there is a run already and `resume` is not set.
        StoreError: the store of a URL cannot be reached.
        ClusterError: too few CPUs or GPUs, or workers that keep dying.
    """
    storage = open_run(out)
    dataset = open_dataset(data)
    check_environment(config, dataset, is_other=is_other_env)
    sizes = find_sizes(config.training.batch_size, num_workers, min_workers)
    if has_run(storage) and not resume:
        raise CheckpointError(
            f"{storage.uri}: there is a training run already; go on with it by --resume, or take another --out"
        )
    for held_out in (False, True) if config.training.validation_fraction else (False,):
        index_windows(dataset, config, held_out=held_out)  # raises here, in one line, rather than in the workers
    check_condition(config.network, dataset)  # likewise
    if not has_run(storage):
        for line in find_oddities(dataset, make_objective(config).windows):
            warnings.warn(f"{dataset.uri}: {line}", stacklevel=2)
    if verify_on_read:
        dataset.verify_shards()  # likewise; workers compare again what they read
    dataset = _pin(dataset, storage)
    sweep(storage)
    with ray_session():
        if use_gpu is None:
            use_gpu = count_gpus() >= sizes[0]
        if cpus_per_worker is None:
            cpus_per_worker = 1 if use_gpu else max(int(ray.cluster_resources().get("CPU", 1)) // sizes[-1], 1)
        each: dict[str, float] = {"CPU": cpus_per_worker, "GPU": int(use_gpu)}
        require_resources(
            sizes[0],
            each,
            f"{sizes[0]} training worker{'s' if sizes[0] > 1 else ''}",
            {
                "CPU": "lower --num_workers or --cpus_per_worker, or give --min_workers",
                "GPU": "leave out --use_gpu, lower --num_workers, or take a cluster with more GPUs",
            },
        )
        board = ProgressBoard.options(scheduling_strategy=beside_driver()).remote(find_variables())
        trainer = RunTrainer(
            train_worker,
            storage=storage,
            sizes=sizes,
            train_loop_config={
                "config": config_to_json(config),
                "data": dataset.uri,
                "snapshot": dataset.snapshot,
                "dataset_uuid": dataset.manifest.dataset_uuid,
                "out": storage.uri,
                "tensorboard": _absolute(tensorboard) if tensorboard else f"{storage.uri}/{TENSORBOARD}",
                "num_threads": cpus_per_worker,
                "board": board,
                "verify": verify_on_read,
            },
            scaling_config=ScalingConfig(
                num_workers=sizes[-1] if min_workers is None else (sizes[0], sizes[-1]),
                use_gpu=use_gpu,
                resources_per_worker={"CPU": cpus_per_worker},
                elastic_resize_monitor_interval_s=resize_seconds,
            ),
            run_config=RunConfig(
                name=RUN_NAME,
                checkpoint_config=CheckpointConfig(num_to_keep=NUM_CHECKPOINTS),
                **storage.ray_storage(),
            ),
        )
        # An elastic run is counted with its minimum of workers until its first report has their number.
        usage = record_usage(
            storage.uri,
            "train",
            cpus=sizes[0] * cpus_per_worker,
            gpus=sizes[0] if use_gpu else 0,
            total=config.training.num_steps,
            unit="steps",
            initial=find_newest_step(storage),
        )
        with usage as recorder:
            with (
                _ShownProgress(board, config.training.num_steps, recorder, each) as shown,
                on_termination(shown.terminate),
            ):
                _fit(trainer)
            if shown.is_terminated and find_newest_step(storage) < config.training.num_steps:
                raise Terminated
            publish(storage)
    sweep(storage)
    return storage.uri if "://" in storage.uri else Path(storage.uri)


def _absolute(where: str | Path) -> str:
    return str(where) if "://" in str(where) else str(Path(where).absolute())


def _pin(dataset: TrajectoryDataset, storage: RunStorage) -> TrajectoryDataset:
    """The snapshot that a run trains on: the newest at its start, and the same one when it is resumed."""
    path = f"{storage.uri}/{PIN_NAME}"
    try:
        content = storage.read(PIN_NAME)
    except IsADirectoryError:
        raise CheckpointError(f"{path}: expected a file, got a directory; delete it") from None
    except FileNotFoundError:
        begun = {"dataset_uuid": dataset.manifest.dataset_uuid, "snapshot": write_snapshot(dataset)}
        content = json.dumps(begun).encode()
        storage.write(PIN_NAME, content)
    try:
        pin = parse_json(content)
        uuid, snapshot = pin["dataset_uuid"], pin["snapshot"]
        if type(snapshot) is not int:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path}: expected the dataset of this run, got something else; is it damaged?") from None
    if uuid != dataset.manifest.dataset_uuid:
        raise DataError(
            f"{dataset.uri}: the run at {storage.uri} was begun on dataset {uuid}, got "
            f"{dataset.manifest.dataset_uuid}; resume with the same --data, or take another --out"
        )
    return open_dataset(dataset.store, snapshot=snapshot)


def _fit(trainer: TorchTrainer) -> ray.train.Result:
    """Fit; an interruption by the user is raised as such.

    At Ctrl-C Ray Train stops its workers and exits the program with code 0, and it keeps its handler after the run.
    Neither suits a run that is one stage of several.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        return trainer.fit()
    except SystemExit:
        raise KeyboardInterrupt from None
    except ray.train.TrainingFailedError as error:
        raise _find_cause(error) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def _find_cause(error: BaseException) -> BaseException:
    """The user's error behind a failed run, or one line that says where to look."""
    for failure in [*getattr(error, "worker_failures", {}).values(), error]:
        cause = unwrap(failure)
        if isinstance(cause, DiffplanError | OSError):  # the error of a disk or a directory is the user's too
            return cause
    return error


class _ShownProgress:
    """While `fit` blocks, a thread shows and records the progress on the board, or what the run waits for.

    It also requests a checkpoint from the workers if a node is about to be removed, or if the whole run must end.
    """

    def __init__(self, board: Any, num_steps: int, recorder: UsageRecorder, each: dict[str, float]) -> None:
        self._board, self._recorder, self._each = board, recorder, each
        self._resources = [name for name in each if each[name]]
        self._wait_told_at: float | None = time.monotonic()
        self._bar = Progress("train", num_steps, "steps", on_advance=recorder.count)
        self._stop = threading.Event()
        self._terminated, self._is_told = threading.Event(), False
        self._draining: set[str] = set()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def is_terminated(self) -> bool:
        """Whether the run was told to end early."""
        return self._terminated.is_set()

    def terminate(self) -> None:
        """Let the workers save a checkpoint and end; at once if there is nothing to save, or at the second call."""
        if self.is_terminated or self._wait_told_at is not None:
            raise Terminated
        self._terminated.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)
        self._show()
        self._bar.__exit__(None, None, None)

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self._show()
            self._ask()
            if self._wait_told_at is not None and time.monotonic() - self._wait_told_at > WAITING_SECONDS:
                self._wait_told_at = time.monotonic()
                if has_pending_placement():
                    self._bar.note(f"train: waiting for room for the workers; free: {describe_free(self._resources)}")

    def _ask(self) -> None:
        """Send a request to the workers if one has become necessary."""
        if self.is_terminated and not self._is_told:
            self._is_told = True
            self._bar.note("train: told to end; saving a checkpoint first")
            self._board.request.remote(Request.STOP)
        draining = find_draining_nodes()
        if draining - self._draining:
            self._bar.note("train: a node will be taken away; saving a checkpoint")
            self._board.request.remote(Request.CHECKPOINT)
        self._draining = draining

    def _show(self) -> None:
        try:
            latest: Any = ray.get(self._board.read.remote(), timeout=5)
        except RayError:
            return  # missing progress is no reason to fail
        if latest:
            self._wait_told_at = None
            num_workers = int(latest["num_workers"])
            self._recorder.hold(num_workers * self._each["CPU"], num_workers * self._each.get("GPU", 0))
            per_second = {"steps_per_second": latest["steps_per_second"]}
            self._recorder.show(workers=num_workers, loss=latest["loss"], **per_second)
            self._bar.move_to(int(latest["step"]), loss=latest["loss"])

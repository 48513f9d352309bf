"""Fit a diffuser with Ray Train on any number of CPU or GPU workers."""

from __future__ import annotations

import json
import signal
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.exceptions import RayError
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device, prepare_model
from torch.utils.tensorboard import SummaryWriter

from diffplan import checkpoint as checkpoints
from diffplan.cluster.committer import adopt_variables, find_variables
from diffplan.cluster.runtime import count_gpus, ray_session, require_cpus
from diffplan.cluster.units import unwrap
from diffplan.config import Config, config_from_json, config_to_json
from diffplan.data.dataset import TrajectoryDataset, open_dataset, write_snapshot
from diffplan.data.window_index import WindowIndex
from diffplan.diffusion.denoiser import Denoiser
from diffplan.environments import get_maze
from diffplan.errors import CheckpointError, ClusterError, ConfigError, DataError
from diffplan.planning.planner import Planner
from diffplan.progress import Progress
from diffplan.report.figures import draw_sampled_plans, figure_to_array
from diffplan.training.batches import TrainingBatches
from diffplan.training.conditions import check_condition
from diffplan.training.loop import TrainingProgress, train
from diffplan.training.state import TrainingState

RUN_NAME = "run"
"""Folder of Ray Train's own files under the output directory."""
PIN_NAME = "pinned.json"
"""Names the snapshot that a run trains on; checkpoints repeat it."""


@ray.remote(num_cpus=0)
class ProgressBoard:
    """Holds the newest progress of a run, so that the driver can show it wherever the workers are."""

    def __init__(self, variables: dict[str, str]) -> None:
        self._latest: dict[str, float] = {}
        self._variables = variables

    def get_variables(self) -> dict[str, str]:
        """Endpoint and credentials of the dataset's store; not in the config of the run, which Ray shows and keeps."""
        return self._variables

    def post(self, latest: dict[str, float]) -> None:
        """Put up new progress."""
        self._latest = latest

    def read(self) -> dict[str, float]:
        """The newest progress; empty before there is any."""
        return self._latest


def train_on_cluster(
    config: Config,
    data: str | Path,
    out: str | Path,
    *,
    num_workers: int = 1,
    cpus_per_worker: int | None = None,
    resume: bool = False,
    tensorboard: str | Path | None = None,
    verify_on_read: bool = False,
) -> Path:
    """Train a diffuser and leave its checkpoint in `out`.

    Args:
        config: the experiment.
        data: directory or URL of the dataset; the run is pinned to its newest snapshot.
        out: directory of the checkpoint.
        num_workers: data-parallel workers; the global batch does not change with it.
        cpus_per_worker: CPUs of each worker; None shares those of the cluster where there are no GPUs.
        resume: go on with a run that is there.
        tensorboard: directory of TensorBoard files; None for `out/tensorboard`.
        verify_on_read: compare all data with their checksums before training sees them.

    Returns:
        The checkpoint directory, which is `out`.

    Raises:
        DataError: the dataset is missing or damaged, or its episodes are too short.
        CheckpointError: there is a run already and `resume` is not set.
        ClusterError: too few CPUs, or workers that keep dying.
    """
    out = Path(out).absolute()
    dataset = open_dataset(data)
    _check(config, num_workers)
    if (out / RUN_NAME).exists() and not resume:
        raise CheckpointError(
            f"{out}: there is a training run already; go on with it by --resume, or take another --out"
        )
    index = WindowIndex(dataset, config.windows.stride, config.windows.padding, config.windows.task_weights)
    for horizon in config.windows.horizons:
        index.count(horizon)  # raises here, in one line, what would otherwise fail in every worker
    check_condition(config.network, dataset)  # likewise
    if verify_on_read:
        dataset.verify_shards()  # likewise; workers compare again what they read
    dataset = _pin(dataset, out)
    with ray_session():
        use_gpu = count_gpus() >= num_workers
        if cpus_per_worker is None:
            cpus_per_worker = 1 if use_gpu else max(int(ray.cluster_resources().get("CPU", 1)) // num_workers, 1)
        require_cpus(
            num_workers * cpus_per_worker, f"{num_workers} training workers", "lower --num_workers or --cpus_per_worker"
        )
        board = ProgressBoard.remote(find_variables())
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config={
                "config": config_to_json(config),
                "data": dataset.uri,
                "snapshot": dataset.snapshot,
                "dataset_uuid": dataset.manifest.dataset_uuid,
                "tensorboard": str(Path(tensorboard or out / "tensorboard").absolute()),
                "num_threads": cpus_per_worker,
                "board": board,
                "verify": verify_on_read,
            },
            scaling_config=ScalingConfig(
                num_workers=num_workers, use_gpu=use_gpu, resources_per_worker={"CPU": cpus_per_worker}
            ),
            run_config=RunConfig(
                name=RUN_NAME,
                storage_path=str(out),
                failure_config=FailureConfig(max_failures=3),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
            ),
        )
        with _ShownProgress(board, config.training.num_steps):
            result = _fit(trainer)
    if result.checkpoint is None:
        raise ClusterError(f"{out}: training ended without a checkpoint; see the logs under {out / RUN_NAME}")
    with result.checkpoint.as_directory() as directory:
        checkpoints.publish_checkpoint(Path(directory), out)
    return out


def _pin(dataset: TrajectoryDataset, out: Path) -> TrajectoryDataset:
    """The snapshot that a run trains on: the newest at its start, the same one whenever it is resumed."""
    path = out / PIN_NAME
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        pin = {"dataset_uuid": dataset.manifest.dataset_uuid, "snapshot": write_snapshot(dataset)}
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(pin))
        temporary.replace(path)
    try:
        pin = json.loads(path.read_text())
        uuid, snapshot = pin["dataset_uuid"], pin["snapshot"]
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path}: expected the dataset of this run, got something else; is it damaged?") from None
    if uuid != dataset.manifest.dataset_uuid:
        raise DataError(
            f"{dataset.uri}: the run at {out} was begun on dataset {uuid}, got {dataset.manifest.dataset_uuid}; resume "
            "with the same --data, or take another --out"
        )
    return open_dataset(dataset.store, snapshot=snapshot)


def _check(config: Config, num_workers: int) -> None:
    if num_workers < 1:
        raise ConfigError(f"num_workers: expected at least 1, got {num_workers}")
    if config.training.batch_size % num_workers:
        raise ConfigError(
            f"training.batch_size: expected a multiple of num_workers ({num_workers}), got {config.training.batch_size}"
        )


def _fit(trainer: TorchTrainer) -> ray.train.Result:
    """Fit, with an interruption by the user raised as such.

    Ray Train answers Ctrl-C by stopping its workers and leaving the program with code 0, and keeps that handler after
    it is done; neither suits a run that is one stage of several.
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
        if cause is not failure:
            return cause
    return error


class _ShownProgress:
    """Shows the board's progress from a thread while `fit` blocks."""

    def __init__(self, board: Any, num_steps: int) -> None:
        self._board = board
        self._bar = Progress("train", num_steps, "steps")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)
        self._show()
        self._bar.__exit__(None, None, None)

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self._show()

    def _show(self) -> None:
        try:
            latest: Any = ray.get(self._board.read.remote(), timeout=5)
        except RayError:
            return  # a late picture of progress is no reason to fail
        if latest:
            self._bar.move_to(int(latest["step"]), loss=latest["loss"])


def _train_worker(settings: dict[str, Any]) -> None:
    """What each worker of Ray Train runs."""
    adopt_variables(ray.get(settings["board"].get_variables.remote()))
    config = config_from_json(Config, settings["config"])
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(settings["num_threads"])
    device = get_device()
    dataset = open_dataset(settings["data"], snapshot=settings["snapshot"])
    batches = TrainingBatches(
        config, dataset, rank=rank, world_size=world_size, device=device, verify=settings["verify"]
    )
    state = TrainingState(config, batches.layout, device)
    last = ray.train.get_checkpoint()
    if last is not None:
        with last.as_directory() as directory:
            state.load_state_dict(checkpoints.load_training_state(directory))
    model = prepare_model(state.network)
    # Steps after the checkpoint may have been logged before a failure; they are purged, so curves do not double.
    writer = SummaryWriter(settings["tensorboard"], purge_step=state.step + 1) if rank == 0 else None

    def on_progress(progress: TrainingProgress) -> None:
        if writer is None:
            return
        settings["board"].post.remote(asdict(progress))
        for name in ("loss", "gradient_norm", "learning_rate"):
            writer.add_scalar(f"train/{name}", getattr(progress, name), progress.step)
        writer.add_scalar("time/steps_per_second", progress.steps_per_second, progress.step)

    def on_checkpoint(progress: TrainingProgress) -> None:
        metrics = {"step": progress.step, "loss": progress.loss}
        if writer is None:
            ray.train.report(metrics)  # every rank must report
            return
        interval = config.training.picture_interval
        if interval and (progress.step % interval == 0 or progress.step == config.training.num_steps):
            _add_picture(writer, state, batches, progress.step)
        writer.flush()
        with tempfile.TemporaryDirectory() as directory:
            checkpoints.save_checkpoint(
                Path(directory),
                config=config,
                layout=batches.layout,
                step=state.step,
                normalizer=batches.normalizer,
                weights=state.average_weights(),
                dataset={
                    "path": settings["data"],
                    "uuid": settings["dataset_uuid"],
                    "snapshot": settings["snapshot"],
                },
                training_state=state.state_dict(),
                return_range=batches.return_range,
            )
            ray.train.report(
                metrics,
                checkpoint=Checkpoint.from_directory(directory),
                checkpoint_dir_name=f"step_{state.step:08d}",  # a step taken twice overwrites itself
            )

    train(state, batches, model=model, device=device, on_progress=on_progress, on_checkpoint=on_checkpoint)
    if writer is not None:
        writer.close()


def _add_picture(writer: SummaryWriter, state: TrainingState, batches: TrainingBatches, step: int) -> None:
    """Plans between random places, drawn with the averaged weights."""
    maze = get_maze(state.config.env)
    if maze is None:
        return
    denoiser = Denoiser.make(state.average.module, state.config.diffusion)
    planner = Planner(state.config, state.layout, denoiser, batches.normalizer, return_range=batches.return_range)
    generator = np.random.default_rng(0)
    cells = maze.free_cells[generator.integers(len(maze.free_cells), size=(2, 6))]
    observations = np.zeros((6, state.layout.observation_dim), dtype=np.float32)
    observations[:, list(state.config.env.position_columns)] = cells[0]
    plans = planner.plan(observations, cells[1].astype(np.float32), torch.Generator().manual_seed(0))
    state.average.module.train()
    figure = draw_sampled_plans(maze, plans, cells[1], state.config.env)
    writer.add_image("plans", figure_to_array(figure), step, dataformats="HWC")

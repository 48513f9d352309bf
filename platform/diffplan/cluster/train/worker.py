"""The worker function of Ray Train: load, train, report, and save checkpoints in the background."""

from __future__ import annotations

import shutil
import threading
from dataclasses import asdict
from typing import Any

import ray
import ray.train
import torch
from ray.exceptions import RayError
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import get_device

from diffplan import checkpoint as checkpoints
from diffplan.cluster.event_files import CurveWriter, EventFiles
from diffplan.cluster.metrics import count_work
from diffplan.cluster.store_variables import adopt_variables
from diffplan.cluster.train.storage import (
    find_newest_checkpoint,
    make_scratch_directory,
    open_run,
    sweep_scratch_directories,
)
from diffplan.config import Config, config_from_json
from diffplan.data.format.dataset import TrajectoryDataset, open_dataset
from diffplan.diffusion.denoiser import Denoiser
from diffplan.errors import CheckpointError
from diffplan.planning.planner import Planner
from diffplan.planning.settings import without_companions
from diffplan.report.images import figure_to_array
from diffplan.report.plan_pictures import draw_sampled_plans
from diffplan.runs.layout import STEP_PREFIX
from diffplan.seeding import Stream, make_generator
from diffplan.training.batches import TrainingBatches
from diffplan.training.loop import Request, TrainingProgress, train
from diffplan.training.state import TrainingState
from diffplan.training.threads import compute_alone

NUM_PICTURED = 6
"""Number of plans in a picture."""


def train_worker(settings: dict[str, Any]) -> None:
    """Train from the newest checkpoint of the run to its end.

    Args:
        settings: `config` (JSON), `data`, `snapshot` and `dataset_uuid` of the dataset, `out` and `tensorboard` (paths
            or URLs), `num_threads`, `verify`, and the `board` to post progress on.
    """
    adopt_variables(ray.get(settings["board"].get_variables.remote()))
    config = config_from_json(Config, settings["config"])
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(settings["num_threads"])
    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dataset = open_dataset(settings["data"], snapshot=settings["snapshot"])
    batches = TrainingBatches(
        config, dataset, rank=rank, world_size=world_size, device=device, verify=settings["verify"]
    )
    state = TrainingState(config, batches.layout, device)
    storage = open_run(settings["out"])
    # One worker chooses, so that all begin at the same step.
    newest = broadcast_from_rank_zero(find_newest_checkpoint(storage) if rank == 0 else None)
    if newest is not None:
        with storage.fetch(newest) as directory:
            state.load_state_dict(checkpoints.load_training_state(directory))
    reporter = _Reporter(settings, state, batches, dataset, world_size) if rank == 0 else None

    def on_progress(progress: TrainingProgress) -> None:
        if reporter is not None:
            reporter.log(progress)

    def on_checkpoint(progress: TrainingProgress) -> None:
        if reporter is not None:
            reporter.save(progress)
        else:  # every rank must report
            ray.train.report(_metrics(progress), checkpoint_upload_mode=CheckpointUploadMode.ASYNC)

    def ask() -> Request:
        if rank > 0:  # rank 0 asks for all
            return Request.NOTHING
        try:
            return Request(ray.get(settings["board"].take_request.remote()))
        except RayError:  # the board is gone with the driver, and this worker soon will be
            return Request.NOTHING

    train(state, batches, device=device, on_progress=on_progress, on_checkpoint=on_checkpoint, ask=ask)
    if reporter is not None:
        reporter.close()


def _metrics(progress: TrainingProgress) -> dict[str, float]:
    return {"step": progress.step, "loss": progress.loss}


class _Reporter:
    """Writes curves, pictures and checkpoints of a run; only rank 0 has one."""

    def __init__(
        self,
        settings: dict[str, Any],
        state: TrainingState,
        batches: TrainingBatches,
        dataset: TrajectoryDataset,
        num_workers: int,
    ) -> None:
        self._settings, self._state, self._batches, self._num_workers = settings, state, batches, num_workers
        self._dataset = dataset
        self._storage = open_run(settings["out"])
        sweep_scratch_directories(self._storage)
        self._files = EventFiles(settings["tensorboard"])
        # Steps after the checkpoint may have been logged before a failure; they are purged, so curves do not double.
        self._writer = CurveWriter(self._files.directory, purge_step=state.step + 1)
        self._counted = state.step
        self._is_put = threading.Event()
        self._is_put.set()

    def log(self, progress: TrainingProgress) -> None:
        """Log scalars."""
        self._settings["board"].post.remote({**asdict(progress), "num_workers": self._num_workers})
        count_work("train", "steps", progress.step - self._counted)
        self._counted = progress.step
        for name in ("loss", "gradient_norm", "learning_rate"):
            self._writer.add_scalar(f"train/{name}", getattr(progress, name), progress.step)
        if progress.validation_loss is not None:
            self._writer.add_scalar("validation/loss", progress.validation_loss, progress.step)
        self._writer.add_scalar("time/steps_per_second", progress.steps_per_second, progress.step)
        self._writer.add_scalar("time/num_workers", self._num_workers, progress.step)

    def save(self, progress: TrainingProgress) -> None:
        """Copy the state; a thread writes and uploads it while training goes on.

        A second checkpoint waits until the first is complete, so that they never pile up.
        """
        state, settings = self._state, self._settings
        interval = state.config.training.picture_interval
        is_last = progress.stopped_early or progress.step == state.config.training.num_steps
        if interval and (progress.step % interval == 0 or is_last):
            self._add_picture(progress.step)
        self._writer.flush()
        event_sizes = self._files.measure()
        self._is_put.wait()
        self._is_put.clear()
        content: dict[str, Any] = {
            "config": state.config,
            "layout": self._batches.layout,
            "step": state.step,
            "normalizer": self._batches.normalizer,
            "weights": _copy(state.average_weights()),
            "dataset": {
                "path": settings["data"],
                "uuid": settings["dataset_uuid"],
                "snapshot": settings["snapshot"],
            },
            "training_state": _copy(state.state_dict()),
            "return_range": self._batches.return_range,
        }
        scratch = make_scratch_directory(self._storage)

        def put(checkpoint: Checkpoint, name: str) -> Checkpoint:
            compute_alone()
            try:
                checkpoints.save_checkpoint(scratch, **content)
                self._files.upload(event_sizes)  # before the checkpoint, so that curves are never behind it
                self._storage.delete(f"{context.get_experiment_name()}/{name}")  # remains of a worker that died
                self._storage.put_checkpoint(scratch, f"{context.get_experiment_name()}/{name}")
                storage: Any = context.get_storage()
                return Checkpoint(storage.build_checkpoint_path_from_name(name), filesystem=storage.storage_filesystem)
            except OSError as error:
                raise CheckpointError(
                    f"{self._storage.uri}: the checkpoint of step {content['step']} could not be written "
                    f"({(error.strerror or str(error)).lower()}); make room or mend the permissions, then go on with "
                    "--resume: earlier checkpoints are kept"
                ) from None
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
                self._is_put.set()

        context = ray.train.get_context()
        ray.train.report(
            _metrics(progress),
            checkpoint=Checkpoint.from_directory(scratch),
            checkpoint_dir_name=f"{STEP_PREFIX}{state.step:08d}",
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=False,
            checkpoint_upload_fn=put,
        )

    def close(self) -> None:
        """Finish the curves."""
        self._is_put.wait()
        self._writer.close()
        self._files.upload(self._files.measure())

    def _add_picture(self, step: int) -> None:
        """Draw plans by the averaged weights for a few problems that the task chooses."""
        state = self._state
        if state.config.training.objective != "diffusion":
            return
        config = state.config
        denoiser = Denoiser.make(state.make_average_network(), config.diffusion)
        planner = Planner(
            config,
            state.layout,
            denoiser,
            self._batches.normalizer,
            without_companions(config.planning),
            return_range=self._batches.return_range,
        )
        figure = draw_sampled_plans(planner, self._dataset, NUM_PICTURED, make_generator(0, Stream.TRAINING, step))
        self._writer.add_image("plans", figure_to_array(figure), step)


def _copy(value: Any) -> Any:
    """A copy with its own tensors, in host memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copy(item) for item in value)
    return value

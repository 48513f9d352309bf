"""The number of workers of a training run, and when a run gives up.

Ray Train starts an elastic run with as many workers as the cluster has room for, and restarts it from its newest
checkpoint with more or fewer when nodes are added or removed. This module replaces some of its rules, for which Ray has
no public option (`diffplan.cluster.ray_private`).
"""

from __future__ import annotations

import hashlib
import os
import time
from types import SimpleNamespace
from typing import Any

import ray
import ray.train
from ray.exceptions import RayActorError
from ray.train import FailureConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from diffplan.cluster.ray_private import (
    WORKER_GROUP_START_TIMEOUT_S_ENV_VAR,
    DefaultFailurePolicy,
    ElasticScalingPolicy,
    FailureDecision,
    FixedScalingPolicy,
    PlacementGroupCleanerCallback,
    RayTrainCallback,
    ScalingDecision,
    ScalingPolicy,
    TrainController,
    WorkerGroup,
)
from diffplan.cluster.train.storage import RunStorage, find_newest_checkpoint
from diffplan.cluster.units import unwrap
from diffplan.errors import ConfigError, DiffplanError, StoreError

MAX_FAILURES = 3
"""Failures in a row, with no new checkpoint between them, after which a run gives up."""
LOOK_SECONDS = 1.0
"""Pause between two checks for room in the cluster."""
PLACE_SECONDS = 10
"""Wait for places that were reported free; they are not if their node has just died, which is reported later."""


def find_sizes(batch_size: int, num_workers: int, min_workers: int | None) -> list[int]:
    """Numbers of workers that a run may have: those that divide its batch evenly.

    Args:
        batch_size: rows of a batch, over all workers.
        num_workers: most workers.
        min_workers: fewest; None for a run that has `num_workers` all the time.

    Raises:
        ConfigError: there are none.
    """
    fewest = num_workers if min_workers is None else min_workers
    if fewest < 1:
        name = "num_workers" if min_workers is None else "min_workers"
        raise ConfigError(f"{name}: expected at least 1, got {fewest}")
    if fewest > num_workers:
        raise ConfigError(f"min_workers: expected at most num_workers ({num_workers}), got {fewest}")
    sizes = [size for size in range(fewest, num_workers + 1) if batch_size % size == 0]
    if not sizes:
        wanted = f"num_workers ({num_workers})" if min_workers is None else f"a number in {fewest}..{num_workers}"
        raise ConfigError(f"training.batch_size: expected a multiple of {wanted}, got {batch_size}")
    return sizes


class RunTrainer(TorchTrainer):
    """A trainer whose workers always divide a batch evenly, and which counts failures in a row.

    Args:
        train_loop: the function of each worker.
        storage: storage of the run.
        sizes: possible numbers of workers.
        options: those of `TorchTrainer`.
    """

    def __init__(self, train_loop: Any, *, storage: RunStorage, sizes: list[int], **options: Any) -> None:
        super().__init__(train_loop, **options)
        self._storage, self._sizes = storage, sizes

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        # One of them watches the controller through the dashboard; without a dashboard it waits for 12 s at the end of
        # each run. If the controller dies, our driver ends, which frees the workers' resources too.
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]

    def _initialize_and_run_controller(self, **arguments: Any) -> ray.train.Result:
        arguments["failure_policy"] = _FailuresInARow(self._storage)
        key = hashlib.sha256(self._storage.uri.encode()).hexdigest()[:16]
        arguments["scaling_policy"] = (
            _EvenShares(self.scaling_config, key, self._sizes)
            if self.scaling_config.elasticity_enabled
            else _FixedSize(self.scaling_config, key)
        )
        return super()._initialize_and_run_controller(**arguments)


class _TidyWorkerGroup(WorkerGroup):
    """Releases its resources if it fails to start.

    Ray does so only while workers are being made. If a worker dies later in the start, its resources stay reserved for
    ever, and after a few such failures the run waits for room in a cluster that it has filled itself.
    """

    def _start(self) -> None:
        try:
            super()._start()
        except Exception:
            if self._worker_group_state is not None:
                self._worker_group_state.shutdown()
                self._clear_state()
            raise


class _OneReservation(ScalingPolicy):
    """Reserves room in the cluster under the name of the run.

    So a resumed run takes over the reservation of its killed driver. Ray's name differs for every driver, and it keeps
    the reservation of a dead one for three minutes.
    """

    def __init__(self, scaling_config: ScalingConfig, key: str) -> None:
        super().__init__(scaling_config)
        self._key = key

    def after_controller_start(self, train_run_context: Any) -> None:
        """Reserve room. This is also the first of our code that runs in the controller's process."""
        TrainController.worker_group_cls = _TidyWorkerGroup
        super().after_controller_start(SimpleNamespace(run_id=self._key))  # type: ignore[arg-type]


class _FixedSize(_OneReservation, FixedScalingPolicy):
    """All workers, always."""


class _EvenShares(_OneReservation, ElasticScalingPolicy):
    """As many workers as there is room for, of the numbers that divide a batch evenly."""

    def __init__(self, scaling_config: ScalingConfig, key: str, sizes: list[int]) -> None:
        super().__init__(scaling_config, key)
        self._sizes = sizes

    def after_controller_start(self, train_run_context: Any) -> None:
        """Reserve room, and set how long this controller waits for places that were just reported free."""
        os.environ.setdefault(WORKER_GROUP_START_TIMEOUT_S_ENV_VAR, str(PLACE_SECONDS))
        super().after_controller_start(train_run_context)

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        possible = super()._count_possible_workers(reserved_resources)
        return max((size for size in self._sizes if size <= possible), default=0)

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start with the resources that are free now.

        Ray would use a report that is up to 20 s old, and would repeat the check without a pause.
        """
        time.sleep(max(self._latest_reserved_resources_query_time + LOOK_SECONDS - time.monotonic(), 0))
        self._maybe_send_resource_request()
        try:
            coordinator: Any = self._autoscaling_coordinator
            seen = coordinator.get_reserved_resources.remote(self._requester_id, recompute=True)
            self._latest_reserved_resources = ray.get(seen, timeout=10)
            self._latest_reserved_resources_query_time = time.monotonic()
        except Exception:  # the coordinator may have died with its node; Ray's own check follows
            self._latest_reserved_resources = None
        return super().make_decision_for_non_running_worker_group()


class _FailuresInARow(DefaultFailurePolicy):
    """Goes on as long as there are new checkpoints between failures, and gives up at once if only the user can help.

    Ray counts all failures of a run; on many cheap machines there can be any number of them.
    """

    def __init__(self, storage: RunStorage) -> None:
        super().__init__(FailureConfig(max_failures=MAX_FAILURES))
        self._storage = storage
        self._newest: str | None = None
        self._deaths_at_start = 0

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Decide whether to retry after a failure."""
        causes = [unwrap(failure) for failure in getattr(training_failed_error, "worker_failures", {}).values()]
        if any(isinstance(cause, DiffplanError) and not isinstance(cause, StoreError) for cause in causes):
            return FailureDecision.RAISE
        try:
            newest = find_newest_checkpoint(self._storage)
        except DiffplanError:  # the store does not answer, so the count stays as it is
            newest = self._newest
        if newest != self._newest:
            self._newest, self._worker_group_failures, self._deaths_at_start = newest, 0, 0
        if isinstance(getattr(training_failed_error, "controller_failure", None), RayActorError):
            # A worker died, perhaps with its node, while the group was being made; Ray counts this as its own error.
            self._deaths_at_start += 1
            return FailureDecision.RETRY if self._deaths_at_start <= MAX_FAILURES else FailureDecision.RAISE
        return super().make_decision(training_failed_error)

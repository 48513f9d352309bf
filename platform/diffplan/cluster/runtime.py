"""Connect to Ray, and ask whether it has what a job needs."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from diffplan.errors import ClusterError

# Read by Ray when it is imported or started. Each may be set differently by the user.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon reports and failures are seen; the default is 2 s
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # prints every line of a worker twice
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # else Ctrl-C ends a search as if it were complete
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

import diffplan_envs.physics  # noqa: E402, F401  (chooses how MuJoCo draws before anything else imports it)


@contextmanager
def ray_session() -> Iterator[None]:
    """A connection to Ray: the present one, the cluster of `RAY_ADDRESS` (as in a submitted job), or a local one.

    A local one is started for the purpose and shut down afterwards.
    """
    if ray.is_initialized():
        yield
        return
    address = "auto" if os.environ.get("RAY_ADDRESS") else "local"
    dashboard = None if address == "auto" else False
    ray.init(address=address, include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def require_cpus(num_cpus: float, what: str, cure: str) -> None:
    """Raise `ClusterError` if the cluster could never run this; Ray itself would wait for ever without a word."""
    total = ray.cluster_resources().get("CPU", 0.0)
    if num_cpus > total:
        raise ClusterError(f"{what}: expected at least {num_cpus:g} CPUs in the cluster, got {total:g}; {cure}")


def beside_driver() -> NodeAffinitySchedulingStrategy:
    """Where actors go that must live as long as this process: to its node, so that no other node takes them with it."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def count_workers(num_workers: int | None) -> int:
    """The number of one-CPU workers asked for, or as many as the cluster has CPUs."""
    return max(int(ray.cluster_resources().get("CPU", 1)), 1) if num_workers is None else num_workers


def count_gpus() -> int:
    """GPUs in the cluster."""
    return int(ray.cluster_resources().get("GPU", 0))

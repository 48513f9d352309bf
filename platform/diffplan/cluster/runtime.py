"""Connect to Ray, and check the resources of the cluster."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from diffplan.errors import ClusterError, Terminated

WAITING_SECONDS = 30.0
"""Seconds without progress after which the user is told what workers wait for."""
ROLLOUT_POOL = "rollout"
"""Label of the nodes for work without GPUs: collection and evaluation."""

# Read by Ray when it is imported or started. Each may be set differently by the user.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon reports and failures are seen; the default is 2 s
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # prints every line of a worker twice
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # otherwise Ctrl-C ends a search as if it were complete
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
from ray.exceptions import RayError  # noqa: E402
from ray.util import placement_group_table  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

import diffplan_envs.physics  # noqa: E402, F401  (chooses how MuJoCo draws before anything else imports it)
from diffplan.cluster.start import start_ray  # noqa: E402
from diffplan.runs import interrupts  # noqa: E402


@contextmanager
def ray_session() -> Iterator[None]:
    """A connection to Ray: the present one, the cluster of `RAY_ADDRESS` (as in a submitted job), or a local one.

    A local one is started here and shut down afterwards.

    Raises:
        ClusterError: no cluster answers at `RAY_ADDRESS`, or Ray does not start.
    """
    if ray.is_initialized():
        yield
        return
    start_ray()
    interrupts.end_start()
    try:
        with on_termination(_raise_terminated):  # Ray's own handler would end the process with a code of its own
            yield
    finally:
        ray.shutdown()


@contextmanager
def on_termination(handle: Callable[[], None]) -> Iterator[None]:
    """Call a function in the main thread when the process is told to end (SIGTERM); nothing in other threads."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: handle())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise_terminated() -> None:
    raise Terminated


def find_draining_nodes() -> set[str]:
    """Nodes that will be taken away soon, as the cloud or the autoscaler has announced; none if Ray does not say."""
    from diffplan.cluster.ray_private import get_draining_nodes  # late: it imports Ray Train

    try:
        return get_draining_nodes()
    except RayError:
        return set()


def require_resources(count: int, each: Mapping[str, float], what: str, cures: Mapping[str, str]) -> None:
    """Check that a cluster has room, now or later, for these workers at once; Ray would wait for ever silently.

    A cluster that adds nodes on demand is assumed to add them, because Ray does not know what it could add.

    Args:
        count: number of workers, each on one node.
        each: resources of one worker, such as `{"CPU": 1, "GPU": 1}`.
        what: name of the workers, for the message.
        cures: advice for the user by the resource that is missing, for the message.

    Raises:
        ClusterError: the nodes could not hold them even if nothing else ran there.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    each = {name: amount for name, amount in each.items() if amount}
    for name, amount in each.items():
        total = sum(node.get(name, 0.0) for node in nodes)
        if count * amount > total and not may_grow():
            raise ClusterError(
                f"{what}: expected at least {count * amount:g} {name}s in the cluster, got {total:g}; {cures[name]}"
            )
    places = sum(min(int(node.get(name, 0.0) // amount) for name, amount in each.items()) for node in nodes)
    if places < count and not may_grow():
        wanted = " and ".join(f"{amount:g} {name}s" for name, amount in each.items())
        raise ClusterError(
            f"{what}: expected nodes with room for {count} times {wanted}, got room for {places}; "
            f"{cures[min(each, key=lambda name: max((n.get(name, 0.0) for n in nodes), default=0.0) / each[name])]}"
        )


def may_grow() -> bool:
    """Whether the cluster adds nodes on demand."""
    from diffplan.cluster.ray_private import is_autoscaler_v2, read_autoscaler_status

    if is_autoscaler_v2():
        return True
    status = read_autoscaler_status()
    return has_node_types((status.get("autoscaler_report") or {}).get("node_type_mapping") or {})


def has_node_types(types: Mapping[str, str]) -> bool:
    """Whether the nodes of a report of Ray's autoscaler are of types that it can add.

    Args:
        types: of each node, by its id; without an autoscaler, Ray names a type after each node.
    """
    return any(name != f"node_{node}" for node, name in types.items())


def describe_free(names: Iterable[str]) -> str:
    """The resources of the cluster that nobody uses, such as `0 of 4 CPUs, 1 of 2 GPUs`."""
    free, total = ray.available_resources(), ray.cluster_resources()
    return ", ".join(f"{free.get(name, 0.0):g} of {total.get(name, 0.0):g} {name}s" for name in names)


def has_pending_placement() -> bool:
    """Whether a placement group waits for resources, as that of a training run may."""
    return any(group["state"] == "PENDING" for group in placement_group_table().values())


def prefer_pool(pool: str) -> dict[str, Any]:
    """Options of an actor that goes to nodes with the label `pool` while they have room, else to others.

    On clusters without such labels they have no effect. Work on GPUs needs no label, because it requests GPUs.
    """
    return {"label_selector": {"pool": pool}, "fallback_strategy": [{"label_selector": {"pool": f"!{pool}"}}]}


def beside_driver() -> NodeAffinitySchedulingStrategy:
    """Places actors on the node of this process, so that they do not die with another node."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def count_workers(num_workers: int | None) -> int:
    """The number of one-CPU workers asked for, or as many as the cluster has CPUs."""
    return max(int(ray.cluster_resources().get("CPU", 1)), 1) if num_workers is None else num_workers


def count_gpus() -> int:
    """GPUs in the cluster."""
    return int(ray.cluster_resources().get("GPU", 0))

"""Metrics of Ray: the work done by each process of a stage, for monitoring a cluster with Prometheus.

Every process counts its own work, and Ray adds labels for process and node. So `rate(ray_diffplan_steps_total[1m])`
is the throughput of each actor, and its sum that of the cluster.
"""

from __future__ import annotations

import functools

from ray.util.metrics import Counter

PREFIX = "diffplan_"


def count_work(stage: str, unit: str, amount: int) -> None:
    """Count work done by this process.

    Args:
        stage: `collect`, `train`, `tune` or `evaluate`.
        unit: unit of work, such as `steps`: the counter is `diffplan_steps`, with the label `stage`.
        amount: work done since the last call.
    """
    if amount > 0:
        _make_counter(unit).inc(amount, {"stage": stage})


@functools.cache
def _make_counter(unit: str) -> Counter:
    return Counter(f"{PREFIX}{unit}", f"{unit} done by a process", tag_keys=("stage",))

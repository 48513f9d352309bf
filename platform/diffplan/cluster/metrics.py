"""Metrics of Ray: what each process of a stage gets done, for those who watch a cluster with Prometheus.

Every process counts its own work, and Ray adds which process and node it was. So `rate(ray_diffplan_steps_total[1m])`
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
        unit: what is counted, such as `steps`: the counter is `diffplan_steps`, with the label `stage`.
        amount: how much more of it is done.
    """
    if amount > 0:
        _make_counter(unit).inc(amount, {"stage": stage})


@functools.cache
def _make_counter(unit: str) -> Counter:
    return Counter(f"{PREFIX}{unit}", f"{unit} done by a process", tag_keys=("stage",))

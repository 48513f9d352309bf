"""A training on a cluster of its own whose second node comes when it runs and is killed later.

`CONFIG` is the config as JSON, the arguments are the dataset and the output. It ends when the run has recovered, not
when the run is complete.
"""

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import ray
from ray.cluster_utils import Cluster

from diffplan.cluster.train.driver import train_on_cluster
from diffplan.config import Config, config_from_json


def main() -> None:
    """Run, and print what happened when."""
    config, data, out = config_from_json(Config, os.environ["CONFIG"]), sys.argv[1], Path(sys.argv[2])
    memory = 80 * 2**20
    health = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}
    head = {"num_cpus": 1, "object_store_memory": memory, "include_dashboard": False, "_system_config": health}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    options = {"num_workers": 2, "min_workers": 1, "cpus_per_worker": 1, "resize_seconds": 1}
    # Nodes may be added in the main thread only.
    thread = threading.Thread(target=train_on_cluster, args=(config, data, out), kwargs=options, daemon=True)
    thread.start()
    since = time.monotonic()

    def wait(what: str, is_so: Callable[[], bool]) -> None:
        while not is_so():
            assert thread.is_alive(), f"training ended before: {what}"
            time.sleep(0.1)
        print(f"{time.monotonic() - since:.1f} s: {what}", flush=True)

    wait("one worker has written a checkpoint", lambda: find_step(out) > 0)
    node = cluster.add_node(num_cpus=1, object_store_memory=memory)
    wait("there are two workers", lambda: count_workers() == 2)
    step = find_step(out)
    wait("they have written a checkpoint", lambda: find_step(out) > step)
    cluster.remove_node(node, allow_graceful=False)
    step = find_step(out)
    wait("one worker goes on", lambda: find_step(out) >= step + 200)  # more than two workers had on their way
    os._exit(0)  # the nodes end with the process that started them


def find_step(out: Path) -> int:
    """Step of the newest checkpoint."""
    return max((int(path.parent.name[5:]) for path in (out / "run").glob("step_*/config.json")), default=0)


def count_workers() -> int:
    """Processes of training workers."""
    count = 0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            count += any("RayTrainWorker" in part for part in process.cmdline())
    return count


if __name__ == "__main__":
    main()

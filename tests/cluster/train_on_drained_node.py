"""A training on a cluster of its own, whose second node is announced to be taken away.

`CONFIG` is the config as JSON, the arguments are the dataset and the output. It ends when the run has saved a
checkpoint, of which the config has none before the end of the run.
"""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from diffplan.cluster.train.driver import train_on_cluster
from diffplan.config import Config, config_from_json
from diffplan.runs.usage import read_usage


def main() -> None:
    """Run, and print what happened."""
    config, data, out = config_from_json(Config, os.environ["CONFIG"]), sys.argv[1], Path(sys.argv[2])
    memory = 80 * 2**20
    head = {"num_cpus": 0, "object_store_memory": memory, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    node = cluster.add_node(num_cpus=1, object_store_memory=memory)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    options = {"num_workers": 1, "cpus_per_worker": 1}
    thread = threading.Thread(target=train_on_cluster, args=(config, data, out), kwargs=options, daemon=True)
    thread.start()

    def wait(what: str, is_so: Callable[[], bool]) -> None:
        while not is_so():
            assert thread.is_alive(), f"training ended before: {what}"
            time.sleep(0.1)
        print(what, flush=True)

    wait("it trains", lambda: any(usage.done for usage in read_usage(out)))
    assert not list((out / "run").glob("step_*"))
    drain = [str(Path(sys.executable).parent / "ray"), "drain-node", "--address", cluster.address]
    drain += ["--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    drain += ["--reason-message", "taken away", "--deadline-remaining-seconds", "60"]
    subprocess.run(drain, check=True)
    wait("saved after the announcement", lambda: bool(list((out / "run").glob("step_*/config.json"))))
    os._exit(0)  # the nodes end with the process that started them


if __name__ == "__main__":
    main()

"""Places on a cluster of its own: a head without CPUs, a node for rollouts and one for training.

It prints where actors went and what was refused, as JSON.
"""

import json
import logging
import os

import ray
from ray.cluster_utils import Cluster

from diffplan.cluster.runtime import describe_free, may_grow, prefer_pool, require_resources
from diffplan.errors import ClusterError


@ray.remote(num_cpus=1)
class Worker:
    """Tells where it is."""

    def find_node(self) -> str:
        """The id of its node."""
        return ray.get_runtime_context().get_node_id()


def main() -> None:
    """Run, and print what happened."""
    memory = 80 * 2**20
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": memory, "include_dashboard": False},
    )
    cluster.add_node(num_cpus=2, num_gpus=1, labels={"pool": "training"}, object_store_memory=memory)
    cluster.add_node(num_cpus=1, labels={"pool": "rollout"}, object_store_memory=memory)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    pools = {node["NodeID"]: node["Labels"].get("pool") for node in ray.nodes()}
    workers = [Worker.options(**prefer_pool("rollout")).remote() for _ in range(3)]
    found = {
        "pools": [pools[node] for node in ray.get([worker.find_node.remote() for worker in workers], timeout=90)],
        "free": describe_free(("CPU", "GPU")),
        "may_grow": may_grow(),
        "refused": [],
    }
    for worker in workers:
        ray.kill(worker)
    elsewhere = Worker.options(**prefer_pool("nobody")).remote()
    found["elsewhere"] = pools[ray.get(elsewhere.find_node.remote(), timeout=90)]
    for count, each in ((1, {"CPU": 1, "GPU": 1}), (2, {"CPU": 1, "GPU": 1}), (3, {"CPU": 1}), (2, {"CPU": 1.5})):
        try:
            require_resources(count, each, f"{count} workers", {"CPU": "cure", "GPU": "cure"})
        except ClusterError as error:
            found["refused"].append(str(error))
    print(json.dumps(found), flush=True)
    os._exit(0)  # the nodes end with the process that started them


if __name__ == "__main__":
    main()

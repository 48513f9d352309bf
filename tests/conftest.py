import logging
import os
from collections.abc import Iterator

# Read by Ray when it is imported, so before anything else.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")

import pytest


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local cluster of two CPUs for all tests that need Ray."""
    import ray

    from diffplan.cluster import runtime  # noqa: F401  (sets what Ray reads from the environment)

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=200 * 2**20,
    )
    yield
    ray.shutdown()

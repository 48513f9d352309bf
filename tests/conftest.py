import logging
import os
import time
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path
from typing import Any

# Read by Ray when it is imported, so before anything else.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_worker_niceness", "0")  # or the tests of the other process would starve Ray's workers

import hypothesis
import jaxtyping
import pytest

hypothesis.settings.register_profile("quick", deadline=None, max_examples=25)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=200)
hypothesis.settings.load_profile("quick")  # --hypothesis-profile chooses another

SHAPE_CHECKED = ("diffusion", "networks")
"""Directories whose tests check the shapes in signatures. A checked call costs 0.4 ms more, too much for training."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos-seed", type=int, help="seed of what is killed at random; the header of a run names it")


def pytest_configure(config: pytest.Config) -> None:
    # Workers of xdist take over what their controller drew.
    if config.option.chaos_seed is None:
        config.option.chaos_seed = time.time_ns() % 2**32


def pytest_report_header(config: pytest.Config) -> str:
    return f"chaos seed: {config.option.chaos_seed} (once more: --chaos-seed {config.option.chaos_seed})"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several workers of xdist, one has all that share a cluster, from the beginning; each takes whole modules.

    (Groups of `--dist=loadgroup` are not seen by pytest 9.2.)
    """
    from xdist.scheduler import LoadFileScheduling

    class OneCluster(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = super()._split_scope(nodeid)
            return "ray" if shares_cluster(config.rootpath / module) else module

    config.option.loadscopereorder = False  # the order of the items counts
    return OneCluster(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: (not shares_cluster(item.path), item.path.parent.name != "cluster"))


@cache
def shares_cluster(module: Path) -> bool:
    return "ray_cluster" in module.read_text()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    jaxtyping.config.update("jaxtyping_disable", item.path.parent.name not in SHAPE_CHECKED)
    return (yield)


@pytest.fixture
def chaos_seed(pytestconfig: pytest.Config) -> int:
    """What draws who is killed when; given again, the same is drawn."""
    return pytestconfig.option.chaos_seed


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

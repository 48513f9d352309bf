import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from diffplan.cluster import units
from diffplan.cluster.runtime import has_node_types
from diffplan.cluster.units import run_units
from diffplan.errors import ClusterError


@pytest.mark.slow
def test_rollouts_go_to_their_nodes_first_and_nothing_waits_for_nodes_that_are_not_there() -> None:
    script = Path(__file__).with_name("place_on_nodes.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert sorted(found["pools"]) == ["rollout", "training", "training"]  # one has room in its own
    assert found["elsewhere"] in ("rollout", "training")
    assert found["free"] == "0 of 3 CPUs, 1 of 1 GPUs"
    assert found["may_grow"] is False
    assert found["refused"] == [
        "2 workers: expected at least 2 GPUs in the cluster, got 1; cure",
        "2 workers: expected nodes with room for 2 times 1.5 CPUs, got room for 1; cure",
    ]


def test_a_cluster_that_adds_nodes_has_node_types() -> None:
    assert not has_node_types({})
    assert not has_node_types({"0a1b": "node_0a1b"})
    assert has_node_types({"0a1b": "head"})


@ray.remote(num_cpus=1)
class Occupant:
    """Has a CPU."""


@ray.remote(num_cpus=2)
class Worker:
    """Needs both."""

    def run(self, unit: int) -> int:
        return unit


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_workers_without_room_say_what_is_free_and_then_give_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(units, "WAITING_SECONDS", 2)
    monkeypatch.setattr(units, "START_TIMEOUT_SECONDS", 3)
    occupant = Occupant.remote()
    ray.get(occupant.__ray_ready__.remote())
    time.sleep(1)  # the count of what is free lags behind
    with pytest.raises(ClusterError, match=r"none could start for 3 s; free: 1 of 2 CPUs, 0 of 0 GPUs; ask for fewer"):
        run_units(range(2), Worker.remote, 1, lambda unit, result: None)
    assert capsys.readouterr().err == "waiting for room for workers (1); free: 1 of 2 CPUs\n"
    ray.kill(occupant)

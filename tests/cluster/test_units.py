import os
import threading
import time
from pathlib import Path

import pytest
import ray

from diffplan.cluster import units
from diffplan.cluster.units import MAX_ATTEMPTS, run_units
from diffplan.errors import ClusterError, DataError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@ray.remote(num_cpus=0.5)
class Worker:
    """Notes each attempt in a folder; dies or fails where it is told to."""

    def __init__(self, folder: str, deadly: dict[int, int] | None = None, failing: int | None = None) -> None:
        self.folder, self.deadly, self.failing = Path(folder), deadly or {}, failing

    def run(self, unit: int) -> int:
        attempt = len(list(self.folder.glob(f"{unit}-*")))
        (self.folder / f"{unit}-{attempt}").touch()
        if attempt < self.deadly.get(unit, 0):
            os._exit(1)
        if unit == self.failing:
            raise DataError("unit: expected good data, got bad; mend it")
        return unit * unit


def test_every_unit_is_done_once_though_actors_die(tmp_path: Path) -> None:
    done: dict[int, int] = {}
    deadly = {1: 1, 4: MAX_ATTEMPTS - 1}
    run_units(
        range(6), lambda: Worker.remote(str(tmp_path), deadly), 2, lambda unit, result: done.update({unit: result})
    )
    assert done == {unit: unit * unit for unit in range(6)}
    assert len(list(tmp_path.glob("4-*"))) == MAX_ATTEMPTS
    assert len(list(tmp_path.glob("0-*"))) == 1


def test_a_unit_that_kills_every_actor_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=f"unit 2: {MAX_ATTEMPTS} actors died"):
        run_units(range(4), lambda: Worker.remote(str(tmp_path), {2: 99}), 2, lambda *_: None)


@ray.remote(num_cpus=0.5)
class SlowWorker:
    """Takes its time."""

    def run(self, unit: int) -> int:
        time.sleep(4)
        return unit


def test_units_may_take_longer_than_actors_may_take_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, an evaluation of long episodes on a slow machine was given up while its actors worked."""
    monkeypatch.setattr(units, "START_TIMEOUT_SECONDS", 2)
    done: list[int] = []
    run_units([7], SlowWorker.remote, 1, lambda unit, result: done.append(result))
    assert done == [7]


def test_what_the_user_can_cure_arrives_as_it_was_raised(tmp_path: Path) -> None:
    with pytest.raises(DataError) as info:
        run_units(range(4), lambda: Worker.remote(str(tmp_path), failing=3), 2, lambda *_: None)
    assert str(info.value) == "unit: expected good data, got bad; mend it"
    assert type(info.value) is DataError


def test_actors_are_gone_afterwards(tmp_path: Path) -> None:
    actors = []

    def spawn() -> ray.actor.ActorHandle:
        actors.append(Worker.remote(str(tmp_path)))
        return actors[-1]

    run_units(range(3), spawn, 2, lambda *_: None)
    assert len(actors) == 2
    for actor in actors:
        with pytest.raises(ray.exceptions.RayActorError):
            call_for_a_minute(actor)


def call_for_a_minute(actor: ray.actor.ActorHandle) -> None:
    """Call until an error: the order to die may arrive after the next call."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        ray.get(actor.run.remote(9), timeout=30)
        time.sleep(0.1)


def test_no_units_need_no_actors() -> None:
    run_units([], lambda: pytest.fail("an actor was made for nothing"), 2, lambda *_: None)


def test_actors_killed_from_outside_are_replaced(tmp_path: Path) -> None:
    pids: list[int] = []

    @ray.remote(num_cpus=0.5)
    class Slow:
        def pid(self) -> int:
            return os.getpid()

        def run(self, unit: int) -> int:
            time.sleep(1.0)
            return unit

    def spawn() -> ray.actor.ActorHandle:
        actor = Slow.remote()
        pids.append(ray.get(actor.pid.remote(), timeout=60))
        return actor

    killer = threading.Timer(0.5, lambda: os.kill(pids[0], 9))
    done: list[int] = []

    def start_killing(unit: int, result: int) -> None:
        done.append(result)
        if len(done) == 1:
            killer.start()

    run_units(range(5), spawn, 2, start_killing)
    assert sorted(done) == list(range(5))
    assert len(pids) == 3

"""Collect a dataset by `diffplan collect` while its actors and the command itself are killed at random.

Each command is a coordinator with a Ray of its own. Only processes below it are struck: workers that run a
`CollectionActor`, or the coordinator. Where it is struck, what it started is ended with it and `--resume` begins again.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from diffplan.config import CollectionConfig, EnvConfig
from diffplan.data.format.commit import list_committed_units
from diffplan.storage.opening import open_store

PRESET = "maze2d-umaze"
ENV = EnvConfig(env_id="diffplan/Maze2D-UMaze-v1")
COLLECTION = CollectionConfig(behavior="waypoint", episode_steps=300, episodes_per_unit=8)
UNITS_PER_KILL = 12
COORDINATOR_SHARE = 0.2
"""Share of the kills that strike the coordinator; at least one does."""
MAX_PAUSE_SECONDS = 2.0
NUM_ACTORS = 2


@dataclass(frozen=True)
class ActorChaos:
    """What happened.

    Attributes:
        env: where it was collected.
        collection: what was collected in the end.
        num_actor_kills: actors that SIGKILL ended.
        num_coordinator_kills: coordinators likewise.
        seconds: how long it took.
    """

    env: EnvConfig
    collection: CollectionConfig
    num_actor_kills: int
    num_coordinator_kills: int
    seconds: float


def run_actor_chaos(root: Path, *, num_kills: int, seed: int, max_seconds: float = 3_000) -> ActorChaos:
    """Collect under at least `num_kills` kills; the dataset grows for as long as there are fewer."""
    generator = random.Random(seed)
    since = time.monotonic()
    num_coordinator_kills = max(1, round(COORDINATOR_SHARE * num_kills))
    plan = ["coordinator"] * num_coordinator_kills + ["actor"] * (num_kills - num_coordinator_kills)
    generator.shuffle(plan)
    kills = {"coordinator": 0, "actor": 0}
    num_units = UNITS_PER_KILL * num_kills
    while True:
        collection = replace(COLLECTION, num_steps=num_units * COLLECTION.episodes_per_unit * COLLECTION.episode_steps)
        with _coordinator(root, collection) as process:
            while process.poll() is None:
                assert time.monotonic() - since < max_seconds, "the collection does not come to an end"
                if not plan:
                    process.wait(timeout=max_seconds)
                    break
                time.sleep(generator.uniform(0.05, MAX_PAUSE_SECONDS))
                if actors := _find_actors(process.pid):
                    victim = process.pid if plan[-1] == "coordinator" else generator.choice(actors)
                    if _kill(victim):
                        kills[plan.pop()] += 1
            killed = process.returncode == -signal.SIGKILL
        assert killed or process.returncode == 0, f"a coordinator ended with {process.returncode}"
        if not killed:
            if not plan:
                break
            num_units += UNITS_PER_KILL * 5
    assert len(list_committed_units(open_store(root))) >= num_units
    return ActorChaos(ENV, collection, kills["actor"], kills["coordinator"], round(time.monotonic() - since, 1))


@contextlib.contextmanager
def _coordinator(root: Path, collection: CollectionConfig):
    """A running `diffplan collect`; at the end, whatever it started is ended."""
    command = [
        sys.executable, "-m", "diffplan.cli", "collect", PRESET, "--out", str(root), "--num_workers", str(NUM_ACTORS),
        "--num_steps", str(collection.num_steps), "--episode_steps", str(collection.episode_steps),
        "--episodes_per_unit", str(collection.episodes_per_unit), "--behavior", collection.behavior, "--resume",
    ]  # fmt: skip
    # Its errors are left to be seen: they say why a coordinator failed that nobody struck.
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    started: dict[int, psutil.Process] = {}
    try:
        watched = psutil.Process(process.pid)
        yield _Watched(process, watched, started)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            started |= {child.pid: child for child in psutil.Process(process.pid).children(recursive=True)}
        if process.poll() is None:
            process.kill()
        process.wait()
        for child in started.values():  # a Process of psutil is never mistaken for another of the same number
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(list(started.values()), timeout=30)


class _Watched:
    """A process that remembers what it started, also after its death."""

    def __init__(self, process: subprocess.Popen, watched: psutil.Process, started: dict[int, psutil.Process]) -> None:
        self._process, self._watched, self._started = process, watched, started
        self.pid = process.pid
        self.wait = process.wait

    def poll(self) -> int | None:
        """Whether it has ended; what it started until now is noted."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._started |= {child.pid: child for child in self._watched.children(recursive=True)}
        return self._process.poll()

    @property
    def returncode(self) -> int | None:
        """As that of `subprocess.Popen`."""
        return self._process.returncode


def _find_actors(pid: int) -> list[int]:
    """Workers below a process that run a collection actor; Ray gives them the name as their title."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any("CollectionActor" in part for part in child.cmdline()):
                    found.append(child.pid)
    return found


def _kill(pid: int) -> bool:
    """Strike a process; returns whether there was one."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True

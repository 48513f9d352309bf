"""Collect a dataset with plain processes that are killed at random points; Linux only.

Run as a script, this module is the host. It imports everything once and forks a coordinator; the coordinator forks a
writer for each missing unit and hands the unit out again when its writer fails. The host strikes both with SIGKILL at
random times and starts the coordinator again, until all units are there. Writers of a dead coordinator go on and meet
those of the next.

Some writers have a fate of their own:

```
answer_lost    the commit is put, and then the answer is an error
put_repeated   the commit is put twice, as by a client that repeats a request: the answer is that there was one
stopped        stopped just before its commit, and resumed when another attempt has committed the unit: a zombie
```
"""

import argparse
import ctypes
import heapq
import json
import os
import random
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, deque
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NoReturn

from diffplan.behaviors.collection import UnitCollector, make_manifest
from diffplan.config import CollectionConfig, EnvConfig
from diffplan.data.format.commit import list_committed_units
from diffplan.data.format.dataset import open_dataset, write_snapshot
from diffplan.data.format.manifest import commit_name
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.errors import DataError
from diffplan.storage.store import LocalStore

ENV = EnvConfig(env_id="diffplan/Maze2D-UMaze-v1")
COLLECTION = CollectionConfig(behavior="waypoint:0.7,random:0.3", episode_steps=40, episodes_per_unit=3)
NUM_UNITS = 150
GROWTH_UNITS = 50
"""Units that the dataset grows by where it is complete before enough processes were killed."""
NUM_WRITERS = 3
FATES = {"none": 0.8, "answer_lost": 0.07, "put_repeated": 0.05, "stopped": 0.08}
STRIKE_PROBABILITY = 0.8
COORDINATOR_SECONDS = 1.5
"""A coordinator is struck within this time."""
WROTE, CAME_SECOND, ANSWER_LOST, CRASHED = 0, 3, 4, 70
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class WriterChaos:
    """What happened.

    Attributes:
        collection: what was collected in the end.
        num_writer_kills: writers that SIGKILL ended before they had finished.
        num_coordinator_kills: coordinators likewise.
        num_whole: writers that committed and ended.
        num_refused: writers that found their unit committed by another, zombies included.
        num_answers_lost: writers that took their commit for failed.
        num_zombies: writers that were resumed after another had committed their unit; all were refused.
        seconds: how long it took.
    """

    collection: CollectionConfig
    num_writer_kills: int
    num_coordinator_kills: int
    num_whole: int
    num_refused: int
    num_answers_lost: int
    num_zombies: int
    seconds: float


def run_writer_chaos(root: Path, *, num_kills: int, seed: int, timeout_seconds: float) -> WriterChaos:
    """Collect a dataset under at least `num_kills` kills of writers."""
    command = [sys.executable, __file__, str(root), "--num-kills", str(num_kills), "--seed", str(seed)]
    # In a session of its own, so that whatever is left of it can be ended as a whole.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=timeout_seconds)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    assert process.returncode == 0, err
    values = json.loads(out)
    return WriterChaos(**{**values, "collection": CollectionConfig(**values["collection"])})


class HarassedStore(LocalStore):
    """A directory whose conditional puts go wrong in one way."""

    def __init__(self, root: Path, fate: str) -> None:
        super().__init__(root)
        self._fate = fate
        self.was_first = False

    def put_if_absent(self, name: str, content: bytes) -> bool:
        if self._fate == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        self.was_first = super().put_if_absent(name, content)
        if self._fate == "answer_lost":
            raise OSError("no answer")
        if self._fate == "put_repeated":
            return super().put_if_absent(name, content)
        return self.was_first


class Host:
    """Forks coordinators, strikes them and their writers, and counts.

    Args:
        root: the dataset.
        num_kills: writers to kill.
        seed: seed of fates and times.
    """

    def __init__(self, root: Path, num_kills: int, seed: int) -> None:
        self._root = root
        self._num_kills = num_kills
        self._random = random.Random(seed)
        self._collection = _with_units(NUM_UNITS)
        self._manifest = create_dataset(root, make_manifest(ENV, self._collection))
        self._collector = UnitCollector(ENV, self._collection)
        # Whatever is made or imported once is so before the forks, or writers would hardly ever live long enough.
        with tempfile.TemporaryDirectory() as scratch:
            create_dataset(scratch, self._manifest)
            write_unit(scratch, self._manifest, 0, self._collector.collect(0))
            write_snapshot(open_dataset(scratch))
        self._reports, self._report_to = os.pipe()
        self._unread = b""
        self._coordinator: int | None = None
        self._coordinator_strike = 0.0
        self._strikes: list[tuple[float, int, int]] = []  # time, pid, pidfd
        self._begun: dict[int, float] = {}
        self._life_seconds = deque([0.05], maxlen=50)
        self._zombies: dict[int, int] = {}  # unit of each pid
        self._resumed: set[int] = set()
        self.counts: Counter[str] = Counter()

    def run(self) -> CollectionConfig:
        """Go on until everything is collected and every process has ended; returns what was collected."""
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
        # Writers of a dead coordinator become children of this process, which learns how they end.
        assert ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
        self._start_coordinator()
        while self._coordinator is not None or self._has_children():
            self._read_reports(self._seconds_to_next())
            self._strike()
            self._resume_zombies()
            self._reap()
        self._read_reports(0)
        return self._collection

    @property
    def _has_enough(self) -> bool:
        return self.counts["writer_kills"] >= self._num_kills

    def _start_coordinator(self) -> None:
        seed = self._random.random()
        if (pid := os.fork()) == 0:
            _run_forked(lambda: coordinate(self, self._collection, random.Random(seed)))
        self._coordinator = pid
        self._coordinator_strike = time.monotonic() + self._random.uniform(0, COORDINATOR_SECONDS)

    def fork_writer(self, unit: int, fate: str) -> int:
        """Start a writer of a unit; called in a coordinator."""
        if (pid := os.fork()) == 0:
            _run_forked(lambda: self._write(unit, fate))
        return pid

    def _write(self, unit: int, fate: str) -> int:
        self.report("begun", os.getpid(), unit, fate)
        store = HarassedStore(self._root, fate)
        try:
            write_unit(store, self._manifest, unit, self._collector.collect(unit))
        except DataError:
            if fate != "answer_lost":
                raise
            return ANSWER_LOST
        return WROTE if store.was_first else CAME_SECOND

    def report(self, *values: object) -> None:
        """Tell the host of something; short enough to arrive in one piece."""
        os.write(self._report_to, json.dumps(values).encode() + b"\n")

    def _seconds_to_next(self) -> float:
        due = [0.02 + time.monotonic(), *(strike[0] for strike in self._strikes[:1])]
        return max(0.0, min(due) - time.monotonic())

    def _read_reports(self, timeout_seconds: float) -> None:
        while select.select([self._reports], [], [], timeout_seconds)[0]:
            self._unread += os.read(self._reports, 65536)
            *lines, self._unread = self._unread.split(b"\n")
            for line in lines:
                kind, *values = json.loads(line)
                (self._on_begun if kind == "begun" else self._on_ended)(*values)
            timeout_seconds = 0

    def _on_begun(self, pid: int, unit: int, fate: str) -> None:
        self._begun[pid] = time.monotonic()
        if fate == "stopped":
            self._zombies[pid] = unit
        elif not self._has_enough and self._random.random() < STRIKE_PROBABILITY:
            try:
                descriptor = os.pidfd_open(pid)  # a number alone may belong to another process by then
            except ProcessLookupError:
                return
            life = statistics.median(self._life_seconds)
            strike_at = time.monotonic() + self._random.uniform(0, 1.2 * life)
            heapq.heappush(self._strikes, (strike_at, pid, descriptor))

    def _on_ended(self, pid: int, status: int) -> None:
        begun = self._begun.pop(pid, None)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL, f"a writer was ended by signal {os.WTERMSIG(status)}"
            self.counts["writer_kills"] += 1
            return
        code = os.WEXITSTATUS(status)
        assert code in (WROTE, CAME_SECOND, ANSWER_LOST), f"a writer ended with {code}"
        self.counts[{WROTE: "whole", CAME_SECOND: "refused", ANSWER_LOST: "answers_lost"}[code]] += 1
        if self._zombies.pop(pid, None) is not None:
            assert pid in self._resumed
            assert code == CAME_SECOND, f"a zombie ended with {code}"
            self.counts["zombies"] += 1
        elif code == WROTE and begun is not None:
            self._life_seconds.append(time.monotonic() - begun)

    def _strike(self) -> None:
        while self._strikes and self._strikes[0][0] <= time.monotonic():
            _, _, descriptor = heapq.heappop(self._strikes)
            try:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it was faster
            finally:
                os.close(descriptor)
        if self._coordinator and not self._has_enough and time.monotonic() > self._coordinator_strike:
            os.kill(self._coordinator, signal.SIGKILL)
            self._coordinator_strike = float("inf")

    def _resume_zombies(self) -> None:
        for pid, unit in self._zombies.items():
            if pid not in self._resumed and _is_stopped(pid) and (self._root / commit_name(unit)).exists():
                self._resumed.add(pid)
                os.kill(pid, signal.SIGCONT)

    def _reap(self) -> None:
        while self._has_children():
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            if pid != self._coordinator:
                self._read_reports(0)  # what it reported itself comes first
                self._on_ended(pid, status)
                continue
            self._coordinator = None
            if os.WIFSIGNALED(status):
                self.counts["coordinator_kills"] += 1
            else:
                assert os.WEXITSTATUS(status) == 0, f"a coordinator ended with {os.WEXITSTATUS(status)}"
                if self._has_enough:
                    return
                self._collection = _with_units(self._collection.num_units + GROWTH_UNITS)
            self._start_coordinator()

    def _has_children(self) -> bool:
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True

    @property
    def root(self) -> Path:
        """The dataset."""
        return self._root


def coordinate(host: Host, collection: CollectionConfig, generator: random.Random) -> int:
    """Hand out missing units until there are none, and write a snapshot; safe to kill anywhere."""
    store = LocalStore(host.root)
    missing = list(set(range(collection.num_units)) - set(list_committed_units(store)))
    generator.shuffle(missing)
    running: dict[int, int] = {}
    while True:
        while missing and len(running) < NUM_WRITERS:
            unit = missing.pop()
            (fate,) = generator.choices(list(FATES), list(FATES.values()))
            running[host.fork_writer(unit, fate)] = unit
        if not running:
            break
        pid, status = os.waitpid(-1, os.WUNTRACED)
        unit = running.pop(pid, None)
        if not os.WIFSTOPPED(status):
            host.report("ended", pid, status)
        committed = os.WIFEXITED(status) and os.WEXITSTATUS(status) in (WROTE, CAME_SECOND)
        if unit is not None and not committed:
            missing.insert(0, unit)
    write_snapshot(open_dataset(store))
    return 0


def _with_units(num_units: int) -> CollectionConfig:
    return replace(COLLECTION, num_steps=num_units * COLLECTION.episodes_per_unit * COLLECTION.episode_steps)


def _is_stopped(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] == "T"


def _run_forked(function) -> NoReturn:
    """Run a function as the whole life of a forked process, whose code is what it returns."""
    code = CRASHED
    try:
        code = function()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--num-kills", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    since = time.monotonic()
    host = Host(arguments.root, arguments.num_kills, arguments.seed)
    collection = host.run()
    chaos = WriterChaos(
        collection=collection,
        **{
            f"num_{name}": host.counts[name]
            for name in ("writer_kills", "coordinator_kills", "whole", "refused", "answers_lost", "zombies")
        },
        seconds=round(time.monotonic() - since, 1),
    )
    print(json.dumps(asdict(chaos)))


if __name__ == "__main__":
    main()

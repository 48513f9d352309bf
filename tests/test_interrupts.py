"""Ctrl-C while a command starts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffplan.runs.interrupts import end_start, is_heard, watch_start

DEAF = """\
import os, signal, sys, time
from diffplan.runs import interrupts
interrupts.END_SECONDS = 1.0
with interrupts.watch_start():
    while True:  # as a library that swallows the exception
        try:
            print("started", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            print("swallowed", flush=True)
"""


def interrupt(command: list[str], seconds: float | None) -> tuple[int, float, str]:
    """Interrupt a process after some seconds, or after its first line; exit code, seconds until its end, messages."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    if seconds is None:
        process.stdout.readline()
    else:
        time.sleep(seconds)
    since = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    return process.returncode, time.monotonic() - since, err


def interrupt_this_process() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)


def test_a_process_that_does_not_listen_ends() -> None:
    code, seconds, err = interrupt([sys.executable, "-c", DEAF], None)
    assert (code, err) == (130, "interrupted: ending\n")
    assert 1 <= seconds < 5


def test_one_that_ends_by_itself_keeps_its_words() -> None:
    program = DEAF.replace('print("swallowed", flush=True)', 'sys.stderr.write("heard\\n"); sys.exit(130)')
    code, seconds, err = interrupt([sys.executable, "-c", program], None)
    assert code == 130
    assert "heard" in err.splitlines()
    assert seconds < 5


def test_a_program_may_go_on_after_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffplan.runs.interrupts.END_SECONDS", 0.2)
    with pytest.raises(KeyboardInterrupt), watch_start():
        interrupt_this_process()
    time.sleep(0.6)  # the process would have been ended
    assert not is_heard()


def test_a_swallowed_interrupt_is_raised_once_the_start_is_over() -> None:
    with watch_start():
        with pytest.raises(KeyboardInterrupt):
            interrupt_this_process()
        deadline = time.monotonic() + 5
        while not is_heard():
            assert time.monotonic() < deadline
        with pytest.raises(KeyboardInterrupt):
            end_start()
        end_start()  # and only once


@pytest.mark.slow
@pytest.mark.parametrize(
    "seconds", [1.5, 4.5, *(pytest.param(s, marks=pytest.mark.soak) for s in (0.7, 3.0, 6.0, 8.0))]
)
def test_a_command_ends_within_ten_seconds_wherever_its_start_is(seconds: float, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "diffplan.cli", "collect", "maze2d-umaze", "--out", str(tmp_path / "data")),
        *("--num_steps", "10_000_000"),
    ]
    code, waited, err = interrupt(command, seconds)
    assert code == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert waited < 10

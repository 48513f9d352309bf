"""A Ray head in processes of its own, with job server and token, beside whatever else runs on the machine."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
START_SECONDS = 90


@dataclass(frozen=True)
class Head:
    """A head that runs; `environment` is that of its users, without the mode of authentication."""

    url: str
    environment: dict[str, str]

    def run(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command of diffplan in a process of its own."""
        with self.start(*arguments, **environment) as process:
            out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def run_ray(self, *arguments: object) -> str:
        """What a command of Ray prints."""
        environment = {**self.environment, "RAY_AUTH_MODE": "token"}
        command = [sys.executable, "-m", "ray.scripts.scripts", *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        """A command of diffplan, not waited for."""
        return subprocess.Popen(
            [sys.executable, "-m", "diffplan.cli", *map(str, arguments)],
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@contextmanager
def start_head(num_cpus: int = 1) -> Iterator[Head]:
    """Start a head, and end all its processes afterwards."""
    home = Path(tempfile.mkdtemp(prefix="ray"))  # short: it holds sockets
    ports = _find_ports(4)
    url = f"http://127.0.0.1:{ports[1]}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {
        **kept,
        "HOME": str(home),  # where Ray looks for tokens
        "PATH": f"{Path(sys.executable).parent}:{kept.get('PATH', '')}",
        "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT / 'envs'}",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_API_SERVER_ADDRESS": url,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    options = {
        "port": ports[0],
        "dashboard-host": "127.0.0.1",
        "dashboard-port": ports[1],
        "ray-client-server-port": ports[2],
        "dashboard-agent-listen-port": ports[3],
        "num-cpus": num_cpus,
        "object-store-memory": 100 * 2**20,
        "temp-dir": home / "ray",
    }
    log = home / "head.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                *(f"--{name}={value}" for name, value in options.items()),
            ],
            env={**environment, "RAY_AUTH_MODE": "token"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _has_job_server(url):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield Head(url, environment)
    finally:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        psutil.wait_procs(family, timeout=3)
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()
        shutil.rmtree(home, ignore_errors=True)


def _find_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _has_job_server(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/api/version", timeout=5)
    except urllib.error.HTTPError as error:
        return error.code == 401  # it wants the token
    except OSError:
        return False
    return True

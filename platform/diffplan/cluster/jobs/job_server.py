"""The job server of a Ray cluster: reach it, submit a job, follow it. All else is done by `ray job`.

Ray's client answers with many kinds of exceptions; here each becomes one line that says what to do.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from diffplan.errors import ClusterError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
CONNECT_SECONDS = 10
"""Wait for a connection to be accepted."""
ANSWER_SECONDS = 60
"""Wait for the first answer; a busy head is slow."""
READY_SECONDS = 60
"""Wait for a newly started head to accept jobs; it answers some seconds earlier."""
_NOT_READY = "No available agent"
AGENT_PORT = 52365
"""Where the agents of a node take jobs unless another port is given; a second head on one host finds it taken."""
PENDING_SECONDS = 20
"""Wait for a job to start before the user is told; making its environment takes part of this time."""
POLL_SECONDS = 0.5
CANCEL_SECONDS = 1
"""Wait for the connection to close after Ctrl-C."""
MAX_LOST_CONNECTIONS = 10
"""Connections that may be lost in a row while a job is followed."""

TOKEN_CURE = (
    "export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN=… (or RAY_AUTH_TOKEN_PATH=FILE); "
    "`ray get-auth-token` prints it on the head"
)


def _send_the_token_that_is_there() -> None:
    """Turn on token authentication if there is a token and no mode is set, as `ray start` does for clusters.

    Ray reads the mode once, when it is imported.
    """
    where = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    path = os.path.expanduser("~/.ray/auth_token")
    if any(os.environ.get(name) for name in where) or os.path.exists(path):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    protect_token(path)


def protect_token(path: str) -> None:
    """Make a file with a token readable for its owner only; a line on standard error where that is not possible.

    Ray writes its token with the mode 0644, and who can read it controls the cluster.
    """
    try:
        if os.stat(path).st_mode & 0o077:
            os.chmod(path, 0o600)
    except FileNotFoundError:
        return
    except OSError as error:
        sys.stderr.write(f"{path}: others may read this token ({error.strerror}); make it readable for you only\n")


_send_the_token_that_is_there()

from diffplan.cluster import runtime  # noqa: E402  (sets what Ray reads from the environment)

# isort: split
import aiohttp  # noqa: E402
import requests  # noqa: E402
from ray.exceptions import AuthenticationError, RpcError  # noqa: E402
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient  # noqa: E402


def find_address(given: str | None) -> str:
    """Address of the job server: the given one, else from the environment as in Ray's commands, else this machine."""
    return given or next((os.environ[name] for name in ADDRESS_VARIABLES if os.environ.get(name)), DEFAULT_ADDRESS)


def _find_server(address: str) -> str:
    """An address that accepts connections: a URL, or an address that only Ray can resolve, such as `auto`.

    Ray itself would try for a minute. Raises `OSError` if nothing listens there, `ValueError` for an invalid address.
    """
    if address.startswith(("http://", "https://")):
        requests.get(f"{address}/api/version", timeout=(CONNECT_SECONDS, ANSWER_SECONDS))
        return address
    if "://" in address or ":" not in address:
        return address
    try:
        return _find_server(f"http://{address}")  # a dashboard without its scheme
    except requests.RequestException:
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        return address


class JobServer:
    """A connection to a job server.

    Args:
        address: URL of the server, or another address of the cluster that Ray takes; None for `find_address`.

    Raises:
        ClusterError: there is no job server, or it refuses our token.
    """

    def __init__(self, address: str | None = None) -> None:
        for handler in logging.getLogger("ray").handlers:  # its loggers set levels of their own
            handler.setLevel(logging.ERROR)
        self.address = find_address(address).rstrip("/")
        self._client = self._connect()

    def submit(self, entrypoint: str, *, runtime_env: dict[str, Any], num_cpus: float = 0, num_gpus: float = 0) -> str:
        """Submit a job.

        Args:
            entrypoint: shell command.
            runtime_env: Ray's description of what the command needs; a working directory in it is uploaded.
            num_cpus: CPUs for the command itself; without CPUs and GPUs it runs on the head.
            num_gpus: GPUs for the command itself.

        Returns:
            The id of the job.

        Raises:
            ClusterError: no node is large enough, or the server refuses.
        """
        self._require_node(num_cpus, num_gpus)
        since = time.monotonic()
        while True:
            with self._clear_errors():
                try:
                    return self._client.submit_job(
                        entrypoint=entrypoint,
                        runtime_env=runtime_env,
                        entrypoint_num_cpus=num_cpus or None,
                        entrypoint_num_gpus=num_gpus or None,
                    )
                except RuntimeError as error:
                    if _NOT_READY not in str(error):
                        raise
                    if time.monotonic() - since > READY_SECONDS:
                        raise ClusterError(
                            f"{self.address}: expected an agent of the cluster that takes jobs, got none in "
                            f"{READY_SECONDS} s; if another head runs on the same host, it has taken port "
                            f"{AGENT_PORT}: start this one by `ray start --head --dashboard-agent-listen-port PORT` "
                            "with a free one"
                        ) from None
            time.sleep(POLL_SECONDS)

    def describe_command(self, action: str, job: str) -> str:
        """The command of Ray for a job of this server, such as `ray job stop ID`."""
        # In Ray the environment overrides the argument --address.
        address = "" if self.address == find_address(None) else f"{ADDRESS_VARIABLES[0]}={self.address} "
        return f"{address}ray job {action} {job}"

    def follow(self, job: str, write: Callable[[str], object], notice: Callable[[str], object]) -> JobDetails:
        """Pass on the output of a job, from its start and as it is printed, until the job ends.

        Args:
            job: id.
            write: called with text.
            notice: called with a line if the job does not start for a long time.

        Returns:
            The details of the finished job.

        Raises:
            ClusterError: an unknown job, or the server is gone; the job may go on.
        """
        since, told = time.monotonic(), False
        while (details := self._get(job)).status == JobStatus.PENDING:
            if not told and time.monotonic() - since > PENDING_SECONDS:
                notice(f"{job}: {' '.join((details.message or 'waiting').split())}")
                told = True
            time.sleep(POLL_SECONDS)
        tail = Tail(self._client, job, write)
        lost = 0
        while True:
            before = tail.num_written
            try:
                tail.follow()
                details = self._client.get_job_info(job)
            except (RuntimeError, OSError, aiohttp.ClientError) as error:  # those of requests are OSErrors
                lost = 1 if tail.num_written > before else lost + 1
                if lost >= MAX_LOST_CONNECTIONS:
                    raise ClusterError(
                        f"{self.address}: lost the connection to the job server ({type(error).__name__}); the job may "
                        f"go on: `{self.describe_command('logs --follow', job)}`"
                    ) from error
                time.sleep(1)
                continue
            if JobStatus(details.status).is_terminal():
                return details
            time.sleep(POLL_SECONDS)  # the output ends before the job does

    def _get(self, job: str) -> JobDetails:
        with self._clear_errors():
            return self._client.get_job_info(job)

    def _require_node(self, num_cpus: float, num_gpus: float) -> None:
        """Raise if no node is large enough for the command; Ray would wait for a quarter of an hour."""
        asked = {"CPU": num_cpus, "GPU": num_gpus}
        nodes, grows = self._read_nodes()
        if grows or not nodes or not (num_cpus or num_gpus):
            return
        if not any(all(node.get(name, 0) >= amount for name, amount in asked.items()) for node in nodes):
            wanted = " and ".join(f"{amount:g} {name}s" for name, amount in asked.items() if amount)
            most = " and ".join(
                f"{max(node.get(name, 0) for node in nodes):g} {name}s" for name, amount in asked.items() if amount
            )
            raise ClusterError(
                f"{self.address}: expected a node with {wanted} for the command, got at most {most}; lower --num_cpus "
                "or --num_gpus (workers have their own)"
            )

    def _read_nodes(self) -> tuple[list[dict[str, float]], bool]:
        """Resources of each node, used or free, and whether there may be more nodes on demand.

        The report is that of Ray's autoscaler, which also runs on clusters that it cannot extend. A report without
        nodes has no information.
        """
        with self._clear_errors():
            response = self._client._do_request("GET", "/api/cluster_status")
        status = ((response.json() if response.ok else {}).get("data") or {}).get("clusterStatus") or {}
        usage = (status.get("loadMetricsReport") or {}).get("usageByNode") or {}
        types = (status.get("autoscalerReport") or {}).get("nodeTypeMapping") or {}
        nodes = [{name: total for name, (_, total) in node.items()} for node in usage.values()]
        return nodes, runtime.has_node_types(types)

    def _connect(self) -> JobSubmissionClient:
        nobody = (
            f"{self.address}: expected the job server of a Ray cluster, got no answer; start one with `ray start "
            "--head`, or name its dashboard by --address"
        )
        try:
            self.address = where = _find_server(self.address)
        except (OSError, ValueError):
            raise ClusterError(nobody) from None
        variable = ADDRESS_VARIABLES[0]
        before = os.environ.get(variable)
        os.environ[variable] = where  # because in Ray the environment overrides the argument
        try:
            with self._clear_errors():
                return self._check(lambda: JobSubmissionClient(where))
        except (ConnectionError, RpcError):
            raise ClusterError(nobody) from None
        finally:
            os.environ.pop(variable)
            if before is not None:
                os.environ[variable] = before

    def _check(self, connect: Callable[[], JobSubmissionClient]) -> JobSubmissionClient:
        """Connect; raise if the server is not a job server."""
        try:
            return connect()
        except (ValueError, KeyError, AssertionError, requests.HTTPError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "404" not in str(error):
                raise
            raise ClusterError(
                f"{self.address}: expected the job server of a Ray cluster, got some other server"
            ) from None

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """Turn exceptions of the client into errors of one line."""
        try:
            yield
        except AuthenticationError as error:
            got = "another" if "failed" in str(error).splitlines()[0] else "none"
            raise ClusterError(f"{self.address}: expected the token of the cluster, got {got}: {TOKEN_CURE}") from None
        except requests.RequestException as error:
            raise ClusterError(f"{self.address}: lost the connection to the job server; {_first_line(error)}") from None
        except RuntimeError as error:
            raise ClusterError(f"{self.address}: the job server refused; {_first_line(error)}") from None


class Tail:
    """The output of a job; after a lost connection it continues with the rest.

    Args:
        client: of the job server.
        job: id.
        write: called with text.
    """

    def __init__(self, client: JobSubmissionClient, job: str, write: Callable[[str], object]) -> None:
        self._client, self._job, self._write = client, job, write
        self.num_written = 0

    def follow(self) -> None:
        """Pass on new text until the job ends or the connection is lost."""
        loop = asyncio.new_event_loop()
        interrupted = loop.create_future()
        with _pass_interrupts(loop, interrupted):
            try:
                task = loop.create_task(self._run())
                loop.run_until_complete(asyncio.wait({task, interrupted}, return_when=asyncio.FIRST_COMPLETED))
                if interrupted.done():
                    raise KeyboardInterrupt
                task.result()
            finally:
                for task in (left := asyncio.all_tasks(loop)):
                    task.cancel()
                if left:
                    loop.run_until_complete(asyncio.wait(left, timeout=CANCEL_SECONDS))
                loop.run_until_complete(loop.shutdown_asyncgens())
                loop.close()

    async def _run(self) -> None:
        seen = 0  # each connection sends the output from its first line
        async for text in self._client.tail_job_logs(self._job):
            start = max(self.num_written - seen, 0)
            seen += len(text)
            if start < len(text):
                self._write(text[start:])
                self.num_written = seen


@contextmanager
def _pass_interrupts(loop: asyncio.AbstractEventLoop, interrupted: asyncio.Future[None]) -> Iterator[None]:
    """Finish a future at Ctrl-C, instead of an exception in the middle of a request.

    An interrupted request logs an error when it is discarded. Only the main thread receives Ctrl-C.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    loop.add_signal_handler(signal.SIGINT, lambda: interrupted.done() or interrupted.set_result(None))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__

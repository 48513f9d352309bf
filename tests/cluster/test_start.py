"""What Ray's environment variables may be set to, and how a start that fails is told."""

import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from diffplan.cluster import start
from diffplan.cluster.start import check_address, start_ray
from diffplan.errors import ClusterError


@pytest.fixture
def silent() -> Iterator[str]:
    """A port that accepts connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def web_server() -> Iterator[str]:
    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", ["no answer from 127.0.0.1:1", "unset it"]),
        ("nowhere.invalid:6379", ["no answer from nowhere.invalid:6379"]),
        ("http://127.0.0.1:8265", ["got 'http://127.0.0.1:8265'", "RAY_API_SERVER_ADDRESS", "diffplan submit"]),
        ("ray://127.0.0.1:10001", ["got 'ray://127.0.0.1:10001'", "diffplan submit"]),
        ("nonsense", ["got 'nonsense'"]),
        ("localhost:", ["got 'localhost:'"]),
        (":6379", ["got ':6379'"]),
        ("localhost:70000", ["got 'localhost:70000'"]),
        ("localhost:port", ["got 'localhost:port'"]),
    ],
)
def test_a_wrong_address_is_named_within_seconds(
    address: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    since = time.monotonic()
    with pytest.raises(ClusterError, match=r"^RAY_ADDRESS: expected HOST:PORT") as caught:
        start_ray()
    assert time.monotonic() - since < 5
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_server_at_the_address_is_no_head(
    silent: str, web_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "ANSWER_SECONDS", 0.5)
    for address in (silent, web_server):
        with pytest.raises(ClusterError, match=rf"RAY_ADDRESS: .* got no answer from {address}"):
            check_address(address)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_head_at_the_address_is_taken() -> None:
    check_address(ray.get_runtime_context().gcs_address)
    check_address("auto")


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """Arguments of calls of `ray.init`, each of which raises the next of the errors that are set as attribute."""
    calls: list[dict[str, object]] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(start, "FROM_OUTSIDE", ())
    monkeypatch.setattr(start, "_stop_what_started", lambda error: None)
    return calls


def raise_in_turn(monkeypatch: pytest.MonkeyPatch, calls: list[dict[str, object]], *errors: Exception | None) -> None:
    waiting = list(errors)

    def init(**arguments: object) -> None:
        calls.append(arguments)
        if (error := waiting.pop(0)) is not None:
            raise error

    monkeypatch.setattr(ray, "init", init)


LATE = Exception(
    "The current node timed out during startup. This could happen because some of the raylet failed to startup or the "
    "GCS has become overloaded."
)


def test_a_start_that_takes_too_long_is_repeated_once(
    starts: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raise_in_turn(monkeypatch, starts, LATE, None)
    start_ray()
    assert len(starts) == 2
    assert capsys.readouterr().err == "ray: it has not started in 0 s; waiting once more\n"
    raise_in_turn(monkeypatch, starts, LATE, RuntimeError("Failed to start GCS.  Last 0 lines of error files:\n\n."))
    with pytest.raises(ClusterError, match=r"^ray: expected it to start, got no answer in 0 s, twice .*less busy$"):
        start_ray()
    assert len(starts) == 4


def test_a_start_that_fails_names_what_may_be_wrong(
    starts: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    raise_in_turn(monkeypatch, starts, *[TypeError("cannot unpack\nnothing")] * 2)
    with pytest.raises(ClusterError, match=r"start on this machine, got TypeError: cannot unpack; see the logs in"):
        start_ray()
    monkeypatch.setattr(start, "FROM_OUTSIDE", ("RAY_REDIS_ADDRESS",))
    with pytest.raises(ClusterError, match=r"cannot unpack; check the variables that are set: RAY_REDIS_ADDRESS$"):
        start_ray()


def collect(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, which never gets as far as collecting."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "diffplan.cli", "collect", "maze2d-umaze", "--out", str(tmp_path / "data")]
    return subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RAY_NUM_REDIS_GET_RETRIES", "many"),  # an exception while Ray is imported
        ("RAY_health_check_period_ms", "often"),  # the end of the process
    ],
)
def test_a_variable_that_ray_cannot_read_is_named(name: str, value: str, tmp_path: Path) -> None:
    done = collect(tmp_path, **{name: value})
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith(f"error: {name}: expected values that Ray can read")


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_directory_too_long_for_sockets_is_named(name: str, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    done = collect(tmp_path, **{name: str(deep)})
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith(f"error: {name}: expected a directory that can be written, with a short path")
